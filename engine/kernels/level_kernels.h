// What grids of levels need: which level a value has, and bytes that stand for it.
#pragma once
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

// Of up to 32 values at a time, which stay in registers while all edges pass; four edges a time.
void count_edges(const float* x, int64_t n, float shift, const int32_t* edges, int count, uint8_t* level) {
  constexpr int64_t kBlock = 32;
  for (int64_t first = 0; first < n; first += kBlock) {
    int32_t bits[kBlock], found[kBlock];
    const int64_t some = n - first < kBlock ? n - first : kBlock;
    for (int64_t l = 0; l < some; ++l) bits[l] = static_cast<int32_t>(as_bits(x[first + l] + shift));
    for (int64_t l = some; l < kBlock; ++l) bits[l] = 0;
    for (int64_t l = 0; l < kBlock; ++l) found[l] = 0;
    int k = 0;
    for (; k + 4 <= count; k += 4) {
      const int32_t a = edges[k], b = edges[k + 1], c = edges[k + 2], d = edges[k + 3];
      for (int64_t l = 0; l < kBlock; ++l) found[l] += (bits[l] < a) + (bits[l] < b) + (bits[l] < c) + (bits[l] < d);
    }
    for (; k < count; ++k)
      for (int64_t l = 0; l < kBlock; ++l) found[l] += bits[l] < edges[k];
    for (int64_t l = 0; l < some; ++l) level[first + l] = static_cast<uint8_t>(found[l]);
  }
}

// A shuffle looks up 16 bytes and gives 0 where an index has its highest bit: of a code xor 16 k, plus 0x70 and
// saturated, that is so but for the codes of block k of the table.
void look_up(const uint8_t* table, int size, const uint8_t* x, uint8_t* y, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  constexpr __mmask64 kAll = ~__mmask64{0};
  for (; i + 64 <= n; i += 64) {
    const __m512i codes = _mm512_maskz_loadu_epi8(kAll, x + i);
    __m512i found = _mm512_setzero_si512();
    for (int k = 0; k < size; k += 16) {
      const __m512i block =
          _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + k)));
      const __m512i index =
          _mm512_maskz_adds_epu8(kAll, codes ^ _mm512_set1_epi8(static_cast<char>(k)), _mm512_set1_epi8(0x70));
      found |= _mm512_maskz_shuffle_epi8(kAll, block, index);
    }
    _mm512_mask_storeu_epi8(y + i, kAll, found);
  }
#elif defined(__AVX2__)
  for (; i + 32 <= n; i += 32) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    __m256i found = _mm256_setzero_si256();
    for (int k = 0; k < size; k += 16) {
      const __m256i block = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + k)));
      const __m256i index = _mm256_adds_epu8(codes ^ _mm256_set1_epi8(static_cast<char>(k)), _mm256_set1_epi8(0x70));
      found |= _mm256_shuffle_epi8(block, index);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), found);
  }
#endif
  for (; i < n; ++i) y[i] = x[i] < size ? table[x[i]] : 0;
}

}  // namespace
}  // namespace bcq
