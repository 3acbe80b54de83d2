// The source of the "avx-vnni" kernels over a reference of the one instruction that AVX-VNNI adds to AVX2, so that they
// are tested where processors do not have it.
#include <immintrin.h>

namespace {

// vpdpbusd: to each sum of 32 bits the products of four bytes, unsigned in x and signed in y, are added modulo 2^32.
inline __m256i dpbusd_reference(__m256i sum, __m256i x, __m256i y) {
  const auto sums_of_two = [](__m128i a, __m128i b) {  // of 16 bytes, made 16-bit numbers
    return _mm256_madd_epi16(_mm256_cvtepu8_epi16(a), _mm256_cvtepi8_epi16(b));
  };
  const __m256i low = sums_of_two(_mm256_castsi256_si128(x), _mm256_castsi256_si128(y));
  const __m256i high = sums_of_two(_mm256_extracti128_si256(x, 1), _mm256_extracti128_si256(y, 1));
  const __m256i sums_of_four = _mm256_hadd_epi32(low, high);  // of low 0, 1, of high 0, 1, of low 2, 3, of high 2, 3
  return _mm256_add_epi32(sum, _mm256_permute4x64_epi64(sums_of_four, 0b11011000));
}

}  // namespace

#define BCQ_DPBUSD dpbusd_reference
#define BCQ_TABLE kernels_avxvnni_reference
#define BCQ_ISA_NAME "avx-vnni over a reference"
#include "engine/kernels/kernels_impl.h"
