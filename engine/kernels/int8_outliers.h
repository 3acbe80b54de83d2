// Outliers of 8-bit codes: c[r, j] += sum of excess * a[r, depth], which int8_tile adds to its sums where codes were
// too large for sums in 16 bits and were cut (Int8Panels::cut_outliers). The form is that of FBGEMM's products with
// sums in 16 bits: a dense product of small codes, a sparse one of what was cut off.
#pragma once
#include "engine/kernels/kernels.h"
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

#if defined(__AVX2__) && !defined(BCQ_DPBUSD)

inline __m256i load_register(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_register(__m256i x, void* to) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }

constexpr int kTransposedRows = (kInt8Block + 15) / 16 * 16;  // rows of a tile, in sixteens

// y [depths, kTransposedRows]: codes [rows, depths] transposed, blocks of 16 x 16 bytes in four steps, each of which
// puts row i beside row i + 8. Rows and depths are filled up to sixteens.
void transpose_codes(const uint8_t* a, int64_t stride, int rows, int64_t depths, uint8_t* y) {
  for (int r = 0; r < rows; r += 16)
    for (int64_t k = 0; k < depths; k += 16) {
      __m128i x[16], next[16];
      for (int i = 0; i < 16; ++i) {
        const uint8_t* row = a + (r + i < rows ? r + i : rows - 1) * stride + k;
        uint8_t last[16] = {};
        if (depths - k < 16) {
          std::memcpy(last, row, static_cast<size_t>(depths - k));
          row = last;
        }
        x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
      }
      for (int step = 0; step < 4; ++step) {
        for (int i = 0; i < 8; ++i) {
          next[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
          next[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
        }
        for (int i = 0; i < 16; ++i) x[i] = next[i];
      }
      for (int i = 0; i < 16; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + (k + i) * kTransposedRows + r), x[i]);
    }
}

// y [16 kBlocks]: the sums of one column's outliers, of which there is an even number: two are one vpmaddwd.
template <int kBlocks>
void sum_outliers(const uint8_t* transposed, const Int8Outlier* first, const Int8Outlier* last, int32_t* y) {
  __m256i sum[2 * kBlocks];
  for (__m256i& s : sum) s = _mm256_setzero_si256();
  for (; first < last; first += 2) {
    const uint8_t* a = transposed + first[0].depth * kTransposedRows;
    const uint8_t* b = transposed + first[1].depth * kTransposedRows;
    const __m256i excess = _mm256_set1_epi32(
        static_cast<int32_t>(static_cast<uint32_t>(first[1].excess) << 16 | static_cast<uint16_t>(first[0].excess)));
    BCQ_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
      const __m128i left = _mm_load_si128(reinterpret_cast<const __m128i*>(a + 16 * i));
      const __m128i right = _mm_load_si128(reinterpret_cast<const __m128i*>(b + 16 * i));
      const __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(left, right));
      const __m256i high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(left, right));
      sum[2 * i] = _mm256_add_epi32(sum[2 * i], _mm256_madd_epi16(low, excess));
      sum[2 * i + 1] = _mm256_add_epi32(sum[2 * i + 1], _mm256_madd_epi16(high, excess));
    }
  }
  for (int i = 0; i < 2 * kBlocks; ++i) store_register(sum[i], y + 8 * i);
}

// c [rows, 8] += the transpose of sums [8, kTransposedRows], rows <= 8.
void add_transposed(const int32_t* sums, int rows, int32_t* c, int64_t c_stride) {
  __m256i x[8], y[8];
  for (int i = 0; i < 8; ++i) x[i] = load_register(sums + i * kTransposedRows);
  for (int i = 0; i < 4; ++i) {
    y[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    x[4 * i] = _mm256_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 1] = _mm256_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
    x[4 * i + 2] = _mm256_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
    x[4 * i + 3] = _mm256_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
    y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
  }
  for (int r = 0; r < rows; ++r)
    store_register(_mm256_add_epi32(load_register(c + r * c_stride), y[r]), c + r * c_stride);
}

// Those of one run of depths.
void add_outliers(const Int8Tile& t, int64_t run) {
  alignas(64) uint8_t transposed[kInt8Run * kTransposedRows];
  alignas(64) int32_t sums[kInt8Panel * kTransposedRows];
  const int64_t runs = int8_runs(t.groups), begin = run * kInt8Run, rest = 4 * t.groups - begin;
  bool is_transposed = false;
  for (int64_t p = 0; p < t.panels; ++p) {
    const int32_t* starts = t.outlier_starts + (p * runs + run) * kInt8Panel;
    if (starts[0] == starts[kInt8Panel]) continue;
    if (!is_transposed) transpose_codes(t.a + begin, t.a_stride, t.rows, rest < kInt8Run ? rest : kInt8Run, transposed);
    is_transposed = true;
    with_constant<kTransposedRows / 16>((t.rows + 15) / 16, [&](auto blocks) {
      for (int64_t j = 0; j < kInt8Panel; ++j)
        sum_outliers<blocks>(transposed, t.outliers + starts[j], t.outliers + starts[j + 1],
                             sums + j * kTransposedRows);
    });
    for (int r = 0; r < t.rows; r += 8)
      for (int64_t j = 0; j < kInt8Panel; j += 8)
        add_transposed(sums + j * kTransposedRows + r, t.rows - r < 8 ? t.rows - r : 8,
                       t.c + r * t.c_stride + p * kInt8Panel + j, t.c_stride);
  }
}

#else

// The definition, and where codes are not cut what a kernel does with panels that were.
void add_outliers(const Int8Tile& t, int64_t run) {
  const int64_t runs = int8_runs(t.groups);
  for (int64_t p = 0; p < t.panels; ++p)
    for (int64_t j = 0; j < kInt8Panel; ++j) {
      const int32_t* starts = t.outlier_starts + (p * runs + run) * kInt8Panel + j;
      for (const Int8Outlier* of = t.outliers + starts[0]; of < t.outliers + starts[1]; ++of)
        for (int r = 0; r < t.rows; ++r)
          t.c[r * t.c_stride + p * kInt8Panel + j] += of->excess * t.a[r * t.a_stride + run * kInt8Run + of->depth];
    }
}

#endif

}  // namespace
}  // namespace bcq
