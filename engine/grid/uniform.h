// Symmetric uniform grids, m = 2^(bits-1):  x̂ = Δ clamp(round(x / Δ), -m, m-1).   (PTQ4ViT, section 3.1)
#pragma once
#include <utility>

#include "engine/grid/grid.h"

namespace bcq {

// One Δ for each of delta.size() equal, consecutive parts of dimension `axis`.
// Integer form: u8 codes with offset 128, or s8 codes.
class Uniform final : public GridKind {
 public:
  Uniform(int b, int a, std::vector<float> d) : GridKind(b), along(a), delta(std::move(d)) {}
  static Grid read(const Fields& fields);

  int along;  // axis()
  std::vector<float> delta;

  const char* name() const override { return "uniform"; }
  Fields describe() const override;
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double storage_bits(const Shape& shape) const override;  // 32-bit steps
  int64_t units() const override { return static_cast<int64_t>(delta.size()); }
  int axis() const override { return along; }
  Grid unit(int64_t u) const override { return Uniform{bits, along, {delta[at(u)]}}; }
  int planes() const override { return bits <= kInt8Bits ? 1 : 0; }
  float plane_scale(int, int64_t unit) const override { return delta[at(unit)]; }
  int32_t offset(int64_t) const override { return 128; }
  void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const override;
  bool is_signed() const override { return bits <= kInt8Bits; }
  void code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const override;
  bool has_zero_points() const override { return true; }
  int32_t zero_point(int64_t) const override { return 1 << (bits - 1); }
};

}  // namespace bcq
