#include "engine/grid/log_grid.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

// The bits of the least float v with round(-log2(v / scale) / step) <= k, half to even, at least FLT_MIN.
int32_t edge_bits(float scale, double step, int k) {
  const double edge = static_cast<double>(scale) * std::exp2(-(k + 0.5) * step);
  float v = static_cast<float>(edge);
  if (v < edge || (v == edge && k % 2 == 1)) v = std::nextafter(v, std::numeric_limits<float>::infinity());
  v = std::max(v, FLT_MIN);
  int32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

constexpr int kDenominator = 37;  // of AdaLog's exponents

int checked(int base) {
  require(base >= 1 && base <= AdaLog::kMostBase, "an AdaLog grid of base %d/37: 1 to %d are possible", base,
          AdaLog::kMostBase);
  return base;
}

}  // namespace

LogGrid::LogGrid(int b, float s, double ratio, bool extra, float added)
    : GridKind(b), scale(s), shift(added), step(ratio), extra_zero(extra) {
  require(b >= 1 && b <= 8, "a logarithmic grid of %d bits: 1 to 8 are possible", b);
  require(s > 0 && std::isfinite(s), "a logarithmic grid of scale %g", s);
  for (int k = 0; k < count(); ++k) edges_.push_back(edge_bits(s, ratio, k));
}

void LogGrid::set_values(const std::vector<double>& values) {
  values_.assign(values.begin(), values.end());
  values_.push_back(0);
}

void LogGrid::set_planes(const std::vector<std::vector<uint8_t>>& codes, std::array<float, 2> scales) {
  codes_ = codes;
  plane_scale_ = scales;
  values_.assign(static_cast<size_t>(count()) + 1, 0.f);
  for (size_t p = 0; p < codes_.size(); ++p) {
    for (size_t k = 0; k < codes_[p].size(); ++k) values_[k] += scales[p] * codes_[p][k];
    codes_[p].resize((codes_[p].size() + 15) / 16 * 16, 0);
  }
}

void LogGrid::fake_quantize(const Tensor& x, Tensor& y) const {
  map_chunks(x.data, y.data, x.size(), [&](const float* a, float* b, int64_t n) {
    for_parts(n, 1024, [&](int64_t begin, int64_t end) {
      uint8_t levels[1024];
      kernels().count_edges(a + begin, end - begin, shift, edges_.data(), count(), levels);
      for (int64_t i = begin; i < end; ++i) b[i] = std::isnan(a[i]) ? a[i] : values_[levels[i - begin]] - shift;
    });
  });
}

double LogGrid::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * (extra_zero ? std::log2((1 << bits) + 1) : bits) + 32;
}

void LogGrid::code(const float* x, int64_t n, int64_t, uint8_t* codes, int64_t stride) const {
  if (codes_.empty()) return GridKind::code(x, n, 0, codes, stride);
  kernels().count_edges(x, n, shift, edges_.data(), count(), codes);
  for (size_t p = codes_.size(); p-- > 0;)  // the first plane in place of the levels
    kernels().look_up(codes_[p].data(), static_cast<int>(codes_[p].size()), codes,
                      codes + static_cast<int64_t>(p) * stride, n);
}

Log2::Log2(int b, float s, bool extra) : LogGrid(b, s, 1, extra) {
  std::vector<double> values;
  std::vector<uint8_t> first, second;
  for (int k = 0; k < count(); ++k) {
    values.push_back(std::ldexp(static_cast<double>(s), -k));
    const auto code = static_cast<uint8_t>(128 >> k % 8);
    first.push_back(k < 8 ? code : 0);
    second.push_back(k < 8 ? 0 : code);
  }
  if (b <= 3)
    set_planes({first}, {s / 128});
  else if (b == 4)
    set_planes({first, second}, {s / 128, s / 32768});
  else
    set_values(values);
}

Grid Log2::read(const Fields& fields, bool extra_zero) {
  return Log2{bits_field(fields), scale_field(fields, "scale"), extra_zero};
}

LogSqrt2::LogSqrt2(int b, float s, bool extra) : LogGrid(b, s, 0.5, extra) {
  const float odd_scale = s * 1.41421356f;
  std::vector<double> values;
  std::vector<uint8_t> even, odd;
  for (int k = 0; k < count(); ++k) {
    const int half = (k + 1) / 2, shift = std::min(half, 30);
    values.push_back(std::ldexp(static_cast<double>(k % 2 ? odd_scale : s), -half));
    even.push_back(static_cast<uint8_t>(k % 2 ? 0 : 128 >> shift));
    odd.push_back(static_cast<uint8_t>(k % 2 ? 256 >> shift : 0));
  }
  if (b <= 4)
    set_planes({even, odd}, {s / 128, odd_scale / 256});
  else
    set_values(values);
}

Grid LogSqrt2::read(const Fields& fields, bool extra_zero) {
  return LogSqrt2{bits_field(fields), scale_field(fields, "scale"), extra_zero};
}

AdaLog::AdaLog(int b, float s, int q, float added, bool extra)
    : LogGrid(b, s, checked(q) / static_cast<double>(kDenominator), extra, added), base(q) {
  const int top = (2 << b) - 2, most = (count() - 1) * q / kDenominator;  // S
  const double unit = std::ldexp(static_cast<double>(s) / top, -most);
  const bool fits = most < 16 && top << most < 1 << 16;
  std::vector<double> values;
  std::vector<std::vector<uint8_t>> codes(fits && top << most < 1 << 8 ? 1 : 2);
  for (int k = 0; k < count(); ++k) {
    const int whole = k * q / kDenominator;
    const double mant = std::nearbyint(std::exp2(-(k * q % kDenominator) / static_cast<double>(kDenominator)) * top);
    values.push_back(std::ldexp(s * mant / top, -whole));
    const int integer = fits ? static_cast<int>(mant) << (most - whole) : 0;
    for (size_t p = 0; p < codes.size(); ++p) codes[p].push_back(static_cast<uint8_t>(integer >> 8 * p));
  }
  if (fits)
    set_planes(codes, {static_cast<float>(unit), static_cast<float>(256 * unit)});
  else
    set_values(values);
}

Grid AdaLog::read(const Fields& fields, bool extra_zero) {
  const int64_t base = field<int64_t>(fields, "base");
  require_input(base >= 1 && base <= kMostBase, "an AdaLog grid of base %d/37: 1 to %d are possible", base, kMostBase);
  return AdaLog{bits_field(fields), scale_field(fields, "scale"), static_cast<int>(base), field<float>(fields, "shift"),
                extra_zero};
}

Fields AdaLog::describe() const {
  Fields all = fields();
  all["base"] = base;
  all["shift"] = shift;
  return all;
}

}  // namespace bcq
