// What logarithmic grids of values of one sign share: levels s, s 2^-h, s 2^-2h, ... and 0, which is one of the 2^bits
// codes, or a code more, as the published quantizers have it.
#pragma once
#include <algorithm>
#include <array>

#include "engine/grid/grid.h"

namespace bcq {

// x̂ = value of the level of x + shift, less the shift. Level k < count() is that of all values v > 0 with
// round(-log2(v / scale) / step) = k, half to even; level 0 that of larger ones, and 0 that of smaller ones and below
// 2^-126. It is found without a logarithm: levels are as many as edges above v, which are floats, so that it is exact
// and the same on every machine. Integer form: u8 planes with offset 0, less the shift.
class LogGrid : public GridKind {
 public:
  float scale, shift;
  double step;      // log2 of the ratio of neighbouring levels
  bool extra_zero;  // 0 is a value beside 2^bits others: needs log2(2^bits + 1) bits

  // Of each level, falling, and then of 0; the shift is not taken away yet.
  const std::vector<float>& values() const { return values_; }

  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double storage_bits(const Shape& shape) const override;
  int planes() const override { return static_cast<int>(codes_.size()); }
  float plane_scale(int plane, int64_t) const override { return plane_scale_[at(plane)]; }
  float constant(int64_t) const override { return -shift; }
  void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const override;

 protected:
  // Error for other than 1 to 8 bits or a scale that is not positive.
  LogGrid(int bits, float scale, double step, bool extra_zero, float shift = 0);

  // Of levels but 0; at most 255: of 8 bits the last is given up, which is 2^-64 of the scale and less in all that is
  // published.
  int count() const { return std::min(255, (1 << bits) - (extra_zero ? 0 : 1)); }
  // The values of levels, falling; or up to two planes of codes whose sum Σ_p scales[p] code_p they are.
  void set_values(const std::vector<double>& values);
  void set_planes(const std::vector<std::vector<uint8_t>>& codes, std::array<float, 2> scales);
  Fields fields() const { return {{"bits", bits}, {"scale", scale}}; }

 private:
  std::vector<int32_t> edges_;               // bits of the least float of each level
  std::vector<float> values_;                // of each level, then 0
  std::vector<std::vector<uint8_t>> codes_;  // [planes][level], padded with zeros to whole blocks of 16
  std::array<float, 2> plane_scale_ = {};
};

}  // namespace bcq
