#include "engine/grid/uniform.h"

#include <cmath>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

float half_range(int bits) { return std::ldexp(1.f, bits - 1); }

}  // namespace

Grid Uniform::read(const Fields& fields) {
  const auto& delta = scales_field(fields, "intervals");
  return Uniform{bits_field(fields), delta.size() > 1 ? static_cast<int>(field<int64_t>(fields, "axis")) : 0, delta};
}

Fields Uniform::describe() const {
  Fields fields = {{"bits", bits}, {"intervals", delta}};
  if (units() > 1) fields["axis"] = along;
  return fields;
}

void Uniform::fake_quantize(const Tensor& x, Tensor& y) const {
  const float m = half_range(bits);
  map_units(x, y, along, units(), [&](int64_t unit, const float* a, float* b, int64_t n) {
    kernels().fake_uniform(a, b, n, delta[at(unit)], -m, m - 1);
  });
}

double Uniform::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * bits + 32.0 * static_cast<double>(delta.size());
}

void Uniform::code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t) const {
  const float m = half_range(bits);
  kernels().code_uniform(x, codes, n, plane_scale(0, unit), -m, m - 1, offset(unit));
}

void Uniform::code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const {
  const float m = half_range(bits);
  kernels().code_uniform(x, reinterpret_cast<uint8_t*>(codes), n, plane_scale(0, unit), -m, m - 1, 0);
}

}  // namespace bcq
