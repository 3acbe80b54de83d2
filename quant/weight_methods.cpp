#include "quant/weight_methods.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"
#include "quant/linalg.h"
#include "quant/refine.h"

namespace bcq {
namespace {

// Options with the bits that are this layer's own.
template <class Options>
Options options_of(const Layer& layer, Options options, const LayerBits& bits) {
  options.bits = bits_of(layer, bits, options.bits);
  return options;
}

void attach(Layer& layer, const QuantizedWeight& q, bool packed = true) {
  for (const Tensor& w : {layer.weight.values(), q.values})  // a weight that is NaN would round to code 0
    require(kernels().all_finite(w.data, w.size()), "%s: its weight is not finite (NaN or infinity)", layer.name);
  if (!packed) return layer.quantize({layer.left_grid(), q.grid, q.values, nullptr, nullptr});
  layer.quantize(PackedWeight(q.grid, q.values.shape, q.codes));
}

// Gives the layer the grid of its input.
void round_input(Layer& layer, const ActivationGrid& activations, const Moments* seen) {
  if (activations.bits == 32) return;
  require_usage(activations.bits >= 2 && activations.bits <= 8,
                "activations are rounded to 2 to 8 bits, or 32: not to %d", activations.bits);
  Grid grid = Dynamic(activations.bits);
  if (activations.fixed) {
    const float step = std::max((seen->largest() - seen->least()) / (std::ldexp(1.f, activations.bits) - 1), FLT_MIN);
    grid = Asymmetric(activations.bits, step, static_cast<int32_t>(std::nearbyint(-seen->least() / step)));
  }
  layer.quantize(grid, {});
}

}  // namespace

Tensor rounded_scaled(const Tensor& w, const std::vector<float>& s, const WeightGrid& grid) {
  const int64_t in = w.dim(1);
  Tensor scaled = w.clone();
  for (int64_t i = 0; i < w.size(); ++i) scaled[i] *= s[at(i % in)];
  Tensor q = round_to_nearest(scaled, grid).values;
  for (int64_t i = 0; i < w.size(); ++i) q[i] /= s[at(i % in)];
  return q;
}

void RoundToNearest::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  for (Layer* layer : group) {
    round_input(*layer, activations_, seen.moments.get());
    const WeightGrid grid = options_of(*layer, grid_, bits_);
    attach(*layer, round_to_nearest(change_ ? change_(*layer, grid, seen) : layer->weight.values(), grid));
  }
}

Gptq::Gptq(const GptqMethodOptions& options, const Warn& warn) : options_(options), warn_(warn) {
  require_options(options.gptq);
  require_usage(options.refine > 0 || options.scale_rounds == 0,
                "scales are refitted between sweeps: refine with them");
  require_usage(options.target != Target::Gptaq || (options.refine == 0 && !options.gptq.weighted),
                "GPTAQ aims at other outputs than its own weights': no refining and no weighted ranges with it");
  require_usage(options.refine >= 0, "the number of refining sweeps is 0 or more, not %d", options.refine);
}

void Gptq::start(const Part& part) {
  Method::start(part);
  for (Layer* layer : part.layers()) {
    if (wants(*layer) && layer->quantized) layer->quantize(layer->left_grid(), {});
    Model::point_of(*layer).clear();
  }
}

namespace {

// 1 / out times E || (q - v)(x - m) ||² over the tokens of these moments: m, the mean of others, is what a bias took
// away.
double error_about(const Tensor& q, const Tensor& v, const Moments& of, const std::vector<double>& m) {
  const int64_t n = v.dim(1);
  const std::vector<double> own = of.mean();
  const double out = static_cast<double>(v.dim(0)), tokens = static_cast<double>(of.tokens());
  double sum = static_cast<double>(of.samples()) / (2 * tokens) * quadratic_error(q, v, of.second());
  for (int64_t r = 0; r < v.dim(0); ++r) {
    double at_own = 0, at_m = 0;
    for (int64_t c = 0; c < n; ++c) {
      const double e = static_cast<double>(q[r * n + c]) - v[r * n + c];
      at_own += e * own[at(c)];
      at_m += e * m[at(c)];
    }
    sum += at_m * at_m - 2 * at_own * at_m;
  }
  return sum / out;
}

}  // namespace

// `seen.moments` comes to hold all windows.
void Gptq::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) {
  if (seen.held_out) {
    std::unique_ptr<Moments>& rest = seen.odd || options_.target != Target::Own ? seen.odd : seen.moments;
    if (rest)
      rest->add(*seen.held_out);
    else
      rest = std::make_unique<Moments>(*seen.held_out);
  }
  Moments& moments = *seen.moments;
  std::vector<Tensor> weights;
  for (const Layer* layer : group) weights.push_back(layer->weight.values());
  double ridge = std::numeric_limits<double>::infinity();
  if (seen.odd && options_.target == Target::Gptaq) {
    moments.add(*seen.odd);
  } else if (seen.odd) {
    Refit refitted = refit(weights, moments, *seen.odd, options_.centred);
    weights = std::move(refitted.weights);
    ridge = refitted.ridge;
  }
  if (!warned_ && moments.tokens() < moments.columns()) {
    warned_ = true;
    warn_(
        format("%d calibration tokens are fewer than the %d columns of a layer: its Hessian is singular, damping "
               "decides the rest; use more or longer windows",
               moments.tokens(), moments.columns()));
  }
  const std::vector<double> hessian = moments.second(options_.centred), means = moments.mean();
  std::vector<double> drift;
  if (options_.target == Target::Gptaq) {
    std::vector<double> own = hessian;
    fill_lower(own, moments.columns());
    drift = moments.cross(options_.centred);
    for (size_t i = 0; i < drift.size(); ++i) drift[i] -= own[i];
  }
  for (size_t i = 0; i < group.size(); ++i) {
    round_input(*group[i], options_.activations, &moments);
    // Second moments are 2 / samples Σ: of windows of one length, 2 T times the mean over tokens.
    const double mean =
        static_cast<double>(moments.samples()) / (2. * static_cast<double>(moments.tokens() * weights[i].dim(0)));
    LayerRecord layer = fit_layer(*group[i], weights[i], hessian, drift, mean, means);
    layer.ridge = ridge;
    if (seen.held_out) {
      const Tensor q = group[i]->weight_in(Precision::Fake).values();
      layer.held_out = error_about(q, weights[i], *seen.held_out, means);
    }
    record.layers.push_back(layer);
  }
}

// With weighted ranges, of those and the ones of GPTQ itself, for each row what errs less; `error` gets that of GPTQ.
QuantizedWeight Gptq::start_from(const Tensor& v, const std::vector<double>& hessian, const std::vector<double>& drift,
                                 const GptqOptions& options, const std::string& name, double& error) {
  QuantizedWeight q = gptq(v, hessian, options, name, warn_, drift);
  if (!options.weighted) {
    error = quadratic_error(q.values, v, hessian);
    return q;
  }
  GptqOptions plain = options;
  plain.weighted = false;
  const QuantizedWeight other = gptq(v, hessian, plain, name, warn_);
  const std::vector<double> own = row_errors(q.values, v, hessian), others = row_errors(other.values, v, hessian);
  error = std::accumulate(others.begin(), others.end(), 0.0);
  const int64_t n = v.dim(1), groups = q.grid.scale.dim(1);
  for (int64_t r = 0; r < v.dim(0); ++r) {
    if (own[at(r)] <= others[at(r)]) continue;
    std::copy_n(other.codes.begin() + r * n, n, q.codes.begin() + r * n);
    std::copy_n(other.values.data + r * n, n, q.values.data + r * n);
    std::copy_n(other.grid.scale.data + r * groups, groups, q.grid.scale.data + r * groups);
    std::copy_n(other.grid.zero.data + r * groups, groups, q.grid.zero.data + r * groups);
  }
  return q;
}

LayerRecord Gptq::fit_layer(Layer& layer, const Tensor& v, const std::vector<double>& hessian,
                            const std::vector<double>& drift, double mean, const std::vector<double>& means) {
  const GptqOptions options = options_of(layer, options_.gptq, options_.bits);
  double plain = 0;
  QuantizedWeight q = start_from(v, hessian, drift, options, layer.name, plain);
  LayerRecord record;
  record.layer = layer.name;
  record.bits = options.bits;
  record.group = q.grid.group;
  record.damp = q.damp;
  record.signal = mean * quadratic_error(v, {}, hessian);
  record.rounded = mean * quadratic_error(round_to_nearest(v, options).values, v, hessian);
  record.solved = mean * plain;
  record.refined = options.weighted ? mean * quadratic_error(q.values, v, hessian) : record.solved;
  if (options_.refine > 0) {
    refine(q, v, hessian, options_.refine);
    for (int round = 0; round < options_.scale_rounds; ++round) {
      refit_scales(q, v, hessian, options);
      refine(q, v, hessian, options_.refine);
    }
    record.refined = mean * quadratic_error(q.values, v, hessian);
  }
  record.compensated = record.refined - (options_.centred ? 0 : squared_error(q.values, v, means));
  attach(layer, q, options_.packed);
  return record;
}

}  // namespace bcq
