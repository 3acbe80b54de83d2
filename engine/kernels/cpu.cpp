// Chooses the kernels: asks the processor (cpuid) what it has and the operating system
// (xgetbv) which registers it saves, once. A set that cannot run here is
// never offered; BCQ_ISA may force a lesser one, and is refused when it names anything else.
#include <cpuid.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"

namespace bcq {

// Defined by kernels_impl.h, once per instruction set.
extern const Kernels kernels_plain;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

namespace {

struct Features {
  bool avx2 = false, avx512 = false;
};

// Bits of XCR0: the register files the operating system saves on a context switch.
constexpr uint64_t kSavesYmm = 0x6;   // xmm and ymm
constexpr uint64_t kSavesZmm = 0xe6;  // those, mask registers and both halves of zmm

uint64_t saved_registers() {
  uint32_t low, high;
  // As bytes, because the intrinsic needs -mxsave for the whole file.
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

Features detect() {
  Features found;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool osxsave = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C;
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const uint64_t saved = saved_registers();
  found.avx2 = (saved & kSavesYmm) == kSavesYmm && (b & bit_AVX2) && fma && f16c;
  const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  constexpr unsigned kVnni = 1u << 11;  // of ecx; the compilers spell its name differently
  found.avx512 = found.avx2 && (saved & kSavesZmm) == kSavesZmm && (b & needed) == needed && (c & kVnni);
  return found;
}

struct Sets {
  const Kernels* set[3] = {};
  int count = 0;

  Sets() {
    const Features features = detect();
    set[count++] = &kernels_plain;
    if (features.avx2) set[count++] = &kernels_avx2;
    if (features.avx512) set[count++] = &kernels_avx512;
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
