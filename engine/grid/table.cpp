#include "engine/grid/table.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {

Table::Table(int b, float s, int32_t z, std::vector<uint8_t> of)
    : GridKind(b), scale(s), zero(z), levels(std::move(of)) {
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  require(b >= 1 && b <= 8 && !levels.empty() && levels.size() <= size_t{1} << b, "a table of %d levels for %d bits",
          levels.size(), b);
  require(z >= 0 && z <= 255, "a table behind an 8-bit grid of zero point %d: it has to lie in 0 to 255", z);
  size_t at = 0;
  for (int u = 0; u < 256; ++u) {
    while (at + 1 < levels.size() && levels[at + 1] - u < u - levels[at]) ++at;
    nearest_[static_cast<size_t>(u)] = levels[at];
  }
}

Grid Table::read(const Fields& fields) {
  std::vector<uint8_t> levels;
  for (const float level : field<std::vector<float>>(fields, "levels")) {
    require_input(level >= 0 && level <= 255 && level == std::nearbyint(level), "a level of %g is no 8-bit code",
                  level);
    levels.push_back(static_cast<uint8_t>(level));
  }
  const int64_t zero = field<int64_t>(fields, "zero");
  require_input(zero >= 0 && zero <= 255, "a zero point of %d is no 8-bit code", zero);
  return Table{bits_field(fields), field<float>(fields, "scale"), static_cast<int32_t>(zero), levels};
}

Fields Table::describe() const {
  return {
      {"bits", bits}, {"scale", scale}, {"zero", zero}, {"levels", std::vector<float>(levels.begin(), levels.end())}};
}

void Table::fake_quantize(const Tensor& x, Tensor& y) const {
  std::array<float, 256> value;
  for (size_t u = 0; u < 256; ++u) value[u] = scale * static_cast<float>(nearest_[u] - zero);
  map_chunks(x.data, y.data, x.size(), [&](const float* a, float* b, int64_t n) {
    for_parts(n, 1024, [&](int64_t begin, int64_t end) {
      uint8_t codes[1024];
      kernels().code_uniform(a + begin, codes, end - begin, scale, static_cast<float>(-zero),
                             static_cast<float>(255 - zero), zero);
      for (int64_t i = begin; i < end; ++i) b[i] = std::isnan(a[i]) ? a[i] : value[codes[i - begin]];
    });
  });
}

double Table::storage_bits(const Shape& shape) const {
  return static_cast<double>(numel(shape)) * bits + 32 + 8 + 8 * static_cast<double>(levels.size());
}

void Table::code(const float* x, int64_t n, int64_t, uint8_t* codes, int64_t) const {
  kernels().code_uniform(x, codes, n, scale, static_cast<float>(-zero), static_cast<float>(255 - zero), zero);
  kernels().look_up(nearest_.data(), 256, codes, codes, n);
}

void Table::code_signed(const float* x, int64_t n, int64_t, int8_t* codes) const {
  code(x, n, 0, reinterpret_cast<uint8_t*>(codes), 0);
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(codes[i] - zero);
}

}  // namespace bcq
