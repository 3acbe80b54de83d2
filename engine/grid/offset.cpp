#include "engine/grid/offset.h"

#include <cmath>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {

Grid Offset::read(const Fields& fields) {
  return Offset(bits_field(fields), scale_field(fields, "interval"), field<std::vector<float>>(fields, "offsets"));
}

void Offset::fake_quantize(const Tensor& x, Tensor& y) const {
  const auto n = static_cast<int64_t>(offset_of.size());
  require(x.dim(-1) == n, "offsets of %d channels for values of shape %s", n, to_string(x.shape));
  const float m = std::ldexp(1.f, bits - 1);
  parallel_for(x.rows(), [&](int64_t r) {
    float* row = y.data + r * n;
    kernels().add(x.data + r * n, offset_of.data(), row, n);
    kernels().fake_uniform(row, row, n, step, -m, m - 1);
    for (int64_t c = 0; c < n; ++c) row[c] -= offset_of[static_cast<size_t>(c)];
  });
}

double Offset::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * bits + 32 * (1 + static_cast<double>(offset_of.size()));
}

}  // namespace bcq
