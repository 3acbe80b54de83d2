// Logarithmic grids of values of one sign: levels s, s 2^-h, s 2^-2h, ... and 0, which is one of the 2^bits codes, or a
// code more, as the published quantizers have it.
#pragma once
#include <algorithm>
#include <array>

#include "engine/grid/grid.h"

namespace bcq {

// What they share. x̂ = value of the level of x + shift, less the shift. Level k < count() is that of all values v > 0
// with round(-log2(v / scale) / step) = k, half to even; level 0 that of larger ones, and 0 that of smaller ones and
// below 2^-126. It is found without a logarithm: levels are as many as edges above v, which are floats, so that it is
// exact and the same on every machine. Integer form: u8 planes with offset 0, less the shift.
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

// Powers of two, for softmax:  x̂ = s 2^-k, k = round(-log2(x / s)). Integer form: one plane of 2^(7 - k) up to 3 bits;
// with 4 bits a second one of 2^(15 - k) for k >= 8.
class Log2 final : public LogGrid {
 public:
  Log2(int bits, float scale, bool extra_zero = false);
  static Grid read(const Fields& fields, bool extra_zero);

  const char* name() const override { return extra_zero ? "log2+zero" : "log2"; }
  Fields describe() const override { return fields(); }
};

// Powers of the root of two, for softmax:  x̂ = s 2^(-k/2), k = round(-2 log2(x / s)).   (RepQ-ViT, section 3.3)
// Integer form, up to 4 bits: a plane of even k, 2^(7 - k/2), and one of odd k, 2^(8 - (k + 1)/2), whose scale has the
// root. `extra_zero` is the published quantizer.
class LogSqrt2 final : public LogGrid {
 public:
  LogSqrt2(int bits, float scale, bool extra_zero = false);
  static Grid read(const Fields& fields, bool extra_zero);

  const char* name() const override { return extra_zero ? "log-sqrt2+zero" : "log-sqrt2"; }
  Fields describe() const override { return fields(); }
};

// With a base that is searched, for softmax and after GELU:  x̂ = s 2^(-k q/37), with powers from tables of short
// integers.   (AdaLog, "Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer")
//
// 2^(-k q/37) is 2^-shift_k mant_k / top: shift_k = floor(k q/37), top = 2^(bits+1) - 2, mant_k = round(2^-f top) of
// the fraction f of k q/37. Integer form: mant_k 2^(S - shift_k) with the largest shift S, in one plane of 8 bits or as
// two bytes; none where it is 2^16 or more. `shift` is added to values before they are rounded and taken away after it:
// kGeluShift makes values after GELU positive. `extra_zero` is the published quantizer.
class AdaLog final : public LogGrid {
 public:
  static constexpr float kGeluShift = 0.16997124f;  // less the least value of GELU
  static constexpr int kMostBase = 255;

  AdaLog(int bits, float scale, int base, float shift = 0, bool extra_zero = false);
  static Grid read(const Fields& fields, bool extra_zero);

  int base;  // q, 1 to kMostBase

  const char* name() const override { return extra_zero ? "adalog+zero" : "adalog"; }
  Fields describe() const override;
};

}  // namespace bcq
