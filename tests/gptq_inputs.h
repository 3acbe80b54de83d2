// What the tests of GPTQ share: its definitions in double, inputs whose columns depend
// on each other, and sinks that expect silence.
#pragma once
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "quant/gptq.h"
#include "tests/support.h"

namespace bcq::test {

using Codes = std::vector<uint8_t>;

inline size_t index(int64_t i) { return static_cast<size_t>(i); }

inline const Warn kNoWarning = [](const std::string& message) { FAIL_CHECK("unexpected warning: " << message); };
inline const Progress kSilent = [](const std::string&, double, double) {};

inline GptqOptions options(int bits, int64_t groupsize = -1, int64_t blocksize = 128) {
  GptqOptions o;
  o.bits = bits;
  o.groupsize = groupsize;
  o.blocksize = blocksize;
  return o;
}

// 2 / windows Σ x xᵀ by its definition.  x [windows, T, in]
inline std::vector<double> hessian_of(const Tensor& x) {
  const int64_t n = x.dim(-1);
  std::vector<double> h(index(n * n), 0.0);
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        h[index(i * n + j)] +=
            2.0 / static_cast<double>(x.dim(0)) * static_cast<double>(x[t * n + i]) * static_cast<double>(x[t * n + j]);
  return h;
}

// Σ over tokens of || x Wᵀ - x Ŵᵀ ||²
inline double output_error(const Tensor& x, const Tensor& w, const Tensor& w_hat) {
  const int64_t n = w.dim(1);
  double total = 0;
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t r = 0; r < w.dim(0); ++r) {
      double e = 0;
      for (int64_t c = 0; c < n; ++c) e += static_cast<double>(x[t * n + c]) * (w[r * n + c] - w_hat[r * n + c]);
      total += e * e;
    }
  return total;
}

// Inputs whose columns depend on each other and differ in size.  [windows, T, n]
inline Tensor correlated(int64_t windows, int64_t T, int64_t n, uint32_t seed) {
  Tensor x = random({windows, T, n}, seed);
  const Tensor common = random({windows, T, 3}, seed + 1), mix = random({3, n}, seed + 2, 2);
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t c = 0; c < n; ++c)
      for (int64_t k = 0; k < 3; ++k) x[t * n + c] += common[t * 3 + k] * mix[k * n + c];
  return x;
}

inline void check_values(const Tensor& got, const std::vector<double>& want) {
  REQUIRE(got.size() == static_cast<int64_t>(want.size()));
  for (int64_t i = 0; i < got.size(); ++i)
    CHECK_MESSAGE(std::abs(got[i] - want[index(i)]) < 2e-6,
                  "entry " << i << ": " << got[i] << ", not " << want[index(i)]);
}

inline bool same(const QuantizedWeight& a, const QuantizedWeight& b) {
  return a.codes == b.codes && same_bits(a.values, b.values) && same_bits(a.grid.scale, b.grid.scale) &&
         same_bits(a.grid.zero, b.grid.zero);
}

}  // namespace bcq::test
