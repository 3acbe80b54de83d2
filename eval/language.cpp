#include "eval/language.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"
#include "eval/common.h"

namespace bcq {
namespace {

constexpr int64_t kTokensPerBatch = 8192;  // of evaluation, between two reports of progress
constexpr int64_t kHeadRows = 256;         // logits of so many tokens exist at a time

// Σ a / Σ b over units, and its standard error: that of a ratio of two means, from the residuals a - ratio b. The
// error of a single unit is unknown (NaN).
struct RatioOfSums {
  double value, se;
};
RatioOfSums ratio_of_sums(const std::vector<double>& a, const std::vector<double>& b) {
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
  std::vector<double> nll(static_cast<size_t>(n * predictions));
  for (int64_t w = 0; w < n; w += per_batch) {
    progress("evaluation", static_cast<double>(w), static_cast<double>(n));
    // Windows are independent, so a core takes one through the whole network.
    parallel_for(std::min(n, w + per_batch) - w, [&](int64_t i) {
      const Batch batch = windows.batch(w + i, w + i + 1);
      Tensor x = model.embed(ctx, batch);
      for (int block = 0; block < model.depth(); ++block) x = model.block(ctx, block, x);
      double* of_window = nll.data() + (w + i) * predictions;
      window_nll(model, x, batch.ids.data(), of_window);
      require(std::all_of(of_window, of_window + predictions, [](double v) { return std::isfinite(v); }),
              "window %d: the model's output is not finite", w + i);
    });
  }
  progress("evaluation", static_cast<double>(n), static_cast<double>(n));
  return nll;
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
      for (int64_t t = 0; t < predictions; ++t) sum += token_nll[static_cast<size_t>(w * predictions + t)];
      nll.push_back(definition == "gptq" ? sum / static_cast<double>(predictions) : sum);
    }
  }
  weight = definition == "word"   ? text.counts.words
           : definition == "byte" ? text.counts.bytes
                                  : std::vector<double>(nll.size(), 1.0);
  Perplexity p = perplexity(definition, std::move(nll), std::move(weight));
  p.windows = text.windows.count;
  p.length = text.windows.length;
  return p;
}

TokenFacts facts_of(const std::vector<int32_t>& ids, const TextSource& source, const Tokenizer* tokenizer) {
  const bool from_file = source.definition == Definition::Tokens;
  return {static_cast<int64_t>(ids.size()), token_hash(ids), from_file || !tokenizer ? -1 : tokenizer->bos()};
}

bool counts_text(const std::string& definition) { return definition == "word" || definition == "byte"; }

// JSON has no NaN.
json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

void check_method(const LanguageRun& run) {
  require_usage(run.method == "fp" || run.method == "rtn" || run.method == "gptq" || run.method == "stored",
                "--method %s: not fp, rtn or gptq", run.method);
}

bool in_one_walk(const LanguageRun& run) {
  return run.method == "gptq" && run.bc != "none" && run.bc_stream == "quantized";
}

}  // namespace

int64_t seqlen_of(const Model& model, const LanguageRun& run) {
  const ModelInfo& info = model.info();
  require_usage(info.family == Family::Language, "%s is a vision model: use imagenet", info.name);
  const int64_t length = run.seqlen > 0 ? run.seqlen : std::min<int64_t>(2048, info.max_length);
  require_usage(length >= 2 && length <= info.max_length, "--seqlen %d: %s takes 2 to %d tokens", length, info.name,
                info.max_length);
  return length;
}

Calibration read_calibration(const Model& model, const TextSource& source, const Tokenizer* tokenizer,
                             const LanguageRun& run) {
  require_usage(run.nsamples >= 1, "--nsamples must be at least 1");
  const Windows crops = calibration_windows(source, tokenizer, seqlen_of(model, run), run.nsamples, run.seed);
  Calibration calib{source, facts_of(crops.ids, source, tokenizer), {}};
  for (int64_t i = 0; i < crops.count; ++i) calib.batches.push_back(crops.batch(i, i + 1));
  return calib;
}

EvaluationText read_evaluation(const Model& model, const TextSource& source, const Tokenizer* tokenizer,
                               const LanguageRun& run) {
  const int64_t length = seqlen_of(model, run);
  const std::vector<int32_t> ids = evaluation_ids(source, tokenizer, length);
  EvaluationText text{source, facts_of(ids, source, tokenizer), perplexity_windows(ids, length, source.path), {}};
  if (run.limit > 0 && run.limit < text.windows.count) {
    text.windows.count = run.limit;
    text.windows.ids.resize(static_cast<size_t>(run.limit * length));
  }
  if (std::any_of(run.ppl.begin(), run.ppl.end(), counts_text)) {
    require_usage(tokenizer != nullptr, "perplexity per word or byte needs the model's tokenizer");
    text.counts = count_text(text.windows, *tokenizer);
  }
  return text;
}

CalibrationResult quantize_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run,
                                    const Progress& progress, const Warn& warn, PartStore* store) {
  check_method(run);
  require_usage(run.method != "fp" || run.bc == "none", "--bc %s needs --method rtn or gptq", run.bc);
  require_usage(
      run.hessian != "centred" || (run.bc != "none" && bc_options(run.bc, run.bc_sites).linear),
      "--hessian centred leaves constant errors to a bias at each layer: give --bc, with linear in --bc-sites");
  require_usage(!model.info().packed || run.method == "stored", "%s is quantized already", model.info().name);
  if (run.method == "fp" || run.method == "stored") return {};
  const LayerBits bits = allocate_bits(model, layer_rules(run.layer_bits, run.exclude));
  if (run.method == "rtn") quantize_rtn(model, run.weights, bits);
  if (run.method == "rtn") return {};
  GptqMethodOptions options{run.weights,           bits,      run.true_sequential, run.hessian == "centred",
                            run.target == "float", run.refine};
  if (!in_one_walk(run)) return quantize_gptq(model, calib, options, progress, warn, store);
  const BcOptions bc = bc_options(run.bc, run.bc_sites);
  return quantize_gptq(model, calib, options, progress, warn, store, &bc);
}

CalibrationResult compensate_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run,
                                      const Progress& progress, PartStore* store) {
  if (run.bc == "none" || in_one_walk(run)) return {};
  BcOptions options = bc_options(run.bc, run.bc_sites);
  options.stream = run.bc_stream == "quantized" ? Stream::Quantized : Stream::Float;
  return compensate(model, calib, options, progress, store);
}

Perplexity perplexity(std::string definition, std::vector<double> nll, std::vector<double> weight) {
  require(nll.size() == weight.size() && !nll.empty(), "perplexity of nothing");
  Perplexity p{std::move(definition), std::move(nll), std::move(weight)};
  const RatioOfSums l = ratio_of_sums(p.nll, p.weight);
  p.perplexity = std::exp(l.value);
  p.se = p.perplexity * l.se;
  return p;
}

std::vector<Perplexity> evaluate_language(const Model& model, const EvaluationText& text, const LanguageRun& run,
                                          const Progress& progress) {
  check_method(run);
  Context ctx{run.method == "fp" ? Precision::Float : Precision::Fake};
  ctx.window_bits = run.prefill_bits;
  const int32_t bos = text.facts.bos;
  const auto swaps = [&](const std::string& definition) { return definition == "llamacpp" && bos >= 0; };
  std::vector<double> plain, swapped;  // empty until a definition needs them
  std::vector<Perplexity> results;
  for (const std::string& definition : run.ppl) {
    std::vector<double>& nll = swaps(definition) ? swapped : plain;
    if (nll.empty()) {
      Windows windows = text.windows;
      if (swaps(definition))
        for (int64_t w = 0; w < windows.count; ++w) windows.ids[static_cast<size_t>(w * windows.length)] = bos;
      nll = token_nll(model, windows, ctx, progress);
    }
    results.push_back(by_definition(definition, nll, text));
  }
  return results;
}

Ratio paired_ratio(const Perplexity& a, const Perplexity& b) {
  require(a.definition == b.definition && a.weight == b.weight, "a paired ratio needs the same windows");
  std::vector<double> d(a.nll.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = a.nll[i] - b.nll[i];
  const RatioOfSums m = ratio_of_sums(d, a.weight);
  return {100 * std::expm1(m.value), 100 * std::exp(m.value) * m.se};
}

namespace {

// The layers that have other bits than the rest, with 32 for those that stayed float.
json layer_bits(Model& model, int bits) {
  json exceptions = json::object();
  for (int i = 0; i < model.depth(); ++i)
    for (const Layer* layer : model.layers(i)) {
      if (!layer->is_linear()) continue;
      const int own = layer->packed() ? layer->packed()->bits() : 32;
      if (own != bits) exceptions[layer->name] = own;
    }
  return exceptions;
}

}  // namespace

std::string describe_weights(Model& model, const LanguageRun& run) {
  const GptqOptions& w = run.weights;
  if (run.method == "fp") return run.method;
  std::string text = run.method + format(" %d bit", w.bits);
  if (w.groupsize > 0) text += format(" g%d", w.groupsize);
  if (w.sym) text += " sym";
  if (w.half) text += " f16 scales";
  if (w.mse > 0) text += format(" mse %g", w.mse);
  if (run.method == "gptq" && w.act_order) text += " act-order";
  if (run.method == "gptq" && w.static_groups) text += " static-groups";
  std::map<int, int> layers;
  for (const json& bits : layer_bits(model, w.bits)) ++layers[bits.get<int>()];
  for (const auto& [bits, count] : layers)
    text += format(", %d layer%s ", count, count > 1 ? "s" : "") + (bits < 32 ? format("of %d bit", bits) : "in float");
  return text;
}

void set_stored(Model& model, LanguageRun& run) {
  require_usage(run.method == "fp" && run.bc == "none",
                "%s is quantized already: it is evaluated as it is stored, without --method and --bc",
                model.info().name);
  run.method = "stored";
  std::map<int, int64_t> layers;
  for (const Layer* layer : model.all_layers()) {
    if (!layer->packed()) continue;
    const Affine grid = layer->packed()->grid();
    ++layers[grid.bits];
    run.weights.groupsize = grid.scale.dim(1) == 1 ? -1 : grid.group;
    run.weights.sym = is_symmetric(grid);
    run.weights.half = scale_bits(grid) == 16;
  }
  const auto fewer = [](const auto& a, const auto& b) { return a.second < b.second; };
  run.weights.bits = std::max_element(layers.begin(), layers.end(), fewer)->first;
}

json recipe(Model& model, const LanguageRun& run) {
  const bool quantized = run.method != "fp";
  const bool calibrated = run.method == "gptq" || run.bc != "none";
  const auto solved = [&](const json& option) { return run.method == "gptq" ? option : json(nullptr); };
  return {{"method", run.method},
          {"wbits", quantized ? run.weights.bits : 32},
          {"abits", 32},
          {"prefill_bits", quantized ? json(run.prefill_bits) : json(nullptr)},
          {"groupsize", quantized ? json(run.weights.groupsize) : json(nullptr)},
          {"sym", quantized ? json(run.weights.sym) : json(nullptr)},
          {"scales", quantized ? json(run.weights.half ? "f16" : "f32") : json(nullptr)},
          {"mse", quantized ? json(run.weights.mse) : json(nullptr)},
          {"layer_bits", quantized ? layer_bits(model, run.weights.bits) : json(nullptr)},
          {"act_order", solved(run.weights.act_order)},
          {"static_groups", solved(run.weights.static_groups)},
          {"percdamp", solved(run.weights.percdamp)},
          {"true_sequential", solved(run.true_sequential)},
          {"hessian", solved(run.hessian)},
          {"target", solved(run.target)},
          {"refine", solved(run.refine)},
          {"bc", run.bc},
          {"bc_sites", run.bc == "none" ? json(nullptr) : json(run.bc_sites)},
          {"bc_stream", run.bc == "none" ? json(nullptr) : json(run.bc_stream)},
          {"nsamples", calibrated ? json(run.nsamples) : json(nullptr)},
          {"seed", calibrated ? json(run.seed) : json(nullptr)}};
}

json language_record(Model& model, const LanguageRun& run, const EvaluationText& text,
                     const std::vector<Perplexity>& results, const std::vector<Perplexity>& floats,
                     int64_t bc_parameters, double seconds) {
  const ModelInfo& info = model.info();
  json definitions = json::object();
  for (size_t i = 0; i < results.size(); ++i) {
    const Perplexity& p = results[i];
    json& entry = definitions[p.definition] = {{"perplexity", p.perplexity}, {"perplexity_se", number(p.se)}};
    if (floats.empty()) continue;
    const Ratio change = paired_ratio(p, floats[i]);
    entry.update({{"float", floats[i].perplexity},
                  {"float_se", number(floats[i].se)},
                  {"change_percent", change.percent},
                  {"change_percent_se", number(change.se)}});
  }
  json record = recipe(model, run);
  record.update({{"model", info.name},
                 {"tag", info.tag},
                 {"parameters", info.parameters},
                 {"bc_parameters", bc_parameters},
                 {"bc_bytes", 4 * added_values(model)},
                 {"bc_share", static_cast<double>(added_values(model)) / static_cast<double>(info.parameters)},
                 {"bits_per_weight", bits_per_weight(model)},
                 {"text", text.source.path},
                 {"text_definition", name_of(text.source.definition)},
                 {"text_tokens", text.facts.tokens},
                 {"text_token_hash", text.facts.hash},
                 {"bos", text.facts.bos < 0 ? json(nullptr) : json(text.facts.bos)},
                 {"perplexity", results.at(0).perplexity},
                 {"perplexity_se", number(results[0].se)},
                 {"perplexity_definition", results[0].definition},
                 {"perplexities", definitions},
                 {"tokens", text.windows.count * text.windows.length},
                 {"windows", text.windows.count},
                 {"seqlen", text.windows.length},
                 {"seconds", seconds}});
  return record;
}

}  // namespace bcq
