#include "engine/grid/asymmetric.h"

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
    const int32_t z = offset(unit);
    kernels().fake_uniform(a, b, n, scale[at(unit)], static_cast<float>(-z), static_cast<float>((1 << bits) - 1 - z));
  });
}

double Asymmetric::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * bits + static_cast<double>(units()) * (32 + bits);
}

bool Asymmetric::all_between(int least, int most) const {
  for (const int32_t z : zero)
    if (-z < least || (1 << bits) - 1 - z > most) return false;
  return true;
}

// Codes less the zero point stay within the bounds that sums of products have (engine/gemm/int8.h).
int Asymmetric::planes() const { return bits <= kInt8Bits && all_between(-255, 255) ? 1 : 0; }

void Asymmetric::code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t) const {
  const int32_t z = offset(unit);
  kernels().code_uniform(x, codes, n, scale[at(unit)], static_cast<float>(-z), static_cast<float>((1 << bits) - 1 - z),
                         z);
}

bool Asymmetric::is_signed() const { return bits <= kInt8Bits && all_between(-128, 127); }

void Asymmetric::code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const {
  const int32_t z = offset(unit);
  kernels().code_uniform(x, reinterpret_cast<uint8_t*>(codes), n, scale[at(unit)], static_cast<float>(-z),
                         static_cast<float>((1 << bits) - 1 - z), 0);
}

}  // namespace bcq
