#include "engine/grid/adalog.h"

#include <cmath>

#include "engine/grid/parts.h"

namespace bcq {
namespace {

constexpr int kDenominator = 37;

int checked(int base) {
  require(base >= 1 && base <= AdaLog::kMostBase, "an AdaLog grid of base %d/37: 1 to %d are possible", base,
          AdaLog::kMostBase);
  return base;
}

}  // namespace

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
