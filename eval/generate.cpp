#include "eval/generate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/attention.h"

namespace bcq {

namespace fs = std::filesystem;

void check(const Sampling& s) {
  require_usage(s.temperature >= 0 && std::isfinite(s.temperature), "--temperature must be at least 0");
  require_usage(s.top_k >= 0, "--top-k must be at least 0");
  require_usage(s.top_p > 0 && s.top_p <= 1, "--top-p must be above 0 and at most 1");
}

int32_t pick(const Tensor& logits, const Sampling& sampling, PythonRandom& random) {
  const int64_t n = logits.size();
  require(kernels().all_finite(logits.data, n), "a logit is not finite: the model's weights are damaged");
  if (sampling.temperature == 0)
    return static_cast<int32_t>(std::max_element(logits.data, logits.data + n) - logits.data);

  std::vector<int32_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (sampling.top_k > 0) ids.resize(static_cast<size_t>(std::min(n, sampling.top_k)));
  std::vector<double> weight;
  for (const int32_t id : ids) weight.push_back(std::exp((logits[id] - logits[ids[0]]) / sampling.temperature));
  double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  size_t kept = 0;
  for (double mass = 0; kept < weight.size() && mass < sampling.top_p * total;) mass += weight[kept++];
  total = std::accumulate(weight.begin(), weight.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  double left = random.random() * total;
  size_t chosen = 0;
  while (chosen + 1 < kept && left >= weight[chosen]) left -= weight[chosen++];
  return ids[chosen];
}

std::vector<int32_t> end_tokens(const Model& model) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    const std::string path = (fs::path(model.info().directory) / name).string();
    if (!fs::exists(path)) continue;
    const json config = read_json(path);
    if (!config.contains("eos_token_id") || config["eos_token_id"].is_null()) continue;
    if (config["eos_token_id"].is_array()) return get<std::vector<int32_t>>(config, "eos_token_id", path);
    return {get<int32_t>(config, "eos_token_id", path)};
  }
  return {};
}

int64_t longest_text(Model& model) {
  int64_t longest = model.info().max_length;
  for (const Point& point : model.all_points())
    for (const Tensor* bc : point.added)
      if (!bc->empty() && bc->dim(0) > 1) longest = std::min(longest, bc->dim(0));
  return longest;
}

Generated generate(Model& model, const std::vector<int32_t>& prompt, int64_t tokens, const Sampling& sampling,
                   const std::function<void(int32_t)>& each) {
  const int64_t length = static_cast<int64_t>(prompt.size()), longest = longest_text(model);
  require_usage(length > 0, "the prompt is empty, and the tokenizer puts nothing before it");
  require_usage(length < longest, "the prompt has %d tokens, but %s has positions for %d, and those that follow",
                length, model.info().name, longest);
  const std::vector<int32_t> ends = end_tokens(model);
  KvCache cache(length + std::min(longest - length, tokens));
  Context ctx;
  ctx.precision = model.info().packed ? Precision::Fake : Precision::Float;
  ctx.cache = &cache;
  PythonRandom random(sampling.seed);

  Generated result;
  Timer timer;
  Batch next = Batch::window(prompt);
  for (;;) {
    const int32_t id = pick(model.next_logits(ctx, next), sampling, random);
    (cache.length == length ? result.prefill_seconds : result.decode_seconds) = timer.seconds();
    if (cache.length == length) timer = Timer();
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) {
      result.finish = "eos";
      return result;
    }
    result.ids.push_back(id);
    each(id);
    if (static_cast<int64_t>(result.ids.size()) == tokens || cache.length == longest) {
      result.finish = cache.length == longest ? "positions" : "length";
      return result;
    }
    next = Batch::window({id});
  }
}

}  // namespace bcq
