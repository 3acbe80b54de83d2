#include "engine/grid/table.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {

Table::Table(int b, float scale, int32_t zero, std::vector<uint8_t> levels) : GridKind(b) {
  std::sort(levels.begin(), levels.end());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  require(b >= 1 && b <= 8 && !levels.empty() && levels.size() <= size_t{1} << b, "a table of %d levels for %d bits",
          levels.size(), b);
  require(zero >= 0 && zero <= 255, "a table behind an 8-bit grid of zero point %d: it has to lie in 0 to 255", zero);
  Levels part{scale, zero, std::move(levels)};
  size_t i = 0;
  for (int u = 0; u < 256; ++u) {
    while (i + 1 < part.of.size() && part.of[i + 1] - u < u - part.of[i]) ++i;
    part.nearest[static_cast<size_t>(u)] = part.of[i];
  }
  parts.push_back(std::move(part));
}

Table::Table(int a, const std::vector<Table>& of) : GridKind(of.at(0).bits), along(a) {
  for (const Table& part : of) {
    require(part.bits == bits && part.units() == 1, "tables of parts need the same bits and one unit each");
    parts.push_back(part.parts[0]);
  }
}

// Levels of all parts one after the other, `counts` of each.
Grid Table::read(const Fields& fields) {
  const auto &scales = scales_field(fields, "scale"), &zeros = field<std::vector<float>>(fields, "zero");
  const auto &counts = field<std::vector<float>>(fields, "counts"), &all = field<std::vector<float>>(fields, "levels");
  require_input(!scales.empty() && scales.size() == zeros.size() && scales.size() == counts.size(),
                "%d scales, %d zero points and %d counts of levels", scales.size(), zeros.size(), counts.size());
  const auto is_code = [](float x) { return x >= 0 && x <= 255 && x == std::nearbyint(x); };
  std::vector<Table> parts;
  size_t begin = 0;
  for (size_t i = 0; i < scales.size(); ++i) {
    require_input(is_code(zeros[i]), "a zero point of %g is no 8-bit code", zeros[i]);
    require_input(counts[i] == 256 || is_code(counts[i]), "a count of %g levels", counts[i]);
    require_input(counts[i] >= 1 && begin + static_cast<size_t>(counts[i]) <= all.size(),
                  "%d levels are fewer than their counts", all.size());
    std::vector<uint8_t> levels;
    for (const size_t end = begin + static_cast<size_t>(counts[i]); begin < end; ++begin) {
      require_input(is_code(all[begin]), "a level of %g is no 8-bit code", all[begin]);
      levels.push_back(static_cast<uint8_t>(all[begin]));
    }
    require_input(bits_field(fields) <= 8 && levels.size() <= size_t{1} << bits_field(fields),
                  "%d levels are too many for %d bits", levels.size(), bits_field(fields));
    require_input(std::adjacent_find(levels.begin(), levels.end(), std::greater_equal<>()) == levels.end(),
                  "levels that do not rise");
    parts.emplace_back(bits_field(fields), scales[i], static_cast<int32_t>(zeros[i]), levels);
  }
  require_input(begin == all.size(), "%d levels are more than their counts", all.size());
  return Table(parts.size() > 1 ? static_cast<int>(field<int64_t>(fields, "axis")) : 0, parts);
}

Fields Table::describe() const {
  std::vector<float> scales, zeros, counts, levels;
  for (const Levels& part : parts) {
    scales.push_back(part.scale);
    zeros.push_back(static_cast<float>(part.zero));
    counts.push_back(static_cast<float>(part.of.size()));
    levels.insert(levels.end(), part.of.begin(), part.of.end());
  }
  Fields fields = {{"bits", bits}, {"scale", scales}, {"zero", zeros}, {"counts", counts}, {"levels", levels}};
  if (units() > 1) fields["axis"] = along;
  return fields;
}

void Table::fake_quantize(const Tensor& x, Tensor& y) const {
  std::vector<std::array<float, 256>> values(parts.size());
  for (size_t p = 0; p < parts.size(); ++p)
    for (size_t u = 0; u < 256; ++u)
      values[p][u] = parts[p].scale * static_cast<float>(parts[p].nearest[u] - parts[p].zero);
  map_units(x, y, along, units(), [&](int64_t unit, const float* a, float* b, int64_t n) {
    const Levels& part = at(unit);
    const std::array<float, 256>& value = values[static_cast<size_t>(unit)];
    for_parts(n, 1024, [&](int64_t begin, int64_t end) {
      uint8_t codes[1024];
      kernels().code_uniform(a + begin, codes, end - begin, part.scale, static_cast<float>(-part.zero),
                             static_cast<float>(255 - part.zero), part.zero);
      for (int64_t i = begin; i < end; ++i) b[i] = std::isnan(a[i]) ? a[i] : value[codes[i - begin]];
    });
  });
}

double Table::parameter_bits() const {
  double bits_of_tables = 0;
  for (const Levels& part : parts) bits_of_tables += 32 + 8 + 8 * static_cast<double>(part.of.size());
  return bits_of_tables;
}

bool Table::is_signed() const {
  return std::all_of(parts.begin(), parts.end(),
                     [](const Levels& p) { return p.of.front() - p.zero >= -128 && p.of.back() - p.zero <= 127; });
}

void Table::code(const float* x, int64_t n, int64_t unit, uint8_t* codes, int64_t) const {
  const Levels& part = at(unit);
  kernels().code_uniform(x, codes, n, part.scale, static_cast<float>(-part.zero), static_cast<float>(255 - part.zero),
                         part.zero);
  kernels().look_up(part.nearest.data(), 256, codes, codes, n);
}

void Table::code_signed(const float* x, int64_t n, int64_t unit, int8_t* codes) const {
  code(x, n, unit, reinterpret_cast<uint8_t*>(codes), 0);
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(codes[i] - at(unit).zero);
}

}  // namespace bcq
