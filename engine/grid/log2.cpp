#include "engine/grid/log2.h"

#include <cmath>

#include "engine/grid/parts.h"

namespace bcq {

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

}  // namespace bcq
