#include "eval/language.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "engine/grid/affine.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

constexpr int64_t kTokensPerBatch = 8192;  // of evaluation, between two reports of progress
constexpr int64_t kHeadRows = 256;         // logits of so many tokens exist at a time

// Σ a / Σ b over units, and its standard error: that of a ratio of two means, from the residuals a - ratio b. The
// error of a single unit is unknown (NaN).
Estimate ratio_of_sums(const std::vector<double>& a, const std::vector<double>& b) {
  const double n = static_cast<double>(a.size());
  double top = 0, bottom = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    top += a[i];
    bottom += b[i];
  }
  const double value = top / bottom;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - value * b[i]) * (a[i] - value * b[i]);
  return {value, n > 1 ? std::sqrt(squares * n / (n - 1)) / bottom : std::nan("")};
}

// -log softmax(logits_t)[id_{t+1}] of one window's T-1 predictions into nll. hidden [1, T, D]
void window_nll(const Model& model, const Tensor& hidden, const int32_t* ids, double* nll) {
  const int64_t T = hidden.dim(1);
  const Tensor rows = hidden.reshaped({T, hidden.dim(2)});
  for (int64_t t0 = 0; t0 < T - 1; t0 += kHeadRows) {
    const int64_t n = std::min(kHeadRows, T - 1 - t0);
    const Tensor logits = model.head({Precision::Float}, rows.slice(t0, t0 + n).reshaped({1, n, hidden.dim(2)}));
    const int64_t V = logits.dim(2);
    parallel_for(n, [&](int64_t i) {
      const float* z = logits.data + i * V;
      const float top = *std::max_element(z, z + V);
      nll[t0 + i] = top + std::log(kernels().sum_exp(z, top, V)) - z[ids[t0 + i + 1]];
    });
  }
}

// Every prediction of every window: [count, length - 1].
std::vector<double> token_nll(const Model& model, const Windows& windows, const Context& ctx,
                              const Progress& progress) {
  const int64_t n = windows.count, predictions = windows.length - 1;
  const int64_t per_batch = std::max<int64_t>(1, kTokensPerBatch / windows.length);
  std::vector<double> all;
  const auto make = [&](int64_t batch) {
    const int64_t first = batch * per_batch, count = std::min(n, first + per_batch) - first;
    progress("evaluation", static_cast<double>(first), static_cast<double>(n));
    std::vector<double> nll(static_cast<size_t>(count * predictions));
    // Windows are independent, so a core takes one through the whole network.
    parallel_for(count, [&](int64_t i) {
      const Batch window = windows.batch(first + i, first + i + 1);
      Tensor x = model.embed(ctx, window);
      for (int block = 0; block < model.depth(); ++block) x = model.block(ctx, block, x);
      double* of_window = nll.data() + i * predictions;
      window_nll(model, x, window.ids.data(), of_window);
      require(std::all_of(of_window, of_window + predictions, [](double v) { return std::isfinite(v); }),
              "window %d: the model's output is not finite", first + i);
    });
    return nll;
  };
  in_order((n + per_batch - 1) / per_batch, make,
           [&](int64_t, const std::vector<double>& nll) { all.insert(all.end(), nll.begin(), nll.end()); });
  progress("evaluation", static_cast<double>(n), static_cast<double>(n));
  return all;
}

// The units of a definition from every prediction.
Perplexity by_definition(const std::string& definition, const std::vector<double>& token_nll,
                         const EvaluationText& text) {
  const int64_t predictions = text.windows.length - 1;
  std::vector<double> nll, weight;
  if (definition == "llamacpp") {
    const int64_t first = text.windows.length / 2;
    for (int64_t w = 0; w < text.windows.count; ++w)
      nll.insert(nll.end(), token_nll.begin() + w * predictions + first, token_nll.begin() + (w + 1) * predictions);
  } else {
    for (int64_t w = 0; w < text.windows.count; ++w) {
      double sum = 0;
      for (int64_t t = 0; t < predictions; ++t) sum += token_nll[at(w * predictions + t)];
      nll.push_back(definition == "gptq" ? sum / static_cast<double>(predictions) : sum);
    }
  }
  weight = definition == "word"   ? text.counts.words
           : definition == "byte" ? text.counts.bytes
                                  : std::vector<double>(nll.size(), 1.0);
  return perplexity(definition, std::move(nll), std::move(weight));
}

TokenFacts facts_of(const std::vector<int32_t>& ids, const TextSource& source, const Tokenizer* tokenizer) {
  const bool from_file = source.definition == Definition::Tokens;
  return {static_cast<int64_t>(ids.size()), token_hash(ids), from_file || !tokenizer ? -1 : tokenizer->bos()};
}

bool counts_text(const std::string& definition) { return definition == "word" || definition == "byte"; }

// JSON has no NaN.
json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

}  // namespace

int64_t seqlen_of(const Model& model, const Recipe& recipe) {
  const ModelInfo& info = model.info();
  require_usage(info.family == Family::Language, "%s is a vision model: use imagenet", info.name);
  const int64_t length = recipe.seqlen > 0 ? recipe.seqlen : std::min<int64_t>(2048, info.max_length);
  require_usage(length >= 2 && length <= info.max_length, "--seqlen %d: %s takes 2 to %d tokens", length, info.name,
                info.max_length);
  return length;
}

std::string TokenFacts::text() const {
  return format("%d tokens (%s), hash %s", tokens, bos < 0 ? "no BOS" : format("BOS %d", bos), hash);
}

LanguageTask::LanguageTask(Model& m, std::vector<TextSource> texts, TextSource c, std::vector<std::string> d,
                           int64_t windows)
    : Task(m),
      sources(std::move(texts)),
      calib(std::move(c)),
      definitions(std::move(d)),
      limit(windows),
      results(sources.size()),
      floats(sources.size()),
      texts_(sources.size()) {
  const auto needs_one = [](const TextSource& s) { return !s.path.empty() && s.definition != Definition::Tokens; };
  if (std::any_of(sources.begin(), sources.end(), needs_one) || needs_one(calib) ||
      definitions != std::vector<std::string>{"gptq"})
    tokenizer_ = Tokenizer::load(model.info().directory);
}

const std::vector<Batch>& LanguageTask::compensation(const Recipe& r) {
  if (!calib_.empty()) return calib_;
  const Tokenizer* tokenizer = tokenizer_ ? &*tokenizer_ : nullptr;
  std::vector<int32_t> separators;
  for (const std::string& id : split(r.separators)) separators.push_back(std::stoi(id));
  const Windows crops = calibration_windows(calib, tokenizer, seqlen_of(model, r), r.samples, r.seed,
                                            r.align ? Align::Document : Align::None, separators, warn);
  calib_facts = facts_of(crops.ids, calib, tokenizer);
  for (int64_t i = 0; i < crops.count; ++i) calib_.push_back(crops.batch(i, i + 1));
  return calib_;
}

json LanguageTask::calibration_facts() const {
  return {{"calib_text", calib.path},
          {"calib_definition", name_of(calib.definition)},
          {"calib_token_hash", calib_facts.hash}};
}

const EvaluationText& LanguageTask::text(const Recipe& r, size_t i) {
  EvaluationText& text = texts_.at(i);
  if (text.windows.count > 0) return text;
  const TextSource& source = sources[i];
  const Tokenizer* tokenizer = tokenizer_ ? &*tokenizer_ : nullptr;
  const int64_t length = seqlen_of(model, r);
  const std::vector<int32_t> ids = evaluation_ids(source, tokenizer, length, warn);
  text = {source, facts_of(ids, source, tokenizer), perplexity_windows(ids, length, source.path), {}};
  if (limit > 0 && limit < text.windows.count) {
    text.windows.count = limit;
    text.windows.ids.resize(static_cast<size_t>(limit * length));
  }
  if (std::any_of(definitions.begin(), definitions.end(), counts_text))
    text.counts = count_text(text.windows, *tokenizer);
  return text;
}

Perplexity perplexity(std::string definition, std::vector<double> nll, std::vector<double> weight) {
  require(nll.size() == weight.size() && !nll.empty(), "perplexity of nothing");
  Perplexity p{std::move(definition), std::move(nll), std::move(weight)};
  const Estimate l = ratio_of_sums(p.nll, p.weight);
  p.perplexity = std::exp(l.value);
  p.se = p.perplexity * l.se;
  return p;
}

Estimate paired_ratio(const Perplexity& a, const Perplexity& b) {
  require(a.definition == b.definition && a.weight == b.weight, "a paired ratio needs the same windows");
  std::vector<double> d(a.nll.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = a.nll[i] - b.nll[i];
  const Estimate m = ratio_of_sums(d, a.weight);
  return {100 * std::expm1(m.value), 100 * std::exp(m.value) * m.se};
}

Estimate paired_ratio(const Measured& a, const Measured& b) {
  const auto of = [](const Measured& m) { return perplexity("gptq", m.units, std::vector<double>(m.units.size(), 1)); };
  return paired_ratio(of(a), of(b));
}

Measured LanguageTask::measure(const Recipe& recipe, size_t i, json& record, const Progress& progress) {
  const EvaluationText& of = text(recipe, i);
  Context ctx{precision_of(recipe)};
  ctx.window_bits = static_cast<int>(recipe.prefill_bits);
  const auto swaps = [&](const std::string& definition) { return definition == "llamacpp" && of.facts.bos >= 0; };
  std::vector<double> plain, swapped;  // empty until a definition needs them
  std::vector<Perplexity> all;
  for (const std::string& definition : definitions) {
    std::vector<double>& nll = swaps(definition) ? swapped : plain;
    if (nll.empty()) {
      Windows windows = of.windows;
      if (swaps(definition))
        for (int64_t w = 0; w < windows.count; ++w) windows.ids[at(w * windows.length)] = of.facts.bos;
      nll = token_nll(model, windows, ctx, progress);
    }
    all.push_back(by_definition(definition, nll, of));
  }
  json by_name = json::object();
  for (size_t d = 0; d < all.size(); ++d) {
    const Perplexity& p = all[d];
    json& entry = by_name[p.definition] = {{"perplexity", p.perplexity}, {"perplexity_se", number(p.se)}};
    if (floats[i].empty()) continue;
    const Estimate change = paired_ratio(p, floats[i][d]);
    entry.update({{"float", floats[i][d].perplexity},
                  {"float_se", number(floats[i][d].se)},
                  {"change_percent", change.value},
                  {"change_percent_se", number(change.se)}});
  }
  record.update({{"text", of.source.path},
                 {"text_definition", name_of(of.source.definition)},
                 {"text_tokens", of.facts.tokens},
                 {"text_token_hash", of.facts.hash},
                 {"bos", of.facts.bos < 0 ? json(nullptr) : json(of.facts.bos)},
                 {"perplexity", all.at(0).perplexity},
                 {"perplexity_se", number(all[0].se)},
                 {"perplexity_definition", all[0].definition},
                 {"perplexities", by_name},
                 {"tokens", of.windows.count * of.windows.length},
                 {"windows", of.windows.count},
                 {"seqlen", of.windows.length}});
  if (keeps_floats && !quantizes(recipe)) floats[i] = all;
  results[i] = all;
  return {all[0].nll, all[0].perplexity, all[0].se};
}

std::string describe_weights(Model& model, const Recipe& r) {
  const GptqOptions& w = r.weights;
  if (!quantizes(r)) return name_of(r);
  std::string text = name_of(r) + format(" %d bit", w.bits);
  if (folds(r) && solves(r)) text += " by gptq";
  if (w.groupsize > 0) text += format(" g%d", w.groupsize);
  if (w.sym) text += " sym";
  if (w.half) text += " f16 scales";
  if (w.mse > 0) text += format(" mse %g", w.mse);
  if (solves(r) && w.act_order) text += " act-order";
  if (solves(r) && w.static_groups) text += " static-groups";
  std::map<int, int> layers;
  const json recipe = flat_recipe(model, r);
  for (const json& bits : recipe["layer_bits"]) ++layers[bits.get<int>()];
  for (const auto& [bits, count] : layers)
    text += format(", %d layer%s ", count, count > 1 ? "s" : "") + (bits < 32 ? format("of %d bit", bits) : "in float");
  return text;
}

void set_stored(Model& model, Recipe& r) {
  if (!set_stored_method(model, r)) return;
  std::map<int, int64_t> layers;
  for (const Layer* layer : model.all_layers()) {
    if (layer->binarized()) ++layers[1], r.weights.half = true;
    if (!layer->packed()) continue;
    const Affine grid = layer->packed()->grid();
    ++layers[grid.bits];
    r.weights.groupsize = grid.scale.dim(1) == 1 ? -1 : grid.group;
    r.weights.sym = is_symmetric(grid);
    r.weights.half = scale_bits(grid) == 16;
  }
  r.weights.bits = most_common(layers);
}

}  // namespace bcq
