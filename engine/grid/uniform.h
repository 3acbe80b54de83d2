// Uniform grids: asymmetric, symmetric, and symmetric with a step for every row as it comes.
#pragma once

#include "engine/grid/grid.h"

namespace bcq {

// x̂ = s (clamp(round(x / s) + z, 0, 2^bits - 1) - z).   (RepQ-ViT, AdaLog)
// One pair of scale s and zero point z, or one for each of several equal, consecutive parts of dimension `along`. A
// zero point is an integer and may lie outside the codes: then the grid does not hold 0.
// Integer form: u8 codes with offset z. Signed codes round(x / s) where they fit in 8 bits, as with 7 bits and less
// they do for every grid that holds 0.
class Asymmetric : public GridKind {
 public:
  Asymmetric(int bits, float scale, int32_t zero) : Asymmetric(bits, 0, {scale}, {zero}) {}
  // Error when scales and zero points are not equally many, or a zero point is beyond 2^20.
  Asymmetric(int bits, int along, std::vector<float> scale, std::vector<int32_t> zero);
  static Grid read(const Fields& fields);

  int along;
  std::vector<float> scale;
  std::vector<int32_t> zero;

  const char* name() const override { return "asymmetric"; }
  Fields describe() const override;
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double parameter_bits() const override { return static_cast<double>(units()) * (32 + bits); }  // zero points: `bits`
  int64_t units() const override { return static_cast<int64_t>(scale.size()); }
  int axis() const override { return along; }
  Grid unit(int64_t u) const override { return Asymmetric{bits, scale[at(u)], zero[at(u)]}; }
  int planes() const override;
  float plane_scale(int, int64_t unit) const override { return scale[at(unit)]; }
  int32_t offset(int64_t unit) const override { return zero[at(unit)]; }
  void code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t stride) const override;
  bool is_signed() const override;
  void code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const override;
  bool has_zero_points() const override { return true; }
  int32_t zero_point(int64_t unit) const override { return zero[at(unit)]; }

 private:
  bool all_between(int least, int most) const;                                     // all round(x / s)
  float least(int64_t unit) const { return static_cast<float>(-zero[at(unit)]); }  // round(x / s), and the most
  float most(int64_t unit) const { return static_cast<float>((1 << bits) - 1 - zero[at(unit)]); }
};

// The same with z = m = 2^(bits-1), the middle code:  x̂ = s clamp(round(x / s), -m, m-1).   (PTQ4ViT, section 3.1)
class Uniform final : public Asymmetric {
 public:
  Uniform(int b, int a, std::vector<float> s) : Asymmetric(b, a, s, std::vector<int32_t>(s.size(), 1 << (b - 1))) {}
  static Grid read(const Fields& fields);

  const char* name() const override { return "uniform"; }
  Fields describe() const override;
  double parameter_bits() const override { return 32 * static_cast<double>(units()); }
  Grid unit(int64_t u) const override { return Uniform{bits, along, {scale[at(u)]}}; }
};

// x̂ = Δ clamp(round(x / Δ), -m, m - 1), m = 2^(bits-1), Δ = max |row| / (m - 1): activations "per token, dynamic".
// Simulated: it has no codes that are known before the data.   (ZeroQuant; the activations of SmoothQuant's O1)
class Dynamic final : public GridKind {
 public:
  explicit Dynamic(int bits) : GridKind(bits) {}
  static Grid read(const Fields& fields);

  const char* name() const override { return "dynamic"; }
  Fields describe() const override { return {{"bits", bits}}; }
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double storage_bits(const Shape& shape) const override;  // and a 32-bit step a row
};

}  // namespace bcq
