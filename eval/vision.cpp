#include "eval/vision.h"

#include <algorithm>
#include <cmath>

#include "data/image/cache.h"
#include "data/image/jpeg.h"
#include "engine/core/check.h"
#include "engine/nn/int8_layer.h"
#include "eval/common.h"
#include "models/timm.h"

namespace bcq {
namespace {

Precision precision_of(const VisionRun& run) {
  return run.method == "fp32" ? Precision::Float : run.runtime == "integer" ? Precision::Integer : Precision::Fake;
}

}  // namespace

void add_calibration_options(CLI::App& app, VisionRun& r) {
  const char* group = "Quantization";
  app.add_option("--calib-images,--nsamples", r.calib_images, "Images to calibrate on")
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--seed", r.seed, "Seed of their draw (NumPy's) and of the probe")
      ->capture_default_str()
      ->group(group);
  add_ptq_options(app, r.choices, group);
}

void add_bc_options(CLI::App& app, VisionRun& r) {
  const char* group = "Bias compensation";
  app.add_option("--bc-sites", r.bc_sites,
                 std::string("Outputs to compensate, of ") + kBcSites +
                     ". The paper's script also compensates model: its code reads --n-align-model the other way round")
      ->capture_default_str()
      ->group(group);
  app.add_option("--bc-images,--n-bc-samples", r.bc_images, "Images to compensate on")
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--bc-seed", r.bc_seed, "Seed of their draw")->capture_default_str()->group(group);
  app.add_option("--bc-batch", r.bc_batch,
                 "Images averaged first: batches weigh equally as in the code, so a short last one counts for more")
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  app.add_option("--bc-stream", r.bc_stream,
                 "Inputs of what is compensated: float, those of the float network as in the code; quantized, those it "
                 "gets once all before it is quantized and compensated")
      ->check(CLI::IsMember({"float", "quantized"}))
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--swin-mask", r.swin_mask,
         "Mask of a Swin's shifted windows while --bc-sites attention is measured: applied; official, not to the "
         "quantized attention, as in the code, which loses it. Evaluation always applies it")
      ->check(CLI::IsMember({"applied", "official"}))
      ->capture_default_str()
      ->group(group);
}

PtqOptions options_of(const VisionRun& run) {
  const bool base = run.method == "base-ptq", easy = run.method == "easyquant";
  require_usage(base || easy || run.method == "ptq4vit", "--method %s: not fp32, base-ptq, easyquant or ptq4vit",
                run.method);
  PtqOptions o = base   ? base_ptq(run.wbits, run.abits)
                 : easy ? easy_quant(run.wbits, run.abits)
                        : ptq4vit(run.wbits, run.abits);
  o.seed = run.seed;
  apply(run.choices, o);
  return o;
}

ModelClasses classes_of(const ModelInfo& info) { return {info.outputs, info.labels, info.timm}; }

void warn_of_tag(const Model& model, const Warn& warn) {
  const ModelInfo& info = model.info();
  const std::string paper = tag_of_paper(info.name);
  if (!paper.empty() && paper != info.tag && info.outputs == 1000)  // of other classes is another model
    warn(format("%s has the tag \"%s\"; the paper's row is of the checkpoint \"%s\"", info.name, info.tag, paper));
}

PtqCost quantize_vision(Model& model, const ImageFolder& calib, const VisionRun& run, const Progress& progress,
                        const Warn& warn) {
  if (run.method == "fp32") return {};
  const auto indices = calibration_indices(static_cast<int64_t>(calib.items.size()), run.calib_images, run.seed);
  return quantize_ptq(model, load_pixels(calib, indices, model.info().image), options_of(run), progress, warn);
}

std::vector<Batch> bc_batches(const Model& model, const ImageFolder& calib, const VisionRun& run) {
  const auto indices = calibration_indices(static_cast<int64_t>(calib.items.size()), run.bc_images, run.bc_seed);
  require_usage(run.bc_batch >= 1, "--bc-batch must be at least 1");
  std::vector<Batch> batches;
  for (int64_t i = 0; i < run.bc_images; i += run.bc_batch) {
    const auto begin = indices.begin() + i, end = indices.begin() + std::min(run.bc_images, i + run.bc_batch);
    batches.emplace_back();
    batches.back().pixels = load_pixels(calib, {begin, end}, model.info().image);
  }
  return batches;
}

BcOptions bc_options_of(const VisionRun& run, const std::string& sites) {
  BcOptions options = bc_options(run.bc, sites);
  options.stream = run.bc_stream == "quantized" ? Stream::Quantized : Stream::Float;
  options.masked_attention = run.swin_mask == "applied";
  return options;
}

int64_t compensate_vision(Model& model, const ImageFolder& calib, const VisionRun& run, const Progress& progress) {
  if (run.bc == "none") return 0;
  require_usage(run.method != "fp32", "--bc %s needs a quantized model: give --method", run.bc);
  return compensate(model, bc_batches(model, calib, run), bc_options_of(run, run.bc_sites), progress).fitted();
}

json prepare_runtime(Model& model, const VisionRun& run) {
  if (run.runtime != "integer") return json::object();
  require_usage(run.method != "fp32", "--runtime integer needs a --method that quantizes");
  const std::vector<std::string> simulated = model.prepare_int8();
  const std::vector<Layer*> sites = model.all_layers();
  require_usage(simulated.size() < sites.size(),
                "--runtime integer: no product has an integer form at --wbits %d --abits %d (both must be 8 or less)",
                run.wbits, run.abits);
  int64_t bytes = 0;
  for (const Layer* layer : sites)
    if (layer->int8() && layer->int8()->weight) bytes += layer->int8()->weight->bytes();
  return {{"integer_products", sites.size() - simulated.size()},
          {"simulated_products", simulated},
          {"integer_weight_bytes", bytes}};
}

Tensor logits_of(const Model& model, Precision precision, const Tensor& pixels) {
  Batch batch;
  batch.pixels = pixels;
  return model.forward({precision}, batch);
}

Accuracy evaluate_vision(const Model& model, const ImageFolder& data, const VisionRun& run, const Progress& progress) {
  require_usage(run.batch_size >= 1, "--batch-size must be at least 1");
  require_usage(run.limit >= 0, "--limit must not be negative");
  const int64_t all = static_cast<int64_t>(data.items.size());
  const int64_t n = run.limit > 0 ? std::min(run.limit, all) : all;
  Accuracy result;
  int64_t top5 = 0;
  uint64_t hash = 0;
  for (int64_t begin = 0; begin < n; begin += run.batch_size) {
    progress("evaluation", static_cast<double>(begin), static_cast<double>(n));
    std::vector<int64_t> indices;
    for (int64_t i = begin; i < std::min(n, begin + run.batch_size); ++i) indices.push_back(i * all / n);
    std::map<int64_t, std::string> unreadable;
    const Tensor pixels = load_pixels(data, indices, model.info().image, &unreadable);
    for (const auto& entry : unreadable) result.unreadable.push_back(entry.second);
    const Tensor logits = logits_of(model, precision_of(run), pixels);
    for (size_t i = 0; i < indices.size(); ++i) {
      if (unreadable.count(static_cast<int64_t>(i))) continue;
      const auto& item = data.items[static_cast<size_t>(indices[i])];
      const float* z = logits.data + static_cast<int64_t>(i) * logits.dim(1);
      require(std::all_of(z, z + logits.dim(1), [](float v) { return std::isfinite(v); }),
              "%s: the model's output is not finite", item.path);
      hash = checksum({reinterpret_cast<const char*>(z), static_cast<size_t>(4 * logits.dim(1))}, hash);
      // Rank of the right class; of equal outputs the lower index comes first, as argmax has it.
      const float right = z[item.label];
      const int64_t rank = std::count_if(z, z + logits.dim(1), [&](float v) { return v > right; }) +
                           std::count(z, z + item.label, right);
      result.hit.push_back(rank == 0);
      top5 += rank < 5;
    }
  }
  progress("evaluation", static_cast<double>(n), static_cast<double>(n));
  if (result.hit.empty())
    throw InputError(format("%s: none of the images can be read; the first: %s", data.root, result.unreadable[0]));
  const double read = static_cast<double>(result.hit.size());
  const double p = static_cast<double>(std::count(result.hit.begin(), result.hit.end(), 1)) / read;
  result.top1 = 100 * p;
  result.top1_se = 100 * std::sqrt(p * (1 - p) / read);
  result.top5 = 100 * static_cast<double>(top5) / read;
  result.outputs_hash = format("%016x", hash);
  return result;
}

Difference paired_difference(const Accuracy& a, const Accuracy& b) {
  require(a.hit.size() == b.hit.size() && !a.hit.empty(), "a paired difference needs the same images");
  const double n = static_cast<double>(a.hit.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < a.hit.size(); ++i) {
    const double d = static_cast<double>(a.hit[i]) - b.hit[i];
    sum += d;
    squares += d * d;
  }
  const double mean = sum / n;
  return {100 * mean, 100 * std::sqrt(std::max(0.0, squares / n - mean * mean) / n)};
}

std::string cost_text(const PtqCost& cost) {
  std::string text;
  double searched = 0;
  const json ops = to_json(cost)["ops"];
  for (const auto& [op, of] : ops.items()) {
    text += format(", %s %.1f s", op, of["seconds"].get<double>());
    searched += of["seconds"].get<double>();
  }
  return format("%.1f s: network and gradients %.1f s", cost.total, cost.total - searched) + text;
}

json to_json(const PtqCost& cost) {
  json ops = json::object();
  double searched = 0;
  for (const auto& [site, seconds] : cost.search) {
    json& op = ops[op_name(site->role)];
    if (op.is_null()) op = {{"sites", 0}, {"seconds", 0.0}};
    op["sites"] = op["sites"].get<int>() + 1;
    op["seconds"] = op["seconds"].get<double>() + seconds;
    searched += seconds;
  }
  return {{"seconds", cost.total}, {"network_seconds", cost.total - searched}, {"ops", ops}};
}

std::string bc_text(Model& model, int64_t values) {
  const int64_t added = added_values(model);
  return format("%d values, %d parameters and %d bytes added: %.2f %% of the model's", values, added, 4 * added,
                100.0 * static_cast<double>(added) / static_cast<double>(model.info().parameters));
}

json vision_record(Model& model, const VisionRun& run, const Accuracy& accuracy, int64_t bc_parameters,
                   double seconds) {
  const bool quantized = run.method != "fp32";
  const ModelInfo& info = model.info();
  json record = {{"model", info.name},
                 {"tag", info.tag},
                 {"parameters", info.parameters},
                 {"method", run.method},
                 {"wbits", quantized ? run.wbits : 32},
                 {"abits", quantized ? run.abits : 32},
                 {"groupsize", nullptr},
                 {"bc", run.bc},
                 {"bc_parameters", bc_parameters},
                 {"bc_parameters_added", added_values(model)},
                 {"bc_bytes", 4 * added_values(model)},
                 {"bc_share", static_cast<double>(added_values(model)) / static_cast<double>(info.parameters)},
                 {"bc_sites", run.bc == "none" ? json(nullptr) : json(run.bc_sites)},
                 {"bits_per_weight", bits_per_weight(model)},
                 {"top1", accuracy.top1},
                 {"top1_se", accuracy.top1_se},
                 {"top5", accuracy.top5},
                 {"outputs_hash", accuracy.outputs_hash},
                 {"images", accuracy.hit.size()},
                 {"unreadable", accuracy.unreadable},
                 {"jpeg_decoder", jpeg_decoder()},
                 {"seconds", seconds}};
  if (quantized) {
    record["calib_images"] = run.calib_images;
    record["seed"] = run.seed;
    record["runtime"] = run.runtime;
    record.update(to_json(options_of(run)));
  }
  if (run.bc != "none") {
    record["bc_images"] = run.bc_images;
    record["bc_seed"] = run.bc_seed;
    record["bc_batch"] = run.bc_batch;
    record["bc_stream"] = run.bc_stream;
    record["swin_mask"] = run.swin_mask;
  }
  return record;
}

}  // namespace bcq
