#include "eval/bench_peak.h"

#include <immintrin.h>
#include <malloc.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "engine/kernels.h"
#include "engine/parallel.h"
#include "engine/timer.h"

namespace bcq {
namespace {

constexpr int64_t kRounds = 1000000;
constexpr int kChains = 10;  // independent sums: enough for a latency of four and two instructions a cycle

// One core's loop. The result keeps the compiler from dropping it, the different starts from computing one chain for
// all.
#define BCQ_CHAINS(type, start, step)                                         \
  type sum[kChains];                                                          \
  _Pragma("GCC unroll 10") for (int i = 0; i < kChains; ++i) sum[i] = start;  \
  for (int64_t n = 0; n < kRounds; ++n) {                                     \
    _Pragma("GCC unroll 10") for (int i = 0; i < kChains; ++i) sum[i] = step; \
  }                                                                           \
  for (int i = 1; i < kChains; ++i) sum[0] = sum[0] + sum[i];                 \
  float first;                                                                \
  std::memcpy(&first, &sum[0], sizeof first);                                 \
  return first

__attribute__((target("avx512f,avx512vnni"))) float int8_avx512(int x) {
  const __m512i a = _mm512_set1_epi32(x);
  BCQ_CHAINS(__m512i, _mm512_set1_epi32(i), _mm512_dpbusd_epi32(sum[i], a, a));
}
__attribute__((target("avx2"))) float int8_avx2(int x) {
  const __m256i a = _mm256_set1_epi32(x);
  BCQ_CHAINS(__m256i, _mm256_set1_epi32(i), _mm256_add_epi32(sum[i], _mm256_madd_epi16(sum[i], a)));
}
__attribute__((target("avx512f"))) float float_avx512(int x) {
  const __m512 a = _mm512_set1_ps(static_cast<float>(x));
  BCQ_CHAINS(__m512, _mm512_set1_ps(static_cast<float>(i)), _mm512_fmadd_ps(a, a, sum[i]));
}
__attribute__((target("avx2,fma"))) float float_avx2(int x) {
  const __m256 a = _mm256_set1_ps(static_cast<float>(x));
  BCQ_CHAINS(__m256, _mm256_set1_ps(static_cast<float>(i)), _mm256_fmadd_ps(a, a, sum[i]));
}
#undef BCQ_CHAINS

double rate(float (*loop)(int), double per_instruction) {
  volatile float kept = 0;
  const Timer timer;
  parallel_for(threads(), [&](int64_t i) { kept = loop(static_cast<int>(i)); });
  return static_cast<double>(threads()) * static_cast<double>(kRounds) * kChains * per_instruction / timer.seconds();
}

bool runs(const char* isa) { return std::strcmp(kernels().name, isa) == 0; }

}  // namespace

double float_peak() { return runs("avx512") ? rate(float_avx512, 16) : runs("avx2") ? rate(float_avx2, 8) : 0; }
// AVX2 multiplies 16-bit numbers: 16 products and one addition of their sums an instruction pair.
double int8_peak() { return runs("avx512") ? rate(int8_avx512, 64) : runs("avx2") ? rate(int8_avx2, 16) : 0; }

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
