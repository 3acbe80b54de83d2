#include "quant/os_plus.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/grid/uniform.h"
#include "quant/passes.h"

namespace bcq {
namespace {

constexpr size_t kBatches = 16;  // that losses are measured on, evenly spread

// b + (W - Q) shift: the shift goes through the float weight, into the bias, where Q is shown it with its input.
Tensor folded_bias(const Layer& layer, const Tensor& q, const std::vector<float>& shift) {
  const Tensor w = layer.weight.values();
  const int64_t in = w.dim(1);
  Tensor bias = layer.bias.loaded.empty() ? Tensor({w.dim(0)}) : layer.bias.loaded.clone();
  for (int64_t i = 0; i < w.size(); ++i) bias[i / in] += (w[i] - q[i]) * shift[at(i % in)];
  return bias;
}

}  // namespace

Centred centre(const std::vector<float>& least, const std::vector<float>& largest) {
  Centred channels;
  for (size_t c = 0; c < least.size(); ++c) {
    channels.shift.push_back((largest[c] + least[c]) / 2);
    channels.half.push_back(std::max(largest[c] - channels.shift[c], channels.shift[c] - least[c]));
  }
  return channels;
}

std::vector<float> threshold_scales(const std::vector<float>& half, float t) {
  std::vector<float> scales;
  for (const float h : half) scales.push_back(h > t ? h / t : 1.f);
  return scales;
}

Threshold search_threshold(const std::vector<float>& half,
                           const std::function<double(float t, const std::vector<float>& scales)>& loss) {
  const double largest = *std::max_element(half.begin(), half.end());
  const int steps = std::max(100, static_cast<int>(largest / 0.5));
  Threshold best{static_cast<float>(largest), std::vector<float>(half.size(), 1.f), 0,
                 std::numeric_limits<double>::infinity()};
  for (int i = 0; i <= steps && largest >= 1; ++i) {
    const auto t = static_cast<float>(largest - i * (largest - 1) / steps);
    const std::vector<float> scales = threshold_scales(half, t);
    if (const double now = loss(t, scales); now < best.loss) best = {t, scales, i, now};
  }
  return best;
}

Tensor round_within(const Tensor& x, const std::vector<float>& shift, const std::vector<float>& scales, float t,
                    int bits) {
  const float codes = std::ldexp(1.f, bits) - 1, step = 2 * t / codes;
  const Asymmetric grid(bits, step, static_cast<int32_t>(std::nearbyint(t / step)));
  const int64_t n = x.dim(-1);
  Tensor y = x.clone();
  for (int64_t i = 0; i < y.size(); ++i) y[i] = (y[i] - shift[at(i % n)]) / scales[at(i % n)];
  y = fake_quantize(grid, y);
  for (int64_t i = 0; i < y.size(); ++i) y[i] = y[i] * scales[at(i % n)] + shift[at(i % n)];
  return y;
}

// Where the part is fed `block` and its layer `first` this, what attention makes of it, or the layer itself.
Tensor OutlierSuppression::looked_at(Precision precision, Layer& first, const Tensor& fed, const Tensor& block) const {
  Layer* watched = &first;
  for (Layer* layer : part_.layers())
    if (first.role != Role::Fc1 && layer->role == Role::Proj) watched = layer;
  Tensor seen;
  Pass pass({}, false);
  pass.watch({watched},
             [&](const Layer&, const Tensor& a, const Tensor&, const Tensor& y) { seen = watched == &first ? y : a; });
  pass.begin_with(first, fed);
  model_->block({precision, nullptr, &pass}, index_, block);
  return seen;
}

void OutlierSuppression::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  const LayerGroup& whole = part_.group_of(*group[0]);
  std::vector<float> least = seen.moments->column_least(), largest = seen.moments->column_largest();
  if (!whole.source.norm->centred)  // no shift: a range as wide on either side
    for (size_t c = 0; c < least.size(); ++c) largest[c] = std::max(largest[c], -least[c]), least[c] = -largest[c];
  const Centred channels = centre(least, largest);
  const size_t n = std::min(inputs_->size(), kBatches);
  std::vector<Tensor> x(n), real(n);
  const auto batch = [&](size_t j) -> const Tensor& { return (*inputs_)[j * inputs_->size() / n]; };
  parallel_for(static_cast<int64_t>(n), [&](int64_t item) {
    const size_t j = at(item);
    x[j] = input_of(*model_, index_, *group[0], batch(j));
    real[j] = looked_at(Precision::Float, *group[0], x[j], batch(j));
  });
  const Threshold best = search_threshold(channels.half, [&](float t, const std::vector<float>& scales) {
    for (Layer* layer : group) {
      WeightGrid grid = grid_;
      grid.bits = bits_of(*layer, bits_, grid.bits);
      Tensor q = rounded_scaled(layer->weight.values(), scales, grid);
      layer->bias.compensated = folded_bias(*layer, q, channels.shift);
      layer->quantize({{}, {}, std::move(q), nullptr, nullptr});
    }
    return squared_errors(real, [&](size_t j) {
      return looked_at(Precision::Fake, *group[0], round_within(x[j], channels.shift, scales, t, abits_), batch(j));
    });
  });
  for (Layer* layer : group) layer->quantized = nullptr, layer->bias.compensated = {};
  std::vector<float> shift;
  for (size_t c = 0; c < best.scales.size(); ++c) shift.push_back(channels.shift[c] / best.scales[c]);
  model_->fold(whole, best.scales, shift);
}

}  // namespace bcq
