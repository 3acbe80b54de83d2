#include "eval/vision.h"

#include <algorithm>
#include <cmath>

#include "data/jpeg.h"
#include "engine/check.h"
#include "engine/parallel.h"
#include "eval/common.h"

namespace bcq {
namespace {

constexpr int64_t kBcBatch = 16;  // images per batch in the official scripts; batches weigh equally

Precision precision_of(const VisionRun& run) { return run.method == "fp32" ? Precision::Float : Precision::Fake; }

}  // namespace

PtqOptions options_of(const VisionRun& run) {
  const bool base = run.method == "base-ptq", easy = run.method == "easyquant";
  require_usage(base || easy || run.method == "ptq4vit", "--method %s: not fp32, base-ptq, easyquant or ptq4vit",
                run.method.c_str());
  PtqOptions o = base   ? base_ptq(run.wbits, run.abits)
                 : easy ? easy_quant(run.wbits, run.abits)
                        : ptq4vit(run.wbits, run.abits);
  if (run.metric_given) o.metric = run.ptq.metric;
  o.twin_softmax_official = run.ptq.twin_softmax_official;
  o.probe = run.ptq.probe;
  o.draws = run.ptq.draws;
  o.seed = run.seed;
  return o;
}

void quantize_vision(Model& model, const ImageFolder& calib, const VisionRun& run, const Progress& progress,
                     const Warn& warn) {
  if (run.method == "fp32") return;
  const auto indices = calibration_indices(static_cast<int64_t>(calib.items.size()), run.calib_images, run.seed);
  quantize_ptq(model, load_pixels(calib, indices, model.info().image), options_of(run), progress, warn);
}

std::vector<Batch> bc_batches(const Model& model, const ImageFolder& calib, const VisionRun& run) {
  const auto indices = calibration_indices(static_cast<int64_t>(calib.items.size()), run.bc_images, run.bc_seed);
  std::vector<Batch> batches;
  for (size_t i = 0; i < indices.size(); i += kBcBatch) {
    const auto begin = indices.begin() + static_cast<int64_t>(i);
    const auto end = indices.begin() + static_cast<int64_t>(std::min(indices.size(), i + kBcBatch));
    batches.emplace_back();
    batches.back().pixels = load_pixels(calib, {begin, end}, model.info().image);
  }
  return batches;
}

int64_t compensate_vision(Model& model, const ImageFolder& calib, const VisionRun& run, const Progress& progress) {
  if (run.bc == "none") return 0;
  require_usage(run.method != "fp32", "--bc %s needs a quantized model: give --method", run.bc.c_str());
  const BcOptions options = bc_options(run.bc, run.bc_sites);
  return compensate(model, bc_batches(model, calib, run), options, progress);
}

Accuracy evaluate_vision(const Model& model, const ImageFolder& data, const VisionRun& run, const Progress& progress) {
  require_usage(run.batch_size >= 1, "--batch-size must be at least 1");
  require_usage(run.limit >= 0, "--limit must not be negative");
  const int64_t all = static_cast<int64_t>(data.items.size());
  const int64_t n = run.limit > 0 ? std::min(run.limit, all) : all;
  Accuracy result;
  int64_t top5 = 0;
  for (int64_t begin = 0; begin < n; begin += run.batch_size) {
    progress("evaluation", static_cast<double>(begin), static_cast<double>(n));
    std::vector<int64_t> indices;
    for (int64_t i = begin; i < std::min(n, begin + run.batch_size); ++i) indices.push_back(i * all / n);
    std::map<int64_t, std::string> unreadable;
    const Tensor pixels = load_pixels(data, indices, model.info().image, &unreadable);
    for (const auto& entry : unreadable) result.unreadable.push_back(entry.second);
    // Images are independent, so a core takes some of them through the whole network.
    const int64_t count = pixels.dim(0), parts = std::min<int64_t>(count, 2 * threads());
    Tensor logits = Tensor::uninitialized({count, model.info().outputs});
    parallel_for(parts, [&](int64_t part) {
      const int64_t first = count * part / parts, last = count * (part + 1) / parts;
      Batch batch;
      batch.pixels = pixels.slice(first, last);
      const Tensor some = model.forward({precision_of(run)}, batch);
      std::copy(some.data, some.data + some.size(), logits.slice(first, last).data);
    });
    for (size_t i = 0; i < indices.size(); ++i) {
      if (unreadable.count(static_cast<int64_t>(i))) continue;
      const auto& item = data.items[static_cast<size_t>(indices[i])];
      const float* z = logits.data + static_cast<int64_t>(i) * logits.dim(1);
      require(std::all_of(z, z + logits.dim(1), [](float v) { return std::isfinite(v); }),
              "%s: the model's output is not finite", item.path.c_str());
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
    throw InputError(
        format("%s: none of the images can be read; the first: %s", data.root.c_str(), result.unreadable[0].c_str()));
  const double read = static_cast<double>(result.hit.size());
  const double p = static_cast<double>(std::count(result.hit.begin(), result.hit.end(), 1)) / read;
  result.top1 = 100 * p;
  result.top1_se = 100 * std::sqrt(p * (1 - p) / read);
  result.top5 = 100 * static_cast<double>(top5) / read;
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
                 {"bc_bytes", 4 * added_values(model)},
                 {"bc_share", static_cast<double>(added_values(model)) / static_cast<double>(info.parameters)},
                 {"bc_sites", run.bc == "none" ? json(nullptr) : json(run.bc_sites)},
                 {"bits_per_weight", bits_per_weight(model)},
                 {"top1", accuracy.top1},
                 {"top1_se", accuracy.top1_se},
                 {"top5", accuracy.top5},
                 {"images", accuracy.hit.size()},
                 {"unreadable", accuracy.unreadable},
                 {"jpeg_decoder", jpeg_decoder()},
                 {"seconds", seconds}};
  if (quantized) {
    const PtqOptions o = options_of(run);
    record["calib_images"] = run.calib_images;
    record["seed"] = run.seed;
    record["metric"] = o.metric == Metric::Hessian ? "hessian" : o.metric == Metric::Cosine ? "cosine" : "l2";
    record["probe"] = o.metric != Metric::Hessian ? json(nullptr) : o.probe == Probe::Fisher ? "fisher" : "noise";
    record["softmax_twin"] = !o.twin ? json(nullptr) : o.twin_softmax_official ? "official" : "clean";
  }
  if (run.bc != "none") {
    record["bc_images"] = run.bc_images;
    record["bc_seed"] = run.bc_seed;
  }
  return record;
}

}  // namespace bcq
