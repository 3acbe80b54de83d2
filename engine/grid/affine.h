// Asymmetric grids of weights, one scale and zero point for every row and group of columns.   (GPTQ's Quantizer)
#pragma once
#include <utility>

#include "engine/grid/grid.h"

namespace bcq {

// Of weights [out, in]:  x̂ = s (clamp(round(x / s) + z, 0, 2^bits - 1) - z), with one (s, z) for every row and every
// group of `group` columns. Signed codes round(x / s) where a row has one pair and they fit in 8 bits; for all others
// there are products with packed codes (engine/gemm/gemm_packed.h).
class Affine final : public GridKind {
 public:
  Affine() : Affine(0, 0, {}, {}) {}  // to be filled in
  Affine(int b, int64_t columns, Tensor s, Tensor z, std::vector<int32_t> groups = {})
      : GridKind(b), group(columns), scale(std::move(s)), zero(std::move(z)), column_group(std::move(groups)) {}
  static Grid read(const Fields& fields);  // with one pair a row

  int64_t group;       // columns that share s and z; the row length for one pair a row
  Tensor scale, zero;  // [out, ceil(in / group)]
  // [in] the group of each column, where those of a group do not follow each other (GPTQ's act-order); or empty.
  std::vector<int32_t> column_group;

  int64_t group_of(int64_t column) const { return column_group.empty() ? column / group : column_group[at(column)]; }

  const char* name() const override { return "affine"; }
  Fields describe() const override;  // Error for groups, which come with packed codes (engine/gemm/gemm_packed.h)
  void fake_quantize(const Tensor& x, Tensor& y) const override;
  double parameter_bits() const override;  // scales, `bits`-bit zero points and 32-bit column groups
  int64_t units() const override { return scale.dim(0); }
  Grid unit(int64_t u) const override;
  float plane_scale(int, int64_t unit) const override { return scale[unit]; }
  bool is_signed() const override;
  void code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const override;
  bool has_zero_points() const override { return scale.dim(1) == 1; }
  int32_t zero_point(int64_t unit) const override { return static_cast<int32_t>(zero[unit]); }
};

// Whether every zero point is the middle code, as GPTQ's `sym` has it.
bool is_symmetric(const Affine& grid);
// Bits of a scale: 16 where 16-bit floats hold all scales exactly, else 32.
int scale_bits(const Affine& grid);

}  // namespace bcq
