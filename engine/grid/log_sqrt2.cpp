#include "engine/grid/log_sqrt2.h"

#include <algorithm>
#include <cmath>

#include "engine/grid/parts.h"

namespace bcq {

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

}  // namespace bcq
