// The kernel sets that tests compare.
#pragma once
#include <vector>

#include "engine/kernels/kernels.h"

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

}  // namespace test
}  // namespace bcq
