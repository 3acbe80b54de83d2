#include "engine/grid/dynamic.h"

#include <cfloat>
#include <cmath>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {

Grid Dynamic::read(const Fields& fields) { return Dynamic(bits_field(fields)); }

void Dynamic::fake_quantize(const Tensor& x, Tensor& y) const {
  const int64_t n = x.dim(-1);
  const float m = std::ldexp(1.f, bits - 1);
  parallel_for(x.rows(), [&](int64_t r) {
    const float step = std::max(kernels().max_abs(x.data + r * n, n) / (m - 1), FLT_MIN);
    kernels().fake_uniform(x.data + r * n, y.data + r * n, n, step, -m, m - 1);
  });
}

double Dynamic::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * bits + 32 * static_cast<double>(numel(shape) / shape.back());
}

}  // namespace bcq
