// What tests of grids share: values from codes, and values to round.
#pragma once
#include "engine/grid/grid.h"
#include "tests/support.h"

namespace bcq::test {

// x̂ from the codes of x, by the definition of the integer form: Σ_p scale_p (u_p - offset) + constant, in float. Units
// lie along axis 0 of x, whose rows have the length of all other dimensions.
inline Tensor decoded(const Grid& grid, const Tensor& x) {
  const int64_t rows = grid->units(), n = x.size() / rows, stride = n + 3;
  Tensor y(x.shape);
  std::vector<uint8_t> codes(static_cast<size_t>(2 * stride), 255);
  for (int64_t r = 0; r < rows; ++r) {
    grid->code(x.data + r * n, n, r, codes.data(), stride);
    for (int64_t i = 0; i < n; ++i) {
      for (int p = 0; p < grid->planes(); ++p)
        y[r * n + i] +=
            grid->plane_scale(p, r) * static_cast<float>(codes[static_cast<size_t>(p * stride + i)] - grid->offset(r));
      y[r * n + i] += grid->constant(r);
    }
  }
  return y;
}

// The same of signed codes.
inline Tensor decoded_signed(const Grid& grid, const Tensor& x) {
  const int64_t rows = grid->units(), n = x.size() / rows;
  Tensor y(x.shape);
  std::vector<int8_t> codes(static_cast<size_t>(n));
  for (int64_t r = 0; r < rows; ++r) {
    grid->code_signed(x.data + r * n, n, r, codes.data());
    for (int64_t i = 0; i < n; ++i)
      y[r * n + i] = grid->plane_scale(0, r) * static_cast<float>(codes[static_cast<size_t>(i)]);
  }
  return y;
}

// Values of both signs over some orders of magnitude, among them 0 and values far outside any grid.
inline Tensor spread(Shape shape, uint32_t seed, float size = 1) {
  Tensor x = random(std::move(shape), seed);
  for (int64_t i = 0; i < x.size(); ++i) x[i] *= size * std::ldexp(1.f, static_cast<int>(i % 17) - 13);
  x[0] = 0, x[1] = 1e30f, x[2] = -1e30f;
  return x;
}

// Are all values of f(i) equal to y[i]? -0 counts as 0.
template <class F>
bool all_equal(const Tensor& y, F f) {
  for (int64_t i = 0; i < y.size(); ++i)
    if (static_cast<double>(y[i]) != static_cast<double>(f(i))) return false;
  return true;
}
inline bool all_equal(const Tensor& a, const Tensor& b) {
  return a.shape == b.shape && all_equal(a, [&](int64_t i) { return b[i]; });
}

}  // namespace bcq::test
