// Grids moved by a constant for each channel: x̂ = Q(x + o) - o.   (NoisyQuant, section 3)
#pragma once
#include <utility>

#include "engine/grid/grid.h"

namespace bcq {

// A grid Q of one unit, and an offset o for each channel, the last dimension. Simulated: a layer's codes are those of
// x + o, and W o, a constant, would leave its bias.
class Offset final : public GridKind {
 public:
  Offset(Grid grid, std::vector<float> offsets)  // Error when the grid is none or has several units
      : GridKind(check(grid)), moved(std::move(grid)), offset_of(std::move(offsets)) {}
  static Grid read(const Fields& fields, Grid moved);

  Grid moved;  // Q
  std::vector<float> offset_of;

  const char* name() const override;
  Fields describe() const override;                               // that of Q, and the offsets
  void fake_quantize(const Tensor& x, Tensor& y) const override;  // Error when there are other channels
  double storage_bits(const Shape& shape) const override;         // that of Q, 32-bit offsets

 private:
  static int check(const Grid& grid);
};

}  // namespace bcq
