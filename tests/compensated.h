// Quantized models to compensate, and what their errors are measured by.
#pragma once
#include <cmath>
#include <map>

#include "engine/grid/uniform.h"
#include "engine/nn/ops.h"
#include "quant/bias_comp.h"
#include "tests/support.h"

namespace bcq::test {

const std::string kVit = "tests/fixtures/vit_tiny", kOpt = "tests/fixtures/opt_tiny";
const Context kFloat{Precision::Float, nullptr, nullptr}, kFake{Precision::Fake, nullptr, nullptr};
const Progress kSilent = [](const std::string&, double, double) {};

inline std::vector<Batch> images(int batches, int64_t size, uint32_t seed = 1) {
  std::vector<Batch> all(static_cast<size_t>(batches));
  for (Batch& batch : all) batch.pixels = random({size, 3, 12, 12}, seed++, 2);
  return all;
}

inline std::vector<Batch> windows(int batches, int64_t size, int64_t length, uint32_t seed = 1) {
  std::mt19937 bits(seed);
  std::vector<Batch> all(static_cast<size_t>(batches));
  for (Batch& batch : all) {
    batch.windows = size;
    batch.length = length;
    for (int64_t i = 0; i < size * length; ++i) batch.ids.push_back(static_cast<int32_t>(bits() % 53));
  }
  return all;
}

// Uniform grids over the range each operand has on one batch, except the input of the patch embedding.
struct Ranges : Observer {
  explicit Ranges(int n) : bits(n) {}
  void product(const Layer& s, const Tensor& a, const Tensor& b, const Tensor&) override {
    Quantized q;
    if (s.role != Role::Patch) q.left = grid(a, s.is_linear() ? 1 : a.dim(1));
    const Tensor right = s.is_linear() ? s.weight.values() : b;
    q.right = grid(right, s.is_linear() ? 1 : b.dim(1));
    if (s.is_linear()) q.weight = fake_quantize(q.right, right);
    const_cast<Layer&>(s).quantize(std::move(q));
  }
  Grid grid(const Tensor& x, int64_t heads) const {
    const int64_t size = x.size() / x.dim(0) / heads;
    std::vector<float> delta(static_cast<size_t>(heads));
    for (int64_t i = 0; i < x.size(); ++i) {
      float& d = delta[heads == 1 ? 0 : static_cast<size_t>(i / size % heads)];
      d = std::max(d, std::abs(x[i]) / (std::ldexp(1.f, bits - 1) - 0.5f));
    }
    return Uniform{bits, heads == 1 ? 0 : 1, delta};
  }
  int bits;
};

inline std::unique_ptr<Model> quantized(const std::string& fixture, const std::vector<Batch>& data, int bits = 4) {
  auto model = load_model(fixture);
  Ranges ranges(bits);
  model->forward({Precision::Float, nullptr, &ranges}, data[0]);
  return model;
}
inline std::unique_ptr<Model> quantized_vit(int bits, const std::vector<Batch>& data) {
  return quantized(kVit, data, bits);
}

// Weights only, as for language models.
inline std::unique_ptr<Model> quantized_opt(int bits) {
  auto model = load_model(kOpt);
  const Ranges ranges(bits);
  for (Layer* site : model->all_layers()) {
    const Grid grid = ranges.grid(site->weight.values(), 1);
    site->quantize({{}, grid, fake_quantize(grid, site->weight.values()), nullptr, nullptr});
  }
  return model;
}

inline BcOptions options(BcShape shape, bool block = false) {
  BcOptions o;
  o.shape = shape;
  o.block = block;
  return o;
}

// Error of every site on its float inputs: its mean over the samples of all batches, and squared.
struct SiteError : Observer {
  explicit SiteError(BcShape s) : shape(s) {}
  void product(const Layer& s, const Tensor& a, const Tensor& b, const Tensor& y) override {
    const Tensor q = s.product({Precision::Fake}, a, b);
    means.try_emplace(s.name, RunningMean(shape)).first->second.update(y, q);
    for (int64_t i = 0; i < y.size(); ++i) squared[s.name] += std::pow(static_cast<double>(y[i]) - q[i], 2);
    count[s.name] += y.size();
    size[s.name] = std::max(size[s.name], max_abs(doubles(y)));
  }
  void run(const Model& model, const std::vector<Batch>& data) {
    for (const Batch& batch : data) model.forward({Precision::Float, nullptr, this}, batch);
  }
  BcShape shape;
  std::map<std::string, RunningMean> means;
  std::map<std::string, double> squared, size;
  std::map<std::string, int64_t> count;
};

// The compensation a site carries, however it is attached.
inline Tensor bias_of(const Layer& site) {
  if (!site.added.empty()) return site.added;
  return site.bias.compensated.empty() ? Tensor{}
                                       : add(nullptr, site.bias.compensated, scale(nullptr, site.bias.loaded, -1));
}

// What is added to the outputs of blocks, of those that have something that cannot be folded.
inline std::vector<Tensor> added_to_blocks(Model& model) {
  std::vector<Tensor> all;
  for (const Point& point : model.all_points())
    for (const Tensor* added : point.added)
      if (point.kind == Point::Kind::Block && !added->empty()) all.push_back(*added);
  return all;
}

inline double mean_square(const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < b.size(); ++i) sum += static_cast<double>(b[i]) * b[i];
  return sum / static_cast<double>(b.size());
}

}  // namespace bcq::test
