#include "engine/grid/uniform.h"

#include <cfloat>
#include <cmath>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

constexpr int32_t kMostZero = 1 << 20;  // the kernels round numbers below 2^22

}  // namespace

Asymmetric::Asymmetric(int b, int a, std::vector<float> s, std::vector<int32_t> z)
    : GridKind(b), along(a), scale(std::move(s)), zero(std::move(z)) {
  require(scale.size() == zero.size(), "%d scales, but %d zero points", scale.size(), zero.size());
  for (const int32_t zero_point : zero)
    require(std::abs(zero_point) <= kMostZero, "a zero point of %d: its range is too far from 0", zero_point);
}

Grid Asymmetric::read(const Fields& fields) {
  const auto &scale = scales_field(fields, "scale"), &zero = field<std::vector<float>>(fields, "zero");
  require_input(scale.size() == zero.size(), "%d scales, but %d zero points", scale.size(), zero.size());
  std::vector<int32_t> integers;
  for (const float z : zero) {
    require_input(std::abs(z) <= kMostZero && z == std::nearbyint(z), "a zero point of %g is no small integer", z);
    integers.push_back(static_cast<int32_t>(z));
  }
  const int along = scale.size() > 1 ? static_cast<int>(field<int64_t>(fields, "axis")) : 0;
  return Asymmetric{bits_field(fields), along, scale, integers};
}

Fields Asymmetric::describe() const {
  Fields fields = {{"bits", bits}, {"scale", scale}, {"zero", std::vector<float>(zero.begin(), zero.end())}};
  if (units() > 1) fields["axis"] = along;
  return fields;
}

void Asymmetric::fake_quantize(const Tensor& x, Tensor& y) const {
  map_units(x, y, along, units(), [&](int64_t unit, const float* a, float* b, int64_t n) {
    kernels().fake_uniform(a, b, n, scale[at(unit)], least(unit), most(unit));
  });
}

bool Asymmetric::all_between(int least, int most) const {
  for (const int32_t z : zero)
    if (-z < least || (1 << bits) - 1 - z > most) return false;
  return true;
}

// Codes less the zero point stay within the bounds that sums of products have (engine/gemm/gemm_int8.h).
int Asymmetric::planes() const { return bits <= kInt8Bits && all_between(-255, 255) ? 1 : 0; }

void Asymmetric::code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t) const {
  kernels().code_uniform(x, codes, n, scale[at(unit)], least(unit), most(unit), zero[at(unit)]);
}

bool Asymmetric::is_signed() const { return bits <= kInt8Bits && all_between(-128, 127); }

void Asymmetric::code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const {
  kernels().code_uniform(x, reinterpret_cast<uint8_t*>(codes), n, scale[at(unit)], least(unit), most(unit), 0);
}

Grid Uniform::read(const Fields& fields) {
  const auto& scale = scales_field(fields, "intervals");
  return Uniform{bits_field(fields), scale.size() > 1 ? static_cast<int>(field<int64_t>(fields, "axis")) : 0, scale};
}

Fields Uniform::describe() const {
  Fields fields = {{"bits", bits}, {"intervals", scale}};
  if (units() > 1) fields["axis"] = along;
  return fields;
}

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
