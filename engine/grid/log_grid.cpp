#include "engine/grid/log_grid.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

// The bits of the least float v with round(-log2(v / scale) / step) <= k, half to even, at least FLT_MIN.
int32_t edge_bits(float scale, double step, int k) {
  const double edge = static_cast<double>(scale) * std::exp2(-(k + 0.5) * step);
  float v = static_cast<float>(edge);
  if (v < edge || (v == edge && k % 2 == 1)) v = std::nextafter(v, std::numeric_limits<float>::infinity());
  v = std::max(v, FLT_MIN);
  int32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

}  // namespace

LogGrid::LogGrid(int b, float s, double ratio, bool extra, float added)
    : GridKind(b), scale(s), shift(added), step(ratio), extra_zero(extra) {
  require(b >= 1 && b <= 8, "a logarithmic grid of %d bits: 1 to 8 are possible", b);
  require(s > 0 && std::isfinite(s), "a logarithmic grid of scale %g", s);
  for (int k = 0; k < count(); ++k) edges_.push_back(edge_bits(s, ratio, k));
}

void LogGrid::set_values(const std::vector<double>& values) {
  values_.assign(values.begin(), values.end());
  values_.push_back(0);
}

void LogGrid::set_planes(const std::vector<std::vector<uint8_t>>& codes, std::array<float, 2> scales) {
  codes_ = codes;
  plane_scale_ = scales;
  values_.assign(static_cast<size_t>(count()) + 1, 0.f);
  for (size_t p = 0; p < codes_.size(); ++p) {
    for (size_t k = 0; k < codes_[p].size(); ++k) values_[k] += scales[p] * codes_[p][k];
    codes_[p].resize((codes_[p].size() + 15) / 16 * 16, 0);
  }
}

void LogGrid::fake_quantize(const Tensor& x, Tensor& y) const {
  map_chunks(x.data, y.data, x.size(), [&](const float* a, float* b, int64_t n) {
    for_parts(n, 1024, [&](int64_t begin, int64_t end) {
      uint8_t levels[1024];
      kernels().count_edges(a + begin, end - begin, shift, edges_.data(), count(), levels);
      for (int64_t i = begin; i < end; ++i) b[i] = std::isnan(a[i]) ? a[i] : values_[levels[i - begin]] - shift;
    });
  });
}

double LogGrid::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * (extra_zero ? std::log2((1 << bits) + 1) : bits) + 32;
}

void LogGrid::code(const float* x, int64_t n, int64_t, uint8_t* codes, int64_t stride) const {
  if (codes_.empty()) return GridKind::code(x, n, 0, codes, stride);
  kernels().count_edges(x, n, shift, edges_.data(), count(), codes);
  for (size_t p = codes_.size(); p-- > 0;)  // the first plane in place of the levels
    kernels().look_up(codes_[p].data(), static_cast<int>(codes_[p].size()), codes,
                      codes + static_cast<int64_t>(p) * stride, n);
}

}  // namespace bcq
