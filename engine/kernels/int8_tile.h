// The innermost loop of the integer products: a tile of sums u8 x s8 -> s32. Part of kernels_impl.h.
//
// Unlike the float kernels this one is written for each instruction set, because no compiler finds the
// instructions; integers need no care for the order of sums. 255 * 128 * 4 fits easily what one step adds, and
// int8.h bounds the depth so that the sum of all steps fits too.
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include <cstdint>
#include <cstring>

#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

// Four codes of a row as one word.
[[maybe_unused]] int32_t four_codes(const uint8_t* a) {
  int32_t word;
  std::memcpy(&word, a, sizeof word);
  return word;
}

// c[r, 0..32) = start + sum over k of a[r, k] panel[k / 4, ., k % 4] for kRows rows.
#if defined(__AVX512VNNI__)

constexpr int kMostRows = kInt8Rows;  // 28 sums, two blocks of columns and one row's codes: 31 registers

template <int kRows>
void tile(const uint8_t* a, int64_t stride, const int8_t* panel, int64_t groups, const int32_t* start, int32_t* c,
          int64_t ldc) {
  __m512i sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = start ? _mm512_loadu_si512(start) : _mm512_setzero_si512();
    sum[r][1] = start ? _mm512_loadu_si512(start + 16) : _mm512_setzero_si512();
  }
  for (int64_t g = 0; g < groups; ++g, a += 4, panel += 4 * kInt8Panel) {
    const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i codes = _mm512_set1_epi32(four_codes(a + r * stride));
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], codes, left);
      sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], codes, right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_si512(c + r * ldc, sum[r][0]);
    _mm512_storeu_si512(c + r * ldc + 16, sum[r][1]);
  }
}

#elif defined(__AVX2__)

constexpr int kMostRows = 4;

// vpmaddubsw would saturate: bytes 0 and 2 of every word of four, then bytes 1 and 3, are multiplied as 16-bit numbers.
template <int kRows>
void tile(const uint8_t* a, int64_t stride, const int8_t* panel, int64_t groups, const int32_t* start, int32_t* c,
          int64_t ldc) {
  const __m256i low = _mm256_set1_epi16(255);
  for (int half = 0; half < 2; ++half, panel += 64, c += 16) {
    __m256i sum[kRows][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 2; ++j) {
        sum[r][j] = _mm256_setzero_si256();
        if (start) sum[r][j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + 16 * half + 8 * j));
      }
    for (int64_t g = 0; g < groups; ++g) {
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
        const __m256i codes = _mm256_set1_epi32(four_codes(a + r * stride + 4 * g));
        const __m256i a_even = _mm256_and_si256(codes, low), a_odd = _mm256_srli_epi16(codes, 8);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
          sum[r][j] = _mm256_add_epi32(
              sum[r][j], _mm256_add_epi32(_mm256_madd_epi16(a_even, even[j]), _mm256_madd_epi16(a_odd, odd[j])));
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 2; ++j) _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * ldc + 8 * j), sum[r][j]);
  }
}

#else

constexpr int kMostRows = 1;

template <int kRows>
void tile(const uint8_t* a, int64_t, const int8_t* panel, int64_t groups, const int32_t* start, int32_t* c, int64_t) {
  uint32_t sum[kInt8Panel] = {};  // which wraps around on its way, as vectors do
  if (start) std::memcpy(sum, start, sizeof sum);
  for (int64_t g = 0; g < groups; ++g, a += 4, panel += 4 * kInt8Panel)
    for (int64_t j = 0; j < kInt8Panel; ++j)
      for (int k = 0; k < 4; ++k) sum[j] += static_cast<uint32_t>(a[k] * panel[4 * j + k]);
  std::memcpy(c, sum, sizeof sum);
}

#endif

template <int kRows>
void tile_of(int rows, const uint8_t* a, int64_t stride, const int8_t* panel, int64_t groups, const int32_t* start,
             int32_t* c, int64_t ldc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kRows - 1>(rows, a, stride, panel, groups, start, c, ldc);
  }
  tile<kRows>(a, stride, panel, groups, start, c, ldc);
}

void int8_tile(int rows, const uint8_t* a, int64_t stride, const int8_t* panel, int64_t groups, const int32_t* start,
               int32_t* c, int64_t ldc) {
  for (; rows > 0; rows -= kMostRows, a += kMostRows * stride, c += kMostRows * ldc)
    tile_of<kMostRows>(rows < kMostRows ? rows : kMostRows, a, stride, panel, groups, start, c, ldc);
}

}  // namespace
}  // namespace bcq
