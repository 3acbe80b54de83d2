#include "quant/awq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/ops.h"
#include "quant/linalg.h"
#include "quant/passes.h"
#include "quant/refine.h"

namespace bcq {
namespace {

constexpr int kClipSteps = 20;  // down to half of the largest

size_t least_of(const std::vector<double>& errors) {  // the first
  return static_cast<size_t>(std::min_element(errors.begin(), errors.end()) - errors.begin());
}

}  // namespace

std::vector<float> awq_scales(const std::vector<double>& mean_abs, double ratio) {
  std::vector<float> s;
  for (const double a : mean_abs)
    s.push_back(std::max(std::pow(static_cast<float>(a), static_cast<float>(ratio)), 1e-4f));
  const auto [least, largest] = std::minmax_element(s.begin(), s.end());
  const float by = std::sqrt(*largest * *least);
  for (float& x : s) x /= by;
  return s;
}

// ---- Scales -------------------------------------------------------------------------------------------------------

void AwqScales::begin(Model& model) {
  require_usage(model.info().family == Family::Language, "%s is not a language model: AWQ is for those",
                model.info().name);
  Method::begin(model);
}

bool AwqScales::wants(const Layer& layer) const {
  const FoldSource& source = part_.group_of(layer).source;
  return is_to_quantize(layer, options_.bits) &&
         (source.norm || (source.layer && !(is_bloom() && options_.official_bloom)));
}

void AwqScales::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  const LayerGroup& whole = part_.group_of(*group[0]);
  const bool by_run = whole.source.norm && (is_bloom() || group[0]->role != Role::Fc1);
  const std::vector<double> mean_abs = seen.moments->mean_abs(), second = seen.moments->second();
  std::vector<std::vector<float>> scales;
  std::vector<std::vector<Tensor>> candidates;  // of each ratio the rounded weights, which by_run are all needed
  std::vector<double> errors;
  for (int i = 0; i < options_.steps; ++i) {
    scales.push_back(awq_scales(mean_abs, static_cast<double>(i) / options_.steps));
    std::vector<Tensor> rounded;
    double error = 0;
    for (const Layer* layer : group) {
      WeightGrid grid = options_.grid;
      grid.bits = bits_of(*layer, options_.bits, grid.bits);
      rounded.push_back(rounded_scaled(layer->weight.values(), scales.back(), grid));
      if (!by_run) error += quadratic_error(rounded.back(), layer->weight.values(), second);
    }
    errors.push_back(error);
    if (by_run) candidates.push_back(std::move(rounded));
  }
  if (by_run) errors = errors_at_run(group, candidates);
  const std::vector<float>& best = scales[least_of(errors)];
  model_->fold(whole, best, std::vector<float>(best.size(), 0.f));
}

// The block's output, or that of the layer `watched`.
Tensor AwqScales::inspect(Precision precision, const Tensor& x, const Layer* watched) const {
  if (!watched) return model_->block({precision}, index_, x);
  Tensor seen;
  Pass pass({}, false);
  pass.watch({const_cast<Layer*>(watched)},
             [&](const Layer&, const Tensor&, const Tensor&, const Tensor& y) { seen = y; });
  model_->block({precision, nullptr, &pass}, index_, x);
  return seen;
}

// Sums of squared errors, for each set of weights of the group.
std::vector<double> AwqScales::errors_at_run(const std::vector<Layer*>& group,
                                             const std::vector<std::vector<Tensor>>& candidates) const {
  const Layer* watched = nullptr;
  for (const Layer* layer : part_.layers())
    if (!is_bloom() && layer->role == Role::Proj) watched = layer;
  const size_t n = inputs_->size();
  std::vector<Tensor> x(n), real(n);
  parallel_for(static_cast<int64_t>(n), [&](int64_t item) {
    const auto j = static_cast<size_t>(item);
    x[j] = (*inputs_)[j];
    if (is_bloom() && options_.official_bloom) x[j] = input_of(*model_, index_, *group[0], x[j]);
    real[j] = inspect(Precision::Float, x[j], watched);
  });
  std::vector<double> sums;
  for (const std::vector<Tensor>& weights : candidates) {
    for (size_t k = 0; k < group.size(); ++k) group[k]->quantize({{}, {}, weights[k], nullptr, nullptr});
    sums.push_back(squared_errors(real, [&](size_t j) { return inspect(Precision::Fake, x[j], watched); }));
  }
  for (Layer* layer : group) layer->quantized = nullptr;
  return sums;
}

// ---- Clips --------------------------------------------------------------------------------------------------------

Tensor clipped(const Tensor& w, const Tensor& largest, int64_t groupsize) {
  const int64_t in = w.dim(1), groups = largest.dim(1);
  Tensor y = w.clone();
  for (int64_t i = 0; i < w.size(); ++i) {
    const float most = largest[i / in * groups + i % in / groupsize];
    y[i] = std::clamp(y[i], -most, most);
  }
  return y;
}

Tensor clip_search(const Tensor& w, const std::vector<double>& second, const WeightGrid& grid) {
  const int64_t out = w.dim(0), in = w.dim(1), each = grid.groupsize < 0 ? in : grid.groupsize;
  const int64_t groups = (in + each - 1) / each;
  WeightGrid of_row = grid;
  of_row.groupsize = -1;
  Tensor best = Tensor::uninitialized({out, groups});
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * each, n = std::min(each, in - first);
    std::vector<int64_t> own(at(n));
    std::iota(own.begin(), own.end(), first);
    const Tensor part = take(w, 1, own);
    const std::vector<double> products = block(second, in, first, n, first, n);
    std::vector<double> least(static_cast<size_t>(out), std::numeric_limits<double>::infinity());
    for (int i = 0; i < kClipSteps / 2; ++i) {
      Tensor most = Tensor::uninitialized({out, 1});
      for (int64_t r = 0; r < out; ++r)
        most[r] = kernels().max_abs(part.data + r * n, n) * static_cast<float>(1 - static_cast<double>(i) / kClipSteps);
      const std::vector<double> errors =
          row_errors(round_to_nearest(clipped(part, most, n), of_row).values, part, products);
      for (int64_t r = 0; r < out; ++r) {
        if (i > 0 && errors[at(r)] >= least[at(r)]) continue;
        least[at(r)] = errors[at(r)];
        best[r * groups + g] = most[r];
      }
    }
  }
  return best;
}

Tensor clipped_weight(const Layer& layer, const WeightGrid& grid, const Seen& seen) {
  const Tensor w = layer.weight.values();
  if (layer.role == Role::Query || layer.role == Role::Key || layer.role == Role::QKV) return w;
  return clipped(w, clip_search(w, seen.moments->second(), grid), grid.groupsize < 0 ? w.dim(1) : grid.groupsize);
}

}  // namespace bcq
