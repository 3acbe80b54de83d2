#include "engine/grid/offset.h"

#include "engine/grid/parts.h"
#include "engine/grid/twin.h"
#include "engine/kernels/kernels.h"

namespace bcq {

int Offset::check(const Grid& grid) {
  require(!grid.is_identity() && grid->units() == 1, "offsets need a grid of one unit");
  return grid->bits;
}

Grid Offset::read(const Fields& fields, Grid moved) {
  require_input(moved->units() == 1, "offsets need a grid of one unit, not %d", moved->units());
  return Offset(std::move(moved), field<std::vector<float>>(fields, "offsets"));
}

const char* Offset::name() const { return moved.is<TwinGelu>() ? "twin-gelu+offset" : "uniform+offset"; }

Fields Offset::describe() const {
  Fields fields = moved.describe();
  fields["offsets"] = offset_of;
  return fields;
}

void Offset::fake_quantize(const Tensor& x, Tensor& y) const {
  const auto n = static_cast<int64_t>(offset_of.size());
  require(x.dim(-1) == n, "offsets of %d channels for values of shape %s", n, to_string(x.shape));
  parallel_for(x.rows(), [&](int64_t r) { kernels().add(x.data + r * n, offset_of.data(), y.data + r * n, n); });
  moved->fake_quantize(y, y);
  parallel_for(x.rows(), [&](int64_t r) {
    for (int64_t c = 0; c < n; ++c) y[r * n + c] -= offset_of[at(c)];
  });
}

double Offset::storage_bits(const Shape& shape) const {
  return moved->storage_bits(shape) + 32 * static_cast<double>(offset_of.size());
}

}  // namespace bcq
