// The kernel sets that tests compare.
#pragma once
#include <vector>

#include "engine/kernels/kernels.h"
#include "tests/support.h"

namespace bcq {

extern const Kernels kernels_avxvnni_reference;  // avxvnni_reference.cpp; needs AVX2

namespace test {

// Every set this machine can run, "plain" first, and that of AVX-VNNI over a reference of its instruction.
inline std::vector<const Kernels*> kernel_sets() {
  int count = 0;
  const Kernels* const* all = all_kernels(&count);
  std::vector<const Kernels*> sets(all, all + count);
  if (count > 1) sets.push_back(&kernels_avxvnni_reference);  // the second is AVX2
  return sets;
}

using Row = std::vector<float>;

inline const Kernels& plain() {
  int count = 0;
  return *all_kernels(&count)[0];
}

inline Row random_row(int64_t n, uint32_t seed, double size) {
  const Tensor t = random({n}, seed, size);
  return {t.data, t.data + n};
}

}  // namespace test
}  // namespace bcq
