// Chooses the kernels, once: the best set that runs here, or the one BCQ_ISA names.
#include <cpuid.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"

namespace bcq {

// Defined by kernels_impl.h, once per instruction set.
extern const Kernels kernels_plain;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avxvnni;
extern const Kernels kernels_avx512;

namespace {

bool has_f16c() {  // clang 14 has no name for it
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx_vnni() {  // nor for this; its registers are those of AVX2
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVXVNNI);
}

struct Sets {
  const Kernels* set[4] = {};
  int count = 0;

  Sets() {
    // Asks the processor, and the operating system whether it saves the registers.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    set[count++] = &kernels_plain;
    if (avx2) set[count++] = &kernels_avx2;
    if (avx2 && has_avx_vnni()) set[count++] = &kernels_avxvnni;
    if (avx512) set[count++] = &kernels_avx512;
  }
};

const Sets& sets() {
  static const Sets found;
  return found;
}

const Kernels& choose() {
  const char* wanted = std::getenv("BCQ_ISA");
  const Sets& found = sets();
  if (wanted == nullptr || *wanted == '\0') return *found.set[found.count - 1];
  std::string names;
  for (int i = 0; i < found.count; ++i) {
    if (std::strcmp(wanted, found.set[i]->name) == 0) return *found.set[i];
    names += (i ? ", " : "") + std::string(found.set[i]->name);
  }
  throw UsageError(format("BCQ_ISA=%s cannot run here: this machine runs %s", wanted, names));
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const Kernels* const* all_kernels(int* count) {
  *count = sets().count;
  return sets().set;
}

}  // namespace bcq
