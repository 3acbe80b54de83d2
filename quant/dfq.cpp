#include "quant/dfq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "engine/nn/ops.h"

namespace bcq {
namespace {

// Largest less least of each row, or of each column.
std::vector<float> ranges(const Tensor& w, bool of_rows) {
  const auto n = static_cast<size_t>(w.dim(of_rows ? 0 : 1));
  std::vector<float> least(n, std::numeric_limits<float>::infinity()), largest(n, -least[0]);
  for (int64_t i = 0; i < w.size(); ++i) {
    const auto at = static_cast<size_t>(of_rows ? i / w.dim(1) : i % w.dim(1));
    least[at] = std::min(least[at], w[i]);
    largest[at] = std::max(largest[at], w[i]);
  }
  for (size_t i = 0; i < n; ++i) largest[i] -= least[i];
  return largest;
}

Tensor rows_of(const FoldSource& source) {
  const Tensor w = source.layer->weight.values();
  return source.rows.empty() ? w : take(w, 0, source.rows);
}

// What a group is fed, by the float network's parameters; empty where they do not tell.
std::vector<double> mean_input(const Part& part, const LayerGroup& group) {
  const FoldSource& source = group.source;
  std::vector<double> mean;
  if (source.norm && !source.norm->centred) return {};
  if (source.norm) {
    const Tensor& shift = source.norm->bias.loaded;
    mean.assign(shift.data, shift.data + shift.size());
    return mean;
  }
  if (!source.layer) return {};
  const LayerGroup& before = part.group_of(*source.layer);
  if (!before.source.norm || !before.source.norm->centred) return {};
  const Tensor w = rows_of(source), &bias = source.layer->bias.loaded;
  const Tensor &beta = before.source.norm->bias.loaded, &gamma = before.source.norm->weight;
  for (int64_t i = 0; i < w.dim(0); ++i) {
    double m = bias.empty() ? 0 : bias[source.rows.empty() ? i : source.rows[at(i)]], variance = 0;
    for (int64_t c = 0; c < w.dim(1); ++c) {
      const double x = w[i * w.dim(1) + c];
      m += x * beta[c];
      variance += x * x * gamma[c] * gamma[c];
    }
    const bool is_relu = source.layer->role == Role::Fc1;  // of all activations only it lets scales through
    mean.push_back(is_relu ? relu_mean(m, std::sqrt(variance)) : m);
  }
  return mean;
}

}  // namespace

std::vector<float> equalizing_scales(const Tensor& w1, const Tensor& w2) {
  const std::vector<float> r1 = ranges(w1, true), r2 = ranges(w2, false);
  std::vector<float> scales;
  for (size_t i = 0; i < r1.size(); ++i)
    scales.push_back(r1[i] > 0 && r2[i] > 0 ? std::clamp(std::sqrt(r1[i] / r2[i]), 1e-8f, 1e8f) : 1.f);
  return scales;
}

double relu_mean(double mean, double deviation) {
  if (deviation == 0) return std::max(0., mean);
  const double t = mean / deviation, density = std::exp(-t * t / 2) / std::sqrt(2 * std::numbers::pi);
  return deviation * density + mean * 0.5 * std::erfc(-t / std::numbers::sqrt2);
}

void Equalization::begin(Model& model) {
  Method::begin(model);
  for (int i = 0; i < model.depth(); ++i)
    for (const LayerGroup& group : model.part(i).groups) {
      if (!group.source.layer || !group.layers[0]->is_linear()) continue;
      const std::vector<float> scales = equalizing_scales(rows_of(group.source), group.layers[0]->weight.values());
      model.fold(group, scales, std::vector<float>(scales.size(), 0.f));
    }
}

int64_t correct_biases(Model& model) {
  int64_t values = 0;
  for (int i = -1; i <= model.depth(); ++i) {
    const Part part = model.part(i);
    for (const LayerGroup& group : part.groups) {
      const std::vector<double> mean = mean_input(part, group);
      for (Layer* layer : group.layers) {
        if (mean.empty() || !layer->is_linear() || !layer->is_quantized()) continue;
        const Tensor w = layer->weight.values(), q = layer->weight_in(Precision::Fake).values();
        Tensor b({w.dim(0)});
        for (int64_t r = 0; r < w.dim(0); ++r) {
          double sum = 0;
          for (int64_t c = 0; c < w.dim(1); ++c)
            sum += (static_cast<double>(w[r * w.dim(1) + c]) - q[r * w.dim(1) + c]) * mean[at(c)];
          b[r] = static_cast<float>(sum);
        }
        Model::point_of(*layer).add(b);
        values += b.size();
      }
    }
  }
  return values;
}

}  // namespace bcq
