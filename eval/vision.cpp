#include "eval/vision.h"

#include <algorithm>
#include <cmath>

#include "data/image/cache.h"
#include "data/image/jpeg.h"
#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/nn/int8_layer.h"
#include "models/timm.h"

namespace bcq {

std::vector<Batch> VisionTask::calibration(const Recipe& r) {
  const auto indices =
      calibration_indices(static_cast<int64_t>(calib.items.size()), r.samples, static_cast<uint32_t>(r.seed));
  std::vector<Batch> all(1);
  all[0].pixels = load_pixels(calib, indices, model.info().image);
  return all;
}

const std::vector<Batch>& VisionTask::compensation(const Recipe& r) {
  if (!compensation_.empty()) return compensation_;
  const auto indices =
      calibration_indices(static_cast<int64_t>(calib.items.size()), r.bc_images, static_cast<uint32_t>(r.bc_seed));
  for (int64_t i = 0; i < r.bc_images; i += r.bc_batch) {
    const auto begin = indices.begin() + i, end = indices.begin() + std::min(r.bc_images, i + r.bc_batch);
    compensation_.emplace_back();
    compensation_.back().pixels = load_pixels(calib, {begin, end}, model.info().image);
  }
  return compensation_;
}

Tensor VisionTask::logits(Precision precision, const Tensor& pixels) const {
  Batch batch;
  batch.pixels = pixels;
  return model.forward({precision}, batch);
}

Accuracy VisionTask::evaluate(Precision precision, const Progress& progress) const {
  const int64_t all = static_cast<int64_t>(data.items.size());
  const int64_t n = limit > 0 ? std::min(limit, all) : all;
  Accuracy result;
  int64_t top5 = 0;
  uint64_t hash = 0;
  for (int64_t begin = 0; begin < n; begin += batch_size) {
    progress("evaluation", static_cast<double>(begin), static_cast<double>(n));
    std::vector<int64_t> indices;
    for (int64_t i = begin; i < std::min(n, begin + batch_size); ++i) indices.push_back(i * all / n);
    std::map<int64_t, std::string> unreadable;
    const Tensor pixels = load_pixels(data, indices, model.info().image, &unreadable);
    for (const auto& entry : unreadable) result.unreadable.push_back(entry.second);
    const Tensor outputs = logits(precision, pixels);
    for (size_t i = 0; i < indices.size(); ++i) {
      if (unreadable.count(static_cast<int64_t>(i))) continue;
      const auto& item = data.items[static_cast<size_t>(indices[i])];
      const float* z = outputs.data + static_cast<int64_t>(i) * outputs.dim(1);
      require(std::all_of(z, z + outputs.dim(1), [](float v) { return std::isfinite(v); }),
              "%s: the model's output is not finite", item.path);
      hash = checksum({reinterpret_cast<const char*>(z), static_cast<size_t>(4 * outputs.dim(1))}, hash);
      // Rank of the right class; of equal outputs the lower index comes first, as argmax has it.
      const float right = z[item.label];
      const int64_t rank = std::count_if(z, z + outputs.dim(1), [&](float v) { return v > right; }) +
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

Measured VisionTask::measure(const Recipe& recipe, size_t, json& record, const Progress& progress) {
  accuracy = evaluate(precision_of(recipe), progress);
  record.update({{"top1", accuracy.top1},
                 {"top1_se", accuracy.top1_se},
                 {"top5", accuracy.top5},
                 {"outputs_hash", accuracy.outputs_hash},
                 {"images", accuracy.hit.size()},
                 {"unreadable", accuracy.unreadable},
                 {"jpeg_decoder", jpeg_decoder()}});
  Measured measured{{}, accuracy.top1, accuracy.top1_se};
  for (const uint8_t hit : accuracy.hit) measured.units.push_back(100.0 * hit);
  return measured;
}

Difference paired_difference(const Measured& a, const Measured& b) {
  require(a.units.size() == b.units.size() && !a.units.empty(), "a paired difference needs the same images");
  const double n = static_cast<double>(a.units.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < a.units.size(); ++i) {
    const double d = a.units[i] - b.units[i];
    sum += d;
    squares += d * d;
  }
  const double mean = sum / n;
  return {mean, std::sqrt(std::max(0.0, squares / n - mean * mean) / n)};
}

ModelClasses classes_of(const ModelInfo& info) { return {info.outputs, info.labels, info.timm}; }

void warn_of_tag(const Model& model, const Warn& warn) {
  const ModelInfo& info = model.info();
  const std::string paper = tag_of_paper(info.name);
  if (!paper.empty() && paper != info.tag && info.outputs == 1000)  // of other classes is another model
    warn(format("%s has the tag \"%s\"; the paper's row is of the checkpoint \"%s\"", info.name, info.tag, paper));
}

json prepare_runtime(Model& model, const Recipe& recipe) {
  if (!recipe.integer) return json::object();
  const std::vector<std::string> simulated = model.prepare_int8();
  const std::vector<Layer*> layers = model.all_layers();
  require_usage(simulated.size() < layers.size(),
                "--runtime integer: no product has an integer form at --wbits %d --abits %d (both must be 8 or less)",
                recipe.ptq.wbits, recipe.ptq.abits);
  int64_t bytes = 0;
  for (const Layer* layer : layers)
    if (layer->int8() && layer->int8()->weight) bytes += layer->int8()->weight->bytes();
  return {{"integer_products", layers.size() - simulated.size()},
          {"simulated_products", simulated},
          {"integer_weight_bytes", bytes}};
}

std::string cost_text(const CalibrationSeconds& cost) {
  const json all = to_json(cost);
  std::string text = format("%.1f s: network and gradients %.1f s", cost.total, all["network_seconds"].get<double>());
  for (const auto& [op, of] : all["ops"].items()) text += format(", %s %.1f s", op, of["seconds"].get<double>());
  return text;
}

json to_json(const CalibrationSeconds& cost) {
  json ops = json::object();
  double searched = 0;
  for (const auto& [layer, seconds] : cost.of_layer) {
    json& op = ops[op_name(layer->role)];
    if (op.is_null()) op = {{"sites", 0}, {"seconds", 0.0}};
    op["sites"] = op["sites"].get<int>() + 1;
    op["seconds"] = op["seconds"].get<double>() + seconds;
    searched += seconds;
  }
  return {{"seconds", cost.total}, {"network_seconds", cost.total - searched}, {"ops", ops}};
}

}  // namespace bcq
