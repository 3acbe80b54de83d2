// The micro-kernel of the integer products: a tile of sums u8 x s8 -> s32.
//
// Unlike the float kernels this one is written for each instruction set, because no compiler finds the
// instructions; integers need no care for the order of sums. 255 * 128 * 4 fits easily what one step adds, and
// gemm_int8.h bounds the depth so that the sum of all steps fits too.
#pragma once
#include "engine/kernels/kernels.h"
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

// Four codes of a row as one word.
[[maybe_unused]] int32_t four_codes(const uint8_t* a) {
  int32_t word;
  std::memcpy(&word, a, sizeof word);
  return word;
}

// A tile of kRows rows.
#if defined(__AVX512VNNI__)

constexpr int kMostRows = kInt8Rows;  // 28 sums, two blocks of columns and one row's codes: 31 registers

template <int kRows>
void int8_micro_kernel(const Int8Tile& t) {
  __m512i sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = t.start ? _mm512_loadu_si512(t.start) : _mm512_setzero_si512();
    sum[r][1] = t.start ? _mm512_loadu_si512(t.start + 16) : _mm512_setzero_si512();
  }
  const uint8_t* a = t.a;
  const int8_t* panel = t.panel;
  for (int64_t g = 0; g < t.groups; ++g, a += 4, panel += 4 * kInt8Panel) {
    const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i codes = _mm512_set1_epi32(four_codes(a + r * t.a_stride));
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], codes, left);
      sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], codes, right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_si512(t.c + r * t.c_stride, sum[r][0]);
    _mm512_storeu_si512(t.c + r * t.c_stride + 16, sum[r][1]);
  }
}

#elif defined(__AVX2__)

constexpr int kMostRows = 4;

// vpmaddubsw would saturate: bytes 0 and 2 of every word of four, then bytes 1 and 3, are multiplied as 16-bit numbers.
template <int kRows>
void int8_micro_kernel(const Int8Tile& t) {
  const __m256i low = _mm256_set1_epi16(255);
  for (int half = 0; half < 2; ++half) {
    const int8_t* panel = t.panel + 64 * half;
    __m256i sum[kRows][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 2; ++j) {
        sum[r][j] = _mm256_setzero_si256();
        if (t.start) sum[r][j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.start + 16 * half + 8 * j));
      }
    for (int64_t g = 0; g < t.groups; ++g) {
      __m256i even[2], odd[2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const auto* at = reinterpret_cast<const __m256i*>(panel + g * 4 * kInt8Panel + 32 * j);
        const __m256i codes = _mm256_loadu_si256(at);
        even[j] = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
        odd[j] = _mm256_srai_epi16(codes, 8);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i codes = _mm256_set1_epi32(four_codes(t.a + r * t.a_stride + 4 * g));
        const __m256i a_even = _mm256_and_si256(codes, low), a_odd = _mm256_srli_epi16(codes, 8);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
          sum[r][j] = _mm256_add_epi32(
              sum[r][j], _mm256_add_epi32(_mm256_madd_epi16(a_even, even[j]), _mm256_madd_epi16(a_odd, odd[j])));
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 2; ++j)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(t.c + r * t.c_stride + 16 * half + 8 * j), sum[r][j]);
  }
}

#else

constexpr int kMostRows = 1;

template <int kRows>
void int8_micro_kernel(const Int8Tile& t) {
  uint32_t sum[kInt8Panel] = {};  // which wraps around on its way, as vectors do
  if (t.start) std::memcpy(sum, t.start, sizeof sum);
  const int8_t* panel = t.panel;
  for (int64_t g = 0; g < t.groups; ++g, panel += 4 * kInt8Panel)
    for (int64_t j = 0; j < kInt8Panel; ++j)
      for (int k = 0; k < 4; ++k) sum[j] += static_cast<uint32_t>(t.a[4 * g + k] * panel[4 * j + k]);
  std::memcpy(t.c, sum, sizeof sum);
}

#endif

void int8_tile(const Int8Tile& t) {
  for (int r = 0; r < t.rows; r += kMostRows) {
    Int8Tile part = t;
    part.a += r * t.a_stride;
    part.c += r * t.c_stride;
    with_constant<kMostRows>(t.rows - r, [&](auto rows) { int8_micro_kernel<rows>(part); });
  }
}

}  // namespace
}  // namespace bcq
