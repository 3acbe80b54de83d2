#include "engine/grid/grid.h"

#include "engine/core/check.h"

namespace bcq {

Grid GridKind::unit(int64_t) const { throw Error(format("a %s grid has one unit", name())); }
float GridKind::plane_scale(int, int64_t) const { throw Error(format("a %s grid has no integer form", name())); }
void GridKind::code(const float*, int64_t, int64_t, uint8_t*, int64_t) const {
  throw Error(format("a %s grid has no integer form of %d bits", name(), bits));
}
void GridKind::code_signed(const float*, int64_t, int64_t, int8_t*) const {
  throw Error(format("a %s grid of %d bits has no signed codes", name(), bits));
}
int32_t GridKind::zero_point(int64_t) const { throw Error(format("a %s grid has no zero points", name())); }

bool Grid::is_along(int axis) const { return !kind_ || kind_->units() == 1 || kind_->axis() == axis; }
Grid Grid::unit(int64_t u) const { return !kind_ || kind_->units() == 1 ? *this : kind_->unit(u); }

Tensor fake_quantize(const Grid& grid, const Tensor& x) {
  if (grid.is_identity()) return x;
  Tensor y = Tensor::uninitialized(x.shape);
  grid->fake_quantize(x, y);
  return y;
}

double storage_bits(const Grid& grid, const Shape& shape) {
  return grid.is_identity() ? 32 * static_cast<double>(numel(shape)) : grid->storage_bits(shape);
}

}  // namespace bcq
