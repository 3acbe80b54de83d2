#include "engine/grid/grid.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/core/half.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

// y[i] = f(x[i]) for i in [begin, end), chunk by chunk: f(x, y, n).
template <class F>
void map(const Tensor& x, Tensor& y, int64_t begin, int64_t end, F f) {
  for_chunks(end - begin, [&](int64_t b, int64_t e) { f(x.data + begin + b, y.data + begin + b, e - b); });
}

struct Quantize {
  const Tensor& x;
  Tensor& y;

  void operator()(const Identity&) const {}

  void operator()(const Uniform& g) const {
    const float m = std::ldexp(1.f, g.bits - 1);
    const int64_t units = static_cast<int64_t>(g.delta.size());
    require(units > 0 && g.axis < x.rank() && x.dim(g.axis) % units == 0, "%d steps do not fit dimension %d of %s",
            units, g.axis, to_string(x.shape));
    int64_t outer = 1;
    for (int i = 0; i < g.axis; ++i) outer *= x.dim(i);
    if (units == 1) outer = 1;
    const int64_t part = x.size() / outer / units;
    auto quantize = [&](int64_t begin, int64_t end, float delta) {
      map(x, y, begin, end,
          [&](const float* a, float* b, int64_t n) { kernels().fake_uniform(a, b, n, delta, -m, m - 1); });
    };
    if (outer * units == 1) return quantize(0, x.size(), g.delta[0]);
    parallel_for(outer * units,
                 [&](int64_t i) { quantize(i * part, (i + 1) * part, g.delta[static_cast<size_t>(i % units)]); });
  }

  void operator()(const TwinGelu& g) const {
    map(x, y, 0, x.size(), [&](const float* a, float* b, int64_t n) {
      kernels().fake_twin_gelu(a, b, n, g.pos, g.neg, std::ldexp(1.f, g.bits - 1));
    });
  }

  void operator()(const TwinSoftmax& g) const {
    map(x, y, 0, x.size(), [&](const float* a, float* b, int64_t n) {
      kernels().fake_twin_softmax(a, b, n, g.split, std::ldexp(1.f, g.bits - 1) - 1, g.official);
    });
  }

  void operator()(const Affine& g) const {
    const int64_t cols = x.dim(1), groups = g.scale.dim(1);
    const float top = std::ldexp(1.f, g.bits) - 1;
    parallel_for(x.dim(0), [&](int64_t r) {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t i = r * groups + g.group_of(c);
        const float s = g.scale[i], z = g.zero[i];
        y[r * cols + c] = s * (std::clamp(std::nearbyint(x[r * cols + c] / s) + z, 0.f, top) - z);
      }
    });
  }
};

}  // namespace

Tensor fake_quantize(const Grid& grid, const Tensor& x) {
  if (is_identity(grid)) return x;
  Tensor y = Tensor::uninitialized(x.shape);
  std::visit(Quantize{x, y}, grid);
  return y;
}

bool is_symmetric(const Affine& grid) {
  const float middle = static_cast<float>(1 << (grid.bits - 1));
  return std::all_of(grid.zero.data, grid.zero.data + grid.zero.size(), [&](float z) { return z == middle; });
}

int scale_bits(const Affine& grid) {
  for (int64_t i = 0; i < grid.scale.size(); ++i) {
    const uint16_t half = to_f16(grid.scale[i]);
    float back;
    kernels().from_f16(&half, &back, 1);
    if (back != grid.scale[i]) return 32;
  }
  return 16;
}

double storage_bits(const Grid& grid, const Shape& weight) {
  const double n = static_cast<double>(numel(weight));
  if (const auto* g = std::get_if<Uniform>(&grid)) return n * g->bits + 32.0 * static_cast<double>(g->delta.size());
  if (const auto* g = std::get_if<Affine>(&grid))
    return n * g->bits + static_cast<double>(g->scale.size()) * (scale_bits(*g) + g->bits) +
           32.0 * static_cast<double>(g->column_group.size());
  return 32 * n;
}

}  // namespace bcq
