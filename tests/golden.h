// The numbers that golden cases are made of: a tensor of v(k) = ((7919 k²) mod 1009) / 504.5 - 1, row-major, from k =
// first on. Figures of golden cases come from independent NumPy programs and agree with the published code where the
// tests say so.
#pragma once
#include "tests/support.h"

namespace bcq::test {

inline Tensor golden(int64_t first, Shape shape, float by = 1, float plus = 0) {
  Tensor x = Tensor::uninitialized(std::move(shape));
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t k = first + i;
    const auto v = static_cast<float>(static_cast<double>(7919 * k * k % 1009) / 504.5 - 1);
    x[i] = v * by + plus;
  }
  return x;
}

// Whether the first values are these, to half a unit of the sixth decimal place and what float32 adds.
inline bool begins_with(const Tensor& x, const std::vector<double>& want, double within = 2e-6) {
  for (size_t i = 0; i < want.size(); ++i)
    if (std::abs(x[static_cast<int64_t>(i)] - want[i]) > within) return false;
  return true;
}

}  // namespace bcq::test
