// Symmetric uniform grids with a step for every row, from the row itself as it comes: activations "per token, dynamic".
#pragma once
#include "engine/grid/grid.h"

namespace bcq {

// x̂ = Δ clamp(round(x / Δ), -m, m - 1), m = 2^(bits-1), Δ = max |row| / (m - 1). Simulated: it has no codes that are
// known before the data.   (ZeroQuant; the activations of SmoothQuant's O1)
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
