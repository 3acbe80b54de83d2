// Networks and data to calibrate, and what a compensation leaves of mean errors.
#pragma once
#include <cmath>
#include <random>

#include "engine/core/check.h"
#include "quant/moments.h"
#include "quant/ptq4vit.h"
#include "quant/refine.h"
#include "quant/weight_methods.h"
#include "tests/gptq_inputs.h"
#include "tests/quantize.h"
#include "tests/support.h"

namespace bcq::test {

const std::string kOpt = "tests/fixtures/opt_tiny";
const std::string kVit = "tests/fixtures/vit_tiny", kDeit = "tests/fixtures/deit_tiny",
                  kSwin = "tests/fixtures/swin_tiny", kBloom = "tests/fixtures/bloom_tiny",
                  kLlama = "tests/fixtures/llama_tiny";
const Context kFake{Precision::Fake, nullptr, nullptr};
const Warn kIgnore = [](const std::string&) {};

inline std::vector<Batch> windows(int count, int64_t length, uint32_t seed = 1) {
  std::mt19937 bits(seed);
  std::vector<Batch> all(static_cast<size_t>(count));
  for (Batch& batch : all) {
    batch.windows = 1;
    batch.length = length;
    for (int64_t i = 0; i < length; ++i) batch.ids.push_back(static_cast<int32_t>(bits() % 53));
  }
  return all;
}

inline std::vector<Batch> images(int batches, int64_t size, uint32_t seed = 1) {
  std::vector<Batch> all(static_cast<size_t>(batches));
  for (Batch& batch : all) batch.pixels = random({size, 3, 12, 12}, seed++, 2);
  return all;
}

inline std::vector<Batch> data_of(const Model& model) {
  return model.info().family == Family::Vision ? images(3, 12) : windows(5, 9);
}

inline BcOptions bc(BcShape shape, bool block, Stream stream = Stream::Float) {
  BcOptions o;
  o.shape = shape;
  o.block = block;
  o.stream = stream;
  return o;
}

// Mean outputs of linear layers and of blocks over the batches, in double.
using Means = std::map<std::string, std::vector<double>>;
struct MeanOutputs : Observer {
  explicit MeanOutputs(BcShape s) : shape(s) {}
  void product(const Layer& s, const Tensor&, const Tensor&, const Tensor& y) override {
    if (s.is_linear()) add("layer " + s.name, y);
  }
  void add(const std::string& name, const Tensor& y) {
    std::vector<double>& mean = means[name];
    mean.resize(index(shape == BcShape::Position ? y.size() / y.dim(0) : y.dim(-1)));
    const double times = static_cast<double>(y.size()) / static_cast<double>(mean.size());
    for (int64_t i = 0; i < y.size(); ++i) mean[index(i) % mean.size()] += y[i] / times / batches;
  }
  BcShape shape;
  double batches = 0;
  Means means;
};

inline Means mean_outputs(Model& model, Precision precision, const std::vector<Batch>& data, BcShape shape) {
  MeanOutputs observer(shape);
  observer.batches = static_cast<double>(data.size());
  for (const Batch& batch : data) {
    Tensor x;
    for (int i = -1; i <= model.depth(); ++i) {
      x = model.run({precision, nullptr, &observer}, i, batch, x);
      if (model.kind(i) == Part::Kind::Block) observer.add("output " + std::to_string(i), x);
    }
  }
  return observer.means;
}

// The largest difference of means between the float network and the quantized one, each run on its own: of blocks'
// outputs, or of linear layers.
inline double mean_error(Model& model, const std::vector<Batch>& data, BcShape shape, bool of_blocks) {
  const Means want = mean_outputs(model, Precision::Float, data, shape);
  const Means got = mean_outputs(model, Precision::Fake, data, shape);
  double worst = 0;
  for (const auto& [name, mean] : want)
    if (contains(name, "output") == of_blocks) worst = std::max(worst, relative_error(got.at(name), mean));
  return worst;
}

inline std::unique_ptr<Model> rounded(int bits, const std::string& fixture = kOpt) {
  auto model = load_model(fixture);
  quantize_rtn(*model, {bits, -1});
  return model;
}

// Everything a calibration leaves in a model, as numbers.
inline Tensor left_behind(Model& model) {
  std::vector<float> all;
  const auto append = [&](const Tensor& t) {
    if (!t.empty()) all.insert(all.end(), t.data, t.data + t.size());
  };
  for (const Layer* layer : model.all_layers())
    if (layer->quantized && !layer->quantized->weight.empty()) append(layer->quantized->weight.values());
  for (const Point& point : model.all_points()) {
    for (const Bias* bias : point.folds_into) append(bias->compensated);
    for (const Tensor* added : point.added) append(*added);
  }
  return Tensor({static_cast<int64_t>(all.size())}, all);
}

inline GptqMethodOptions joint() {
  GptqMethodOptions o{options(3, 8)};
  o.sequential = o.centred = true;
  o.target = Target::Float;
  o.refine = 5;
  return o;
}
const BcOptions kJointBc = bc(BcShape::Channel, true);

// What compensate() does on the float stream, by its definition.
inline int64_t compensate_directly(Model& model, const std::vector<Batch>& data, const BcOptions& o) {
  struct Errors : Observer {
    explicit Errors(BcShape s) : shape(s) {}
    void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
      if (!layer.is_quantized()) return;
      means.try_emplace(&layer, RunningMean(shape)).first->second.update(y, layer.product(kFake, a, b));
    }
    BcShape shape;
    std::map<const Layer*, RunningMean> means;
  };
  int64_t fitted = 0;
  const auto fit = [&](const Point& point, const RunningMean& error) {
    point.add(error.mean());
    fitted += error.mean().size();
  };
  std::vector<Tensor> x(data.size()), y(data.size());
  for (int i = -1; i <= model.depth(); ++i) {
    const Part part = model.part(i);
    Errors errors(o.shape);
    for (size_t j = 0; j < data.size(); ++j) y[j] = model.run({Precision::Float, nullptr, &errors}, i, data[j], x[j]);
    for (Layer* layer : part.layers())
      if (layer->is_quantized()) fit(Model::point_of(*layer), errors.means.at(layer));
    RunningMean error(o.shape);
    if (o.block && part.kind == Part::Kind::Block) {
      for (size_t j = 0; j < data.size(); ++j) error.update(y[j], model.run(kFake, i, data[j], x[j]));
      fit(part.output, error);
    }
    x = y;
  }
  return fitted;
}

// A vision model with PTQ4ViT's grids, twin ones included, and weights of 8 bits. They are searched for once.
inline std::unique_ptr<Model> with_activation_grids(const std::string& fixture) {
  static std::map<std::string, std::vector<std::shared_ptr<const Quantized>>> found;
  auto model = load_model(fixture);
  std::vector<std::shared_ptr<const Quantized>>& grids = found[fixture];
  const std::vector<Layer*> layers = model->all_layers();
  if (grids.empty()) {
    PtqOptions o{8, 5};
    o.metric = Metric::Cosine;
    o.eq_n = 8;
    o.rounds = 1;
    quantize_ptq(*model, images(1, 4)[0].pixels, o, kSilent, kIgnore);
    for (const Layer* layer : layers) grids.push_back(layer->quantized);
  }
  for (size_t l = 0; l < layers.size(); ++l) layers[l]->quantized = grids[l];
  return model;
}

}  // namespace bcq::test
