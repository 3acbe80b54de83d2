#include "engine/grid/affine.h"

#include <algorithm>
#include <cmath>

#include "engine/core/half.h"
#include "engine/core/parallel.h"
#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {

void Affine::fake_quantize(const Tensor& x, Tensor& y) const {
  const int64_t cols = x.dim(1), groups = scale.dim(1);
  const float top = std::ldexp(1.f, bits) - 1;
  parallel_for(x.dim(0), [&](int64_t r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * groups + group_of(c);
      const float s = scale[i], z = zero[i];
      y[r * cols + c] = s * (std::clamp(std::nearbyint(x[r * cols + c] / s) + z, 0.f, top) - z);
    }
  });
}

Grid Affine::read(const Fields& fields) {
  const std::vector<float>&scale = scales_field(fields, "scale"), &zero = field<std::vector<float>>(fields, "zero");
  const int64_t group = field<int64_t>(fields, "group"), rows = static_cast<int64_t>(scale.size());
  const int bits = bits_field(fields);
  require_input(group >= 1 && bits <= 8, "an affine grid of %d bits in groups of %d", bits, group);
  require_input(zero.size() == scale.size(), "%d scales, but %d zero points", scale.size(), zero.size());
  for (const float z : zero)
    require_input(z >= 0 && z < 1 << bits && z == std::nearbyint(z), "a zero point of %g is no code of %d bits", z,
                  bits);
  return Affine{bits, group, Tensor({rows, 1}, scale), Tensor({rows, 1}, zero)};
}

Fields Affine::describe() const {
  require(scale.dim(1) == 1 && column_group.empty(), "an affine grid of groups of %d columns is kept with its codes",
          group);
  const auto values = [](const Tensor& t) { return std::vector<float>(t.data, t.data + t.size()); };
  return {{"bits", bits}, {"group", group}, {"scale", values(scale)}, {"zero", values(zero)}};
}

double Affine::parameter_bits() const {
  return static_cast<double>(scale.size()) * (scale_bits(*this) + bits) +
         32.0 * static_cast<double>(column_group.size());
}

Grid Affine::unit(int64_t u) const {
  return Affine{bits, group, scale.slice(u, u + 1).clone(), zero.slice(u, u + 1).clone(), column_group};
}

bool Affine::is_signed() const {
  const float top = std::ldexp(1.f, bits) - 1;
  return bits <= kInt8Bits && scale.dim(1) == 1 && std::all_of(zero.data, zero.data + zero.size(), [&](float z) {
           return z <= 128 && top - z <= 127 && z == std::nearbyint(z);
         });
}

void Affine::code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const {
  const float z = zero[unit];
  kernels().code_uniform(x, reinterpret_cast<uint8_t*>(codes), n, scale[unit], -z, std::ldexp(1.f, bits) - 1 - z, 0);
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

}  // namespace bcq
