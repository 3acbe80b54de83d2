#include "eval/language.h"

#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "engine/kernels.h"
#include "engine/parallel.h"
#include "eval/common.h"

namespace bcq {
namespace {

constexpr int64_t kTokensPerBatch = 8192;  // of evaluation, between two reports of progress
constexpr int64_t kHeadRows = 256;         // logits of so many tokens exist at a time

struct MeanAndError {
  double mean, se;
};

// Mean and standard error of the mean; the error of a single value is unknown (NaN).
MeanAndError mean_and_error(const std::vector<double>& values) {
  const double n = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : std::nan("")};
}

// Mean over positions of -log softmax(logits_t)[id_{t+1}], for one window. hidden [1, T, D]
double window_nll(const Model& model, const Tensor& hidden, const int32_t* ids) {
  const int64_t T = hidden.dim(1);
  const Tensor rows = hidden.reshaped({T, hidden.dim(2)});
  std::vector<double> nll(static_cast<size_t>(T - 1));
  for (int64_t t0 = 0; t0 < T - 1; t0 += kHeadRows) {
    const int64_t n = std::min(kHeadRows, T - 1 - t0);
    const Tensor logits = model.head({Precision::Float}, rows.slice(t0, t0 + n).reshaped({1, n, hidden.dim(2)}));
    const int64_t V = logits.dim(2);
    parallel_for(n, [&](int64_t i) {
      const float* z = logits.data + i * V;
      const float top = *std::max_element(z, z + V);
      nll[static_cast<size_t>(t0 + i)] = top + std::log(kernels().sum_exp(z, top, V)) - z[ids[t0 + i + 1]];
    });
  }
  double sum = 0;
  for (const double v : nll) sum += v;
  return sum / static_cast<double>(T - 1);
}

void check_method(const LanguageRun& run) {
  require_usage(run.method == "fp" || run.method == "rtn" || run.method == "gptq", "--method %s: not fp, rtn or gptq",
                run.method.c_str());
}

}  // namespace

int64_t seqlen_of(const Model& model, const LanguageRun& run) {
  const ModelInfo& info = model.info();
  require_usage(info.family == Family::Language, "%s is a vision model: use imagenet", info.name.c_str());
  const int64_t length = run.seqlen > 0 ? run.seqlen : std::min<int64_t>(2048, info.max_length);
  require_usage(length >= 2 && length <= info.max_length, "--seqlen %lld: %s takes 2 to %lld tokens",
                static_cast<long long>(length), info.name.c_str(), static_cast<long long>(info.max_length));
  return length;
}

std::vector<Batch> calibration_batches(const Model& model, const std::vector<int32_t>& ids, const LanguageRun& run,
                                       const std::string& where) {
  require_usage(run.nsamples >= 1, "--nsamples must be at least 1");
  const Windows crops = calibration_crops(ids, seqlen_of(model, run), run.nsamples, run.seed, where);
  std::vector<Batch> batches;
  for (int64_t i = 0; i < crops.count; ++i) batches.push_back(crops.batch(i, i + 1));
  return batches;
}

void quantize_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run, const Progress& progress,
                       const Warn& warn) {
  check_method(run);
  if (run.method == "fp") return;
  const SiteBits bits = allocate_bits(model, site_rules(run.layer_bits, run.exclude));
  if (run.method == "rtn") quantize_rtn(model, run.weights, bits);
  if (run.method == "gptq") quantize_gptq(model, calib, run.weights, progress, warn, bits);
}

int64_t compensate_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run,
                            const Progress& progress) {
  if (run.bc == "none") return 0;
  require_usage(run.method != "fp", "--bc %s needs --method rtn or gptq", run.bc.c_str());
  return compensate(model, calib, bc_options(run.bc, run.bc_sites), progress);
}

Perplexity evaluate_language(const Model& model, const Windows& windows, const LanguageRun& run,
                             const Progress& progress) {
  check_method(run);
  const Context ctx{run.method == "fp" ? Precision::Float : Precision::Fake};
  const int64_t n = run.limit > 0 ? std::min(run.limit, windows.count) : windows.count;
  const int64_t per_batch = std::max<int64_t>(1, kTokensPerBatch / windows.length);
  Perplexity result;
  result.nll.resize(static_cast<size_t>(n));
  for (int64_t w = 0; w < n; w += per_batch) {
    progress("evaluation", static_cast<double>(w), static_cast<double>(n));
    // Windows are independent, so a core takes one through the whole network.
    parallel_for(std::min(n, w + per_batch) - w, [&](int64_t i) {
      const Batch batch = windows.batch(w + i, w + i + 1);
      Tensor x = model.embed(ctx, batch);
      for (int block = 0; block < model.depth(); ++block) x = model.block(ctx, block, x);
      double& nll = result.nll[static_cast<size_t>(w + i)] = window_nll(model, x, batch.ids.data());
      require(std::isfinite(nll), "window %lld: the model's output is not finite", static_cast<long long>(w + i));
    });
  }
  progress("evaluation", static_cast<double>(n), static_cast<double>(n));
  const MeanAndError l = mean_and_error(result.nll);
  result.perplexity = std::exp(l.mean);
  result.se = result.perplexity * l.se;
  result.tokens = n * windows.length;
  return result;
}

std::string token_hash(const std::vector<int32_t>& ids) {
  uint64_t hash = 14695981039346656037ull;
  for (const int32_t id : ids)
    for (int byte = 0; byte < 4; ++byte)
      hash = (hash ^ (static_cast<uint32_t>(id) >> (8 * byte) & 255)) * 1099511628211ull;
  return format("%016llx", static_cast<unsigned long long>(hash));
}

Ratio paired_ratio(const Perplexity& a, const Perplexity& b) {
  require(a.nll.size() == b.nll.size() && !a.nll.empty(), "a paired ratio needs the same windows");
  std::vector<double> d(a.nll.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = a.nll[i] - b.nll[i];
  const MeanAndError m = mean_and_error(d);
  return {100 * std::expm1(m.mean), 100 * std::exp(m.mean) * m.se};
}

namespace {

// The layers that have other bits than the rest, with 32 for those that stayed float.
json layer_bits(Model& model, int bits) {
  json exceptions = json::object();
  for (int i = 0; i < model.depth(); ++i)
    for (const Site* site : model.sites(i)) {
      if (!site->is_linear()) continue;
      const auto* grid = std::get_if<Affine>(&site->b);
      if (!grid || grid->bits != bits) exceptions[site->name] = grid ? grid->bits : 32;
    }
  return exceptions;
}

}  // namespace

std::string describe_weights(Model& model, const LanguageRun& run) {
  const GptqOptions& w = run.weights;
  if (run.method == "fp") return run.method;
  std::string text = run.method + format(" %d bit", w.bits);
  if (w.groupsize > 0) text += format(" g%lld", static_cast<long long>(w.groupsize));
  if (w.sym) text += " sym";
  if (w.mse > 0) text += format(" mse %g", w.mse);
  if (run.method == "gptq" && w.act_order) text += " act-order";
  if (run.method == "gptq" && w.static_groups) text += " static-groups";
  std::map<int, int> layers;
  for (const json& bits : layer_bits(model, w.bits)) ++layers[bits.get<int>()];
  for (const auto& [bits, count] : layers)
    text += format(", %d layer%s ", count, count > 1 ? "s" : "") + (bits < 32 ? format("of %d bit", bits) : "in float");
  return text;
}

json language_record(Model& model, const LanguageRun& run, const Perplexity& result, int64_t bc_parameters,
                     double seconds) {
  const bool quantized = run.method != "fp";
  const bool calibrated = run.method == "gptq" || run.bc != "none";
  const auto solved = [&](const json& option) { return run.method == "gptq" ? option : json(nullptr); };
  const ModelInfo& info = model.info();
  return {{"model", info.name},
          {"tag", info.tag},
          {"parameters", info.parameters},
          {"method", run.method},
          {"wbits", quantized ? run.weights.bits : 32},
          {"abits", 32},
          {"groupsize", quantized ? json(run.weights.groupsize) : json(nullptr)},
          {"sym", quantized ? json(run.weights.sym) : json(nullptr)},
          {"mse", quantized ? json(run.weights.mse) : json(nullptr)},
          {"layer_bits", quantized ? layer_bits(model, run.weights.bits) : json(nullptr)},
          {"act_order", solved(run.weights.act_order)},
          {"static_groups", solved(run.weights.static_groups)},
          {"percdamp", solved(run.weights.percdamp)},
          {"bc", run.bc},
          {"bc_sites", run.bc == "none" ? json(nullptr) : json(run.bc_sites)},
          {"bc_parameters", bc_parameters},
          {"bits_per_weight", bits_per_weight(model)},
          {"perplexity", result.perplexity},
          {"perplexity_se", std::isfinite(result.se) ? json(result.se) : json(nullptr)},
          {"perplexity_definition", "gptq"},
          {"tokens", result.tokens},
          {"windows", result.nll.size()},
          {"seqlen", seqlen_of(model, run)},
          {"nsamples", calibrated ? json(run.nsamples) : json(nullptr)},
          {"seed", calibrated ? json(run.seed) : json(nullptr)},
          {"seconds", seconds}};
}

}  // namespace bcq
