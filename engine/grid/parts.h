// What the files of the grids share.
#pragma once
#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/grid/grid.h"

namespace bcq {

// y[i] = f(x[i]), chunk by chunk on all threads: f(x, y, n).
template <class F>
void map_chunks(const float* x, float* y, int64_t size, F f) {
  for_chunks(size, [&](int64_t b, int64_t e) { f(x + b, y + b, e - b); });
}

// The same for units along an axis of x: f(unit, x, y, n). Error when they do not divide it.
template <class F>
void map_units(const Tensor& x, Tensor& y, int axis, int64_t units, F f) {
  require(units > 0 && axis < x.rank() && x.dim(axis) % units == 0, "%d steps do not fit dimension %d of %s", units,
          axis, to_string(x.shape));
  int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= x.dim(i);
  if (units == 1) outer = 1;
  const int64_t part = x.size() / outer / units;
  parallel_for(outer * units == 1 ? 0 : outer * units,
               [&](int64_t i) { f(i % units, x.data + i * part, y.data + i * part, part); });
  if (outer * units == 1) map_chunks(x.data, y.data, part, [&](const float* a, float* b, int64_t n) { f(0, a, b, n); });
}

// A field of a description; InputError when it is missing or of another type.
template <class T>
const T& field(const Fields& fields, const char* name) {
  const auto found = fields.find(name);
  const T* value = found == fields.end() ? nullptr : std::get_if<T>(&found->second);
  require_input(value != nullptr, "a grid needs a field \"%s\" of %s", name,
                std::is_same_v<T, int64_t> ? "an integer"
                : std::is_same_v<T, float> ? "a number"
                                           : "an array of numbers");
  return *value;
}
// Scales: one at least, all positive.
inline const std::vector<float>& scales_field(const Fields& fields, const char* name) {
  const auto& scales = field<std::vector<float>>(fields, name);
  for (const float s : scales) require_input(s > 0, "a grid with a %s of %g, which is not positive", name, s);
  require_input(!scales.empty(), "a grid needs a %s", name);
  return scales;
}
inline float scale_field(const Fields& fields, const char* name) {
  const float scale = field<float>(fields, name);
  require_input(scale > 0, "a grid with a %s of %g, which is not positive", name, scale);
  return scale;
}
inline int bits_field(const Fields& fields) {
  const int64_t bits = field<int64_t>(fields, "bits");
  require_input(bits >= 1 && bits <= 16, "a grid of %d bits: 1 to 16 are possible", bits);
  return static_cast<int>(bits);
}

}  // namespace bcq
