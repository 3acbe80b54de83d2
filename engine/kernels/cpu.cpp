// Chooses the kernels, once: the best set that runs here, or the one BCQ_ISA names.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"

namespace bcq {

// Defined by kernels_impl.h, once per instruction set.
extern const Kernels kernels_plain;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avxvnni;
extern const Kernels kernels_avx512;

void int8_tile_amx(const Int8Tile& tile);  // kernels_amx.cpp

namespace {

bool has_f16c() {  // clang 14 has no name for it
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx_vnni() {  // nor for this; its registers are those of AVX2
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVXVNNI);
}

// A process asks Linux for tile registers before it uses them. Signal frames become larger by it, and stacks for
// signals have to be; where one is too small already the answer is no.
bool has_amx() {
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;  // the two compilers name them differently
  constexpr long kRequest = 0x1023, kTileData = 18;        // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kInt8) &&
         ::syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

Kernels with_amx(Kernels set) {
  set.name = "amx";
  set.int8_tile = int8_tile_amx;
  set.int8_rows = kInt8Block;
  return set;
}

const std::vector<const Kernels*>& sets() {
  static const Kernels kernels_amx = with_amx(kernels_avx512);
  static const std::vector<const Kernels*> found = [] {
    // Asks the processor, and the operating system whether it saves the registers.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    std::vector<const Kernels*> all = {&kernels_plain};
    if (avx2) all.push_back(&kernels_avx2);
    if (avx2 && has_avx_vnni()) all.push_back(&kernels_avxvnni);
    if (avx512) all.push_back(&kernels_avx512);
    if (avx512 && has_amx()) all.push_back(&kernels_amx);
    return all;
  }();
  return found;
}

const Kernels& choose() {
  const char* wanted = std::getenv("BCQ_ISA");
  if (wanted == nullptr || *wanted == '\0') return *sets().back();
  std::string names;
  for (const Kernels* set : sets()) {
    if (std::strcmp(wanted, set->name) == 0) return *set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw UsageError(format("BCQ_ISA=%s cannot run here: this machine runs %s", wanted, names));
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const Kernels* const* all_kernels(int* count) {
  *count = static_cast<int>(sets().size());
  return sets().data();
}

}  // namespace bcq
