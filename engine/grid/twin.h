// Twin uniform grids: two ranges with steps of their own.   (PTQ4ViT, section 3.2)
#pragma once
#include "engine/grid/grid.h"

namespace bcq {

// After GELU: steps Δ⁺ for x > 0 and Δ⁻ for x < 0, m = 2^(bits-1):
//   x̂ = Δ⁺ clamp(round(x / Δ⁺), 0, m-1) + Δ⁻ clamp(round(x / Δ⁻), -m, 0).
// Integer form: the magnitudes of both terms in two planes, the second of them with scale -Δ⁻.
class TwinGelu final : public GridKind {
 public:
  TwinGelu(int b, float positive, float negative) : GridKind(b), pos(positive), neg(negative) {}
  static Grid read(const Fields& fields);

  float pos, neg;

  const char* name() const override { return "twin-gelu"; }
  Fields describe() const override { return {{"bits", bits}, {"positive", pos}, {"negative", neg}}; }
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double parameter_bits() const override { return 2 * 32; }
  int planes() const override { return bits <= kInt8Bits ? 2 : 0; }
  float plane_scale(int plane, int64_t) const override { return plane == 0 ? pos : -neg; }
  void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const override;
};

// For softmax: steps of split / m below a split and of 1 / m above it, m = 2^(bits-1) - 1. `official` is the published
// code's overlapping pair of ranges, the sum of both roundings; otherwise the two are disjoint as in the paper. Integer
// form: both terms in two planes.
class TwinSoftmax final : public GridKind {
 public:
  TwinSoftmax(int b, float s, bool o = true) : GridKind(b), split(s), official(o) {}
  static Grid read(const Fields& fields, bool official);

  float split;
  bool official;

  const char* name() const override { return official ? "twin-softmax official" : "twin-softmax clean"; }
  Fields describe() const override { return {{"bits", bits}, {"split", split}}; }
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double parameter_bits() const override { return 32; }
  int planes() const override { return bits <= kInt8Bits ? 2 : 0; }
  float plane_scale(int plane, int64_t) const override { return plane == 0 ? split / steps() : 1 / steps(); }
  void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const override;

 private:
  float steps() const;  // m
};

}  // namespace bcq
