#include "quant/repq.h"

#include <cmath>

#include "engine/core/check.h"

namespace bcq {
namespace {

constexpr int kPixelBits = 8;

Asymmetric grid_of(const Tensor& x, int bits) {
  const ScaleZero range = percentile_range(x.data, x.size(), 1, bits);
  return {bits, range.scale > 0 ? range.scale : 1.f, range.zero};
}

}  // namespace

Asymmetric percentile_grid(const Tensor& w, int bits, std::span<const double> shares) {
  std::vector<float> scale;
  std::vector<int32_t> zero;
  for (int64_t r = 0; r < w.dim(0); ++r) {
    const ScaleZero range = percentile_range(w.data + r * w.dim(1), w.dim(1), 1, bits, shares);
    scale.push_back(range.scale > 0 ? range.scale : 1.f);
    zero.push_back(range.zero);
  }
  return {bits, 0, scale, zero};
}

RepqVit::RepqVit(int wbits, int abits) : wbits_(wbits), abits_(abits) {
  for (const int bits : {wbits, abits}) require_usage(bits >= 2 && bits <= 8, "%d bits: its grids take 2 to 8", bits);
}

void RepqVit::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) {
  Operands& x = seen.operands[0];
  Layer& layer = *group[0];
  if (layer.is_linear())
    fit_linear(group, x, record);
  else if (layer.role == Role::QK)
    layer.quantize(grid_of(x.a, abits_), grid_of(x.b, abits_));
  else
    layer.quantize(fit_log_sqrt2(x.a, abits_), grid_of(x.b, abits_));
}

void RepqVit::round_weight(Layer& layer, const Grid& left, const Operands&, PartRecord&) const {
  layer.quantize(left, percentile_grid(layer.weight.values(), wbits_));
}

void RepqVit::fit_linear(const std::vector<Layer*>& group, Operands& x, PartRecord& record) {
  const Tensor& input = calibrated_on(x);
  const Role role = group[0]->role;
  const LayerGroup& whole = part_.group_of(*group[0]);
  Grid left;
  if (whole.source.norm && role != Role::Head) {
    const int64_t n = input.dim(-1), rows = input.rows();
    std::vector<ScaleZero> ranges;
    double scale = 0, zero = 0;  // their means
    for (int64_t c = 0; c < n; ++c) {
      ranges.push_back(percentile_range(input.data + c, rows, n, abits_));
      scale += static_cast<double>(ranges.back().scale) / static_cast<double>(n);
      zero += static_cast<double>(ranges.back().zero) / static_cast<double>(n);
    }
    const Asymmetric common(abits_, scale > 0 ? static_cast<float>(scale) : 1.f,
                            static_cast<int32_t>(std::nearbyint(zero)));
    std::vector<float> by, shift;
    for (const ScaleZero& range : ranges) {
      by.push_back(range.scale > 0 ? range.scale / common.scale[0] : 1.f);  // a channel that is constant stays
      shift.push_back(range.scale > 0 ? common.scale[0] * static_cast<float>(common.zero[0] - range.zero) : 0.f);
    }
    model_->fold(whole, by, shift);
    for (Tensor* folded : {&x.a, &x.f})
      if (!folded->empty()) fold_channels(*folded, by, shift);
    left = common;
  } else {
    left = grid_of(input, role == Role::Patch ? kPixelBits : abits_);
  }
  for (Layer* layer : group) round_weight(*layer, left, x, record);
}

}  // namespace bcq
