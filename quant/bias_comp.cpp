#include "quant/bias_comp.h"

#include <map>

#include "engine/core/check.h"

namespace bcq {

BiasCompensation::BiasCompensation(const BcOptions& o) : options_(o) {
  require_usage(o.held_out >= 0 && o.held_out <= 0.5, "the share of held-out samples is 0 to 0.5, not %g", o.held_out);
  require_usage(o.masked_attention || !o.attention || o.stream == Stream::Float,
                "attention is measured without its mask on the float stream only, as in the official scripts");
}

void BiasCompensation::fit_output(const Point& point, const Tensor& error, PartRecord& record) {
  point.add(error);
  record.fitted += error.size();
}

CalibrationResult compensate(Model& model, const std::vector<Batch>& batches, const BcOptions& options,
                             const Progress& progress, PartStore* store, int window_bits) {
  BiasCompensation method(options);
  return calibrate(model, batches, {&method}, {"bias compensation", progress, store, window_bits});
}

int64_t added_values(Model& model) {
  int64_t values = model.block_linear_values();
  for (const Point& point : model.all_points()) {
    for (const Tensor* added : point.added)
      if (!added->empty()) values += added->size();
    if (!point.is_product()) continue;
    for (const Bias* bias : point.folds_into)
      if (bias->loaded.empty() && !bias->compensated.empty()) values += bias->compensated.size();
  }
  return values;
}

namespace {

using Tensors = std::vector<Tensor>;  // one a batch

struct Sums {
  double signal = 0, error = 0, n = 0;

  void add(const Tensor& y, const Tensor& q) {
    for (int64_t i = 0; i < y.size(); ++i) {
      const double f = y[i], d = f - q[i];
      signal += f * f;
      error += d * d;
    }
    n += static_cast<double>(y.size());
  }
};

// Values of an operand, every so many-th and the extreme ones, and what they are rounded to.
struct Sample {
  std::vector<float> values, rounded;

  void add(const Layer& layer, const Tensor& a) {
    constexpr int64_t kMost = 1024;  // of a batch
    if (layer.left_grid().is_identity()) return;
    Tensor x = a;
    if (layer.quantized->renormalized) {
      x = a.clone();
      for (int64_t r = 0; r < x.rows(); ++r) scale_to_largest(x.data + r * x.dim(-1), x.dim(-1));
    }
    const Tensor q = fake_quantize(layer.left_grid(), x);
    const auto take = [&](int64_t i) {
      values.push_back(x[i]);
      rounded.push_back(q[i]);
    };
    const auto [least, largest] = std::minmax_element(x.data, x.data + x.size());
    take(least - x.data);
    take(largest - x.data);
    const int64_t step = std::max<int64_t>(1, x.size() / kMost) | 1;  // odd: it meets all channels
    for (int64_t i = 0; i < x.size(); i += step) take(i);
  }
};

// Of layers and of the branches that end in them.
struct ErrorSums : Observer {
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (!layer.is_quantized()) return;
    layers[&layer].add(y, layer.product({Precision::Fake}, a, b));
    samples[&layer].add(layer, a);
  }
  void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch& run) override {
    if (last.is_quantized()) branches[&last].add(y, run({Precision::Fake}, x));
  }
  std::map<const Layer*, Sums> layers, branches;
  std::map<const Layer*, Sample> samples;
};

}  // namespace

std::vector<OutputError> output_errors(Model& model, const std::vector<Batch>& batches, const Progress& progress) {
  const int depth = model.depth();
  std::vector<OutputError> result;
  const auto report = [&](const std::string& name, Point::Kind kind, const Layer* layer, const Sums& s) {
    result.push_back({name, kBcSites[static_cast<size_t>(kind)].name, layer, s.signal / s.n, s.error / s.n});
  };
  Tensors x(batches.size()), entry;
  int first = 0, stages = 0;  // first block of the stage
  for (int i = -1; i <= depth && !batches.empty(); ++i) {
    progress("measuring outputs", i + 1, depth + 2);
    const Part part = model.part(i);
    if (i == depth && part.groups.empty()) break;
    ErrorSums sums;
    Tensors y;
    for (size_t j = 0; j < x.size(); ++j)
      y.push_back(model.run({Precision::Float, nullptr, &sums}, i, batches[j], x[j]));
    for (Layer* layer : part.layers())
      if (sums.layers.count(layer)) {
        const Point point = Model::point_of(*layer);
        report(point.name, point.kind, layer, sums.layers[layer]);
        result.back().operand = std::move(sums.samples[layer].values);
        result.back().rounded = std::move(sums.samples[layer].rounded);
      }
    for (const Point& branch : part.branches)
      if (sums.branches.count(branch.layer)) report(branch.name, branch.kind, nullptr, sums.branches[branch.layer]);
    // Parts [from, i] run quantized from their float input.
    const auto report_part = [&](const std::string& name, Point::Kind kind, int from, const Tensors& inputs) {
      Sums of_part;
      for (size_t j = 0; j < y.size(); ++j) {
        Tensor q = inputs[j];
        for (int k = from; k <= i; ++k) q = model.run({Precision::Fake}, k, batches[j], q);
        of_part.add(y[j], q);
      }
      report(name, kind, nullptr, of_part);
    };
    if (i == first) entry = x;
    if (!part.output.added.empty()) report_part(part.name, part.output.kind, i, x);
    if (part.ends_stage) {
      report_part(format("stage.%d", stages++), Point::Kind::Stage, first, entry);
      first = i + 1;
    }
    if (i == depth) report_part("model", Point::Kind::Model, -1, Tensors(batches.size()));
    x = y;
  }
  progress("measuring outputs", depth + 2, depth + 2);
  return result;
}

}  // namespace bcq
