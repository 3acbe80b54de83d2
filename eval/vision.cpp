#include "eval/vision.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "data/image/cache.h"
#include "data/image/jpeg.h"
#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "engine/nn/int8_layer.h"
#include "models/timm.h"

namespace bcq {

VisionTask::VisionTask(Model& m, ImageFolder d, ImageFolder c) : Task(m), data(std::move(d)), calib(std::move(c)) {
  require_input(!m.layers(m.depth()).empty(), "%s has no classifier: its outputs are features", m.info().name);
}

std::vector<Batch> VisionTask::calibration(const Recipe& r) {
  const auto indices =
      calibration_indices(static_cast<int64_t>(calib.items.size()), r.samples, static_cast<uint32_t>(r.seed));
  return {{.pixels = load_pixels(calib, indices, model.info().image)}};
}

const std::vector<Batch>& VisionTask::compensation(const Recipe& r) {
  if (!compensation_.empty()) return compensation_;
  const auto indices =
      calibration_indices(static_cast<int64_t>(calib.items.size()), r.bc_images, static_cast<uint32_t>(r.bc_seed));
  for (int64_t i = 0; i < r.bc_images; i += r.bc_batch) {
    const auto begin = indices.begin() + i, end = indices.begin() + std::min(r.bc_images, i + r.bc_batch);
    compensation_.push_back({.pixels = load_pixels(calib, {begin, end}, model.info().image)});
  }
  return compensation_;
}

Tensor VisionTask::logits(Precision precision, const Tensor& pixels) const {
  return model.forward({precision}, {.pixels = pixels});
}

namespace {

// log softmax(z)
std::vector<double> log_probabilities(const float* z, int64_t n) {
  const double max = *std::max_element(z, z + n);
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += std::exp(z[c] - max);
  std::vector<double> log_p;
  for (int64_t c = 0; c < n; ++c) log_p.push_back(z[c] - max - std::log(sum));
  return log_p;
}

}  // namespace

void PairedSums::add(const float* real, const float* quantized, int64_t n) {
  const auto log_f = log_probabilities(real, n), log_q = log_probabilities(quantized, n);
  double kl = 0;
  for (int64_t c = 0; c < n; ++c) {
    const size_t i = static_cast<size_t>(c);
    kl += std::exp(log_f[i]) * (log_f[i] - log_q[i]);
    const double f = real[c], d = f - quantized[c];
    signal_ += f * f;
    noise_ += d * d;
  }
  kl_ += kl;
  kl_squares_ += kl * kl;
  agreeing_ += std::max_element(real, real + n) - real == std::max_element(quantized, quantized + n) - quantized;
  images_ += 1;
  values_ += static_cast<double>(n);
}

Paired PairedSums::result() const {
  const double n = images_, p = agreeing_ / n, kl = kl_ / n;
  return {100 * p,
          100 * std::sqrt(p * (1 - p) / n),
          kl,
          std::sqrt(std::max(0.0, kl_squares_ / n - kl * kl) / n),
          10 * std::log10(signal_ / noise_),
          noise_ / values_};
}

json to_json(const Paired& p) {
  return {{"agreement", p.agreement},
          {"agreement_se", p.agreement_se},
          {"kl", p.kl},
          {"kl_se", p.kl_se},
          {"sqnr_db", std::isfinite(p.sqnr_db) ? json(p.sqnr_db) : json()}};
}

std::string kl_text(const json& record) {
  if (!record.contains("paired")) return "";
  const json& paired = record.at("paired");
  return format("%.4f +/- %.4f", paired.at("kl").get<double>(), paired.at("kl_se").get<double>());
}

const Tensor& VisionTask::float_logits(const std::vector<int64_t>& images, const Tensor& pixels) {
  Tensor& kept = float_logits_[images];
  if (kept.empty()) kept = logits(Precision::Float, pixels);
  return kept;
}

// Of images of the folder [B]: the logits [B, classes] of those that can be read, and of the others why not.
struct VisionTask::Outputs {
  Tensor quantized, real;  // the float network's, where they are compared
  std::vector<int64_t> images;
  std::vector<std::string> unreadable;  // "" or a message, per image

  void fields(auto visit) { visit(quantized, real, images, unreadable); }
};

VisionTask::Outputs VisionTask::outputs(Precision precision, std::vector<int64_t> images) {
  std::map<int64_t, std::string> unreadable;
  const Tensor pixels = load_pixels(data, images, model.info().image, &unreadable);
  Outputs y;
  y.unreadable.resize(images.size());
  for (const auto& [i, message] : unreadable) y.unreadable[at(i)] = message;
  if (paired) y.real = float_logits(images, pixels);
  y.quantized = paired && precision == Precision::Float ? y.real : logits(precision, pixels);
  y.images = std::move(images);
  return y;
}

Accuracy VisionTask::evaluate(Precision precision, const Progress& progress) {
  const int64_t all = static_cast<int64_t>(data.items.size());
  const int64_t n = limit > 0 ? std::min(limit, all) : all;
  Accuracy result;
  PairedSums sums;
  int64_t top5 = 0;
  uint64_t hash = 0;
  const auto make = [&](int64_t batch) {
    const int64_t begin = batch * batch_size;
    progress("evaluation", static_cast<double>(begin), static_cast<double>(n));
    std::vector<int64_t> images;
    for (int64_t i = begin; i < std::min(n, begin + batch_size); ++i) images.push_back(i * all / n);
    return outputs(precision, std::move(images));
  };
  in_order((n + batch_size - 1) / batch_size, make, [&](int64_t, const Outputs& y) {
    const int64_t classes = y.quantized.dim(1);
    for (size_t i = 0; i < y.images.size(); ++i) {
      if (!y.unreadable[i].empty()) {
        result.unreadable.push_back(y.unreadable[i]);
        continue;
      }
      const auto& item = data.items[at(y.images[i])];
      const float* z = y.quantized.data + static_cast<int64_t>(i) * classes;
      require(std::all_of(z, z + classes, [](float v) { return std::isfinite(v); }),
              "%s: the model's output is not finite", item.path);
      if (paired) sums.add(y.real.data + static_cast<int64_t>(i) * classes, z, classes);
      hash = checksum({reinterpret_cast<const char*>(z), static_cast<size_t>(4 * classes)}, hash);
      // Place of the right class; of equal outputs the lower index comes first, as argmax has it.
      const float right = z[item.label];
      const int64_t place =
          std::count_if(z, z + classes, [&](float v) { return v > right; }) + std::count(z, z + item.label, right);
      result.hit.push_back(place == 0);
      top5 += place < 5;
    }
  });
  progress("evaluation", static_cast<double>(n), static_cast<double>(n));
  if (result.hit.empty())
    throw InputError(format("%s: none of the images can be read; the first: %s", data.root, result.unreadable[0]));
  const double read = static_cast<double>(result.hit.size());
  const double p = static_cast<double>(std::count(result.hit.begin(), result.hit.end(), 1)) / read;
  result.top1 = 100 * p;
  result.top1_se = 100 * std::sqrt(p * (1 - p) / read);
  result.top5 = 100 * static_cast<double>(top5) / read;
  result.outputs_hash = format("%016x", hash);
  if (paired && precision != Precision::Float) result.paired = sums.result();
  return result;
}

void VisionTask::before_quantization(const Progress& progress) {
  if (!paired || !float_logits_.empty()) return;
  try {
    evaluate(Precision::Float, progress);
  } catch (...) {
    float_logits_.clear();  // some batches of them would pass for all
    throw;
  }
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
  if (accuracy.paired) record["paired"] = to_json(*accuracy.paired);
  Measured measured{{}, accuracy.top1, accuracy.top1_se};
  for (const uint8_t hit : accuracy.hit) measured.units.push_back(100.0 * hit);
  return measured;
}

Estimate paired_difference(const Measured& a, const Measured& b) {
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

// ---- The search for outputs to compensate ---------------------------------------------------------------------------

namespace {

// Images of the folder in the order of the BC draw, less those that calibrate or compensate.
std::vector<int64_t> held_out(const ImageFolder& calib, const Recipe& r, int64_t images) {
  const int64_t all = static_cast<int64_t>(calib.items.size());
  const auto calibrating = calibration_indices(all, r.samples, static_cast<uint32_t>(r.seed));
  const auto compensating = calibration_indices(all, r.bc_images, static_cast<uint32_t>(r.bc_seed));
  std::set<int64_t> seen(calibrating.begin(), calibrating.end());
  seen.insert(compensating.begin(), compensating.end());
  std::vector<int64_t> left = calibration_indices(all, all, static_cast<uint32_t>(r.bc_seed));
  std::erase_if(left, [&](int64_t i) { return seen.count(i) > 0; });
  require_usage(!left.empty(), "--bc-search needs images in --calib-data besides the %d that calibrate or compensate",
                seen.size());
  left.resize(std::min(left.size(), static_cast<size_t>(images)));
  return left;
}

bool has_stages(Model& model) {
  for (int i = 0; i < model.depth(); ++i)
    if (model.kind(i) == Part::Kind::Merge) return true;
  return false;
}

}  // namespace

std::vector<BcRanking> search_compensations(VisionTask& task, const Recipe& recipe, int64_t images,
                                            const Progress& progress) {
  Model& model = task.model;
  const Tensor pixels = load_pixels(task.calib, held_out(task.calib, recipe, images), model.info().image);
  const auto logits = [&](Precision precision) {
    Tensor all = Tensor::uninitialized({pixels.dim(0), model.info().outputs});
    const auto begin = [&](int64_t batch) { return std::min(pixels.dim(0), batch * task.batch_size); };
    in_order((pixels.dim(0) + task.batch_size - 1) / task.batch_size,
             [&](int64_t b) { return task.logits(precision, pixels.slice(begin(b), begin(b + 1))); },
             [&](int64_t b, const Tensor& some) {
               std::copy_n(some.data, some.size(), all.slice(begin(b), all.dim(0)).data);
             });
    return all;
  };
  const Tensor exact = logits(Precision::Float);

  const std::string switches[] = {"conv,linear,matmul", "attention", "mlp",
                                  has_stages(model) ? "block,downsample,stage" : "block", "model"};
  constexpr int kChoices = 1 << std::size(switches);
  std::vector<BcRanking> ranking;
  for (int choice = 0; choice < kChoices; ++choice) {
    BcRanking candidate;
    for (size_t i = 0; i < std::size(switches); ++i)
      if (choice >> i & 1) candidate.sites += (candidate.sites.empty() ? "" : ",") + switches[i];
    Recipe r = recipe;
    r.bc_sites = candidate.sites;
    if (choice == 0) r.bc = BcForm::None;
    Outcome outcome;
    compensate(task, r, outcome, [&](const std::string&, double done, double total) {
      progress("searching outputs to compensate", choice + 0.8 * done / total, kChoices);
    });
    candidate.values = outcome.fitted;
    const Tensor quantized = logits(Precision::Fake);
    PairedSums sums;
    for (int64_t b = 0; b < exact.dim(0); ++b)
      sums.add(exact.slice(b, b + 1).data, quantized.slice(b, b + 1).data, exact.dim(1));
    candidate.paired = sums.result();
    progress("searching outputs to compensate", choice + 1, kChoices);
    ranking.push_back(candidate);
  }
  model.clear_compensation();
  std::stable_sort(ranking.begin(), ranking.end(),
                   [](const BcRanking& a, const BcRanking& b) { return a.paired.kl < b.paired.kl; });
  return ranking;
}

json to_json(const std::vector<BcRanking>& ranking) {
  json rows = json::array();
  for (const BcRanking& r : ranking)
    rows.push_back({{"sites", r.sites},
                    {"values", r.values},
                    {"kl", r.paired.kl},
                    {"kl_se", r.paired.kl_se},
                    {"logit_mse", r.paired.logit_mse}});
  return rows;
}

// ---- What the programs say of a model -------------------------------------------------------------------------------

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

void set_stored_vision(Model& model, Recipe& r) {
  const bool stored = set_stored_method(model, r);
  require_usage(quantizes(r) || !r.integer, "--runtime integer needs a --method that quantizes");
  if (!stored) return;
  std::map<int, int64_t> weights, activations;  // products by bits
  for (const Layer* layer : model.all_layers()) {
    const auto bits = [](const Grid& grid) { return grid.is_identity() ? kFloatBits : grid->bits; };
    const Grid right = layer->quantized ? layer->quantized->right : Grid{};
    ++(layer->is_linear() ? weights : activations)[bits(right)];
    ++activations[bits(layer->left_grid())];
  }
  if (activations.size() > 1) activations.erase(kFloatBits);  // what a method leaves float (pixels, some products)
  r.ptq.wbits = most_common(weights);
  r.ptq.abits = most_common(activations);
  r.qwt = model.block_linear_values() > 0;
}

void check_saving_vision(const Recipe& r) {
  require_usage(r.ptq.wbits <= 8 || r.ptq.wbits == kFloatBits,
                "--save holds weights of 2 to 8 bits, or of %d, which are floats; not of %d", kFloatBits, r.ptq.wbits);
}

std::string hash_of(const ImageFolder& folder) {
  uint64_t hash = 0;
  for (const ImageFolder::Item& item : folder.items) hash = checksum(format("%s %d", item.path, item.label), hash);
  return format("%016x", hash);
}

std::string cost_text(const CalibrationSeconds& cost) {
  const json all = to_json(cost);
  std::string text = format("%.1f s: network and gradients %.1f s", cost.total, all["network_seconds"].get<double>());
  for (const auto& [op, of] : all["ops"].items()) text += format(", %s %.1f s", op, of["seconds"].get<double>());
  return text;
}

json to_json(const CalibrationSeconds& cost) {
  json ops = json::object();
  for (const auto& [layer, seconds] : cost.of_layer) {
    json& op = ops[op_name(layer->role)];
    if (op.is_null()) op = {{"sites", 0}, {"seconds", 0.0}};
    op["sites"] = op["sites"].get<int>() + 1;
    op["seconds"] = op["seconds"].get<double>() + seconds;
  }
  return {{"seconds", cost.total}, {"network_seconds", cost.total - cost.solve}, {"ops", ops}};
}

}  // namespace bcq
