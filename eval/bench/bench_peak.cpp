#include <malloc.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/kernels/kernels.h"
#include "eval/bench/bench.h"

namespace bcq {
namespace {

constexpr int64_t kRounds = 1000000;
constexpr int kChains = 12;  // independent sums: enough for a latency of six and two instructions a cycle

// One core's loop over `one`, the instructions for each sum; in assembly, because compilers copy sums between
// registers. The sums are 0 and stay so.
#define BCQ_LOOP(one)                                                                                                \
  int64_t rounds = kRounds;                                                                                          \
  __asm__ volatile("vzeroall\n1:\n" one("1") one("2") one("3") one("4") one("5") one("6") one("7") one("8") one("9") \
                       one("10") one("11") one("12") "dec %0\njnz 1b\nvzeroupper"                                    \
                   : "+r"(rounds)                                                                                    \
                   :                                                                                                 \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",  \
                     "xmm11", "xmm12", "xmm13", "xmm14")

#define BCQ_ONE(i) "vpdpbusd %%zmm0, %%zmm0, %%zmm" i "\n"
void int8_avx512() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#define BCQ_ONE(i) "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm" i "\n"
void int8_avxvnni() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
// Of codes without outliers (engine/kernels/int8_tile.h): four products of a column in 16 bits, then in 32.
#define BCQ_ONE(i)                                                                                    \
  "vpmaddubsw %%ymm0, %%ymm0, %%ymm13\nvpmaddubsw %%ymm0, %%ymm0, %%ymm14\nvpaddw %%ymm14, %%ymm13, " \
  "%%ymm13\nvpmaddwd %%ymm0, %%ymm13, %%ymm13\nvpaddd %%ymm13, %%ymm" i ", %%ymm" i "\n"
void int8_avx2() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#define BCQ_ONE(i) "vfmadd231ps %%zmm0, %%zmm0, %%zmm" i "\n"
void float_avx512() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#define BCQ_ONE(i) "vfmadd231ps %%ymm0, %%ymm0, %%ymm" i "\n"
void float_avx2() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#undef BCQ_LOOP

double rate(void (*loop)(), double per_sum) {
  set_threads(threads());  // that none is left out because of what was before
  const Timer timer;
  parallel_for(threads(), [&](int64_t) { loop(); });
  return static_cast<double>(threads()) * static_cast<double>(kRounds) * kChains * per_sum / timer.seconds();
}

bool runs(const char* isa) { return std::strcmp(kernels().name, isa) == 0; }

}  // namespace

double float_peak() {
  if (runs("avx512")) return rate(float_avx512, 16);
  return runs("avx2") || runs("avx-vnni") ? rate(float_avx2, 8) : 0;
}
double int8_peak() {
  if (runs("avx512")) return rate(int8_avx512, 64);
  if (runs("avx-vnni")) return rate(int8_avxvnni, 32);
  return runs("avx2") ? rate(int8_avx2, 64) : 0;
}

void reset_peak_memory() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << 5;
}

double peak_memory_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  return 0;
}

}  // namespace bcq
