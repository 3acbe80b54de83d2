// Number grids: what a quantized operand may hold, and how a float is rounded to it.
// Which grid an operand gets is decided in quant/; all rounding is half to even.
#pragma once
#include <variant>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

// Not quantized.
struct Identity {};

// Symmetric uniform, m = 2^(bits-1):  x̂ = Δ clamp(round(x / Δ), -m, m-1).
// One Δ for each of delta.size() equal, consecutive parts of dimension `axis`: the row blocks of a
// weight [out, in] (axis 0), the heads of an operand [B, H, N, d] (axis 1). (PTQ4ViT, section 3.1)
struct Uniform {
  int bits;
  int axis = 0;
  std::vector<float> delta;
};

// Twin uniform for values after GELU: Δ⁺ for x > 0, Δ⁻ for x < 0. (PTQ4ViT, section 3.2)
struct TwinGelu {
  int bits;
  float pos, neg;
};

// Twin uniform for softmax: fine steps below `split`, coarse ones above. `official` is the published
// code's overlapping pair of ranges; otherwise the two are disjoint as in the paper.
struct TwinSoftmax {
  int bits;
  float split;
  bool official = true;
};

// Asymmetric, for weights [out, in]:  x̂ = s (clamp(round(x / s) + z, 0, 2^bits - 1) - z), with one
// (s, z) for every row and every group of `group` columns. (GPTQ's Quantizer)
struct Affine {
  int bits;
  int64_t group;       // columns that share s and z; the row length for one pair a row
  Tensor scale, zero;  // [out, ceil(in / group)]
  // [in] the group of each column, where those of a group do not follow each other (GPTQ's act-order); or empty.
  std::vector<int32_t> column_group = {};

  int64_t group_of(int64_t column) const {
    return column_group.empty() ? column / group : column_group[static_cast<size_t>(column)];
  }
};

using Grid = std::variant<Identity, Uniform, TwinGelu, TwinSoftmax, Affine>;

inline bool is_identity(const Grid& grid) { return std::holds_alternative<Identity>(grid); }

// x rounded to the grid, in the shape of x; x itself for Identity. No gradients.
Tensor fake_quantize(const Grid& grid, const Tensor& x);

// Whether every zero point is the middle code, as GPTQ's `sym` has it.
bool is_symmetric(const Affine& grid);
// Bits of a scale: 16 where 16-bit floats hold all scales exactly, else 32.
int scale_bits(const Affine& grid);

// Bits needed to store a weight of this shape on this grid: codes, and scales, `bits`-bit zero points and 32-bit
// column groups for Affine, 32-bit steps for Uniform; 32 bits a value for Identity.
double storage_bits(const Grid& grid, const Shape& weight);

}  // namespace bcq
