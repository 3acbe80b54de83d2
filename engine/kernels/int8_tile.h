// The micro-kernel of the integer products: a tile of sums u8 x s8 -> s32.
//
// Unlike the float kernels this one is written for each instruction set (for AMX in kernels_amx.cpp), because no
// compiler finds the instructions; integers need no care for the order of sums. 255 * 128 * 4 fits easily what one step
// adds, and gemm_int8.h bounds the depth so that the sum of all steps fits too.
#pragma once
#include "engine/kernels/int8_outliers.h"
#include "engine/kernels/int8_part.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

#if defined(BCQ_DPBUSD)

// Two sums a row, two registers of columns and one row's codes: 31 registers of 32, or 15 of 16.
constexpr int kMostRows = kWide == 16 ? kInt8Rows : 6;
constexpr int64_t kAtOnce = 2 * kWide;  // columns of a tile
constexpr int kInt8BestRows = kWide == 16 ? kInt8Rows : kInt8Block;
constexpr bool kSumsIn16Bits = false;
constexpr bool kFetchNextCodes = kWide == 16;  // not measured with AVX-VNNI

// A tile of kRows rows and kAtOnce columns.
template <int kRows>
void int8_micro_kernel(const Int8Tile& t, Ahead& next_rows, Ahead& next_panels) {
  Ahead rows_ahead = next_rows, panels_ahead = next_panels;
  Sums sum[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = t.start ? load<Sums>(t.start) : Sums{};
    sum[r][1] = t.start ? load<Sums>(t.start + kWide) : Sums{};
  }
  const uint8_t* a = t.a;
  const int8_t* panel = t.panel;
  for (int64_t g = 0; g < t.groups; ++g, a += 4, panel += 4 * kInt8Panel) {
    if (kFetchNextCodes) rows_ahead.fetch(), panels_ahead.fetch();
    const Words left = load<Words>(panel), right = load<Words>(panel + 4 * kWide);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Words codes = load<uint32_t>(a + r * t.a_stride) - Words{};
      sum[r][0] = add_products(sum[r][0], codes, left);
      sum[r][1] = add_products(sum[r][1], codes, right);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    store(sum[r][0], t.c + r * t.c_stride);
    store(sum[r][1], t.c + r * t.c_stride + kWide);
  }
  next_rows = rows_ahead, next_panels = panels_ahead;
}

#elif defined(__AVX2__)

constexpr int kMostRows = 6;                 // 12 sums of 8 columns, two registers of codes, a row's and a product
constexpr int64_t kAtOnce = kInt8Panel / 2;  // columns of a tile
constexpr int kInt8BestRows = kInt8Block;

constexpr bool kSumsIn16Bits = true;

constexpr int64_t kStepOfPanel = 4 * kInt8Panel, kStepOfWords = 64;  // bytes from a step to the next

// Micro-kernels of an Int8Part, whose steps are of four bytes of a row and of two registers of eight columns, of 16-bit
// numbers or of bytes. Not inlined, or the sums would not stay in registers.

template <int kRows>
__attribute__((always_inline)) inline void load_sums(const Int8Part& t, __m256i (&sum)[kRows][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) sum[r][j] = load_register(t.from + r * t.from_stride + 8 * j);
}
template <int kRows>
__attribute__((always_inline)) inline void store_sums(const __m256i (&sum)[kRows][2], const Int8Part& t) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) store_register(sum[r][j], t.c + r * t.c_stride + 8 * j);
}

// Of codes that were made 16-bit numbers, which vpmaddwd multiplies in pairs: vpmaddubsw would saturate.
template <int kRows>
__attribute__((noinline)) void words_micro_kernel(const Int8Part& t) {
  __m256i sum[kRows][2];
  load_sums(t, sum);
  const uint8_t* a = t.a;
  const int8_t* panel = t.panel;
  for (int64_t n = t.steps; n > 0; --n, a += 4, panel += kStepOfWords) {
    const __m256i codes[2] = {load_register(panel), load_register(panel + 32)};
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i row = _mm256_set1_epi32(load<int32_t>(a + r * t.a_stride));
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(row, codes[j]));
    }
  }
  store_sums(sum, t);
}

// Of a panel whose fours of codes add up as Int8Tile has it with outliers: two vpmaddubsw and their sum fit 16 bits.
template <int kRows>
__attribute__((noinline)) void fours_micro_kernel(const Int8Part& t) {
  const __m256i one = _mm256_set1_epi16(1);
  __m256i sum[kRows][2];
  load_sums(t, sum);
  const uint8_t* a = t.a;
  const int8_t* panel = t.panel;
  const auto products = [&](int r, int64_t step, int j) {
    const __m256i row = _mm256_set1_epi32(load<int32_t>(a + r * t.a_stride + 4 * step));
    return _mm256_maddubs_epi16(row, load_register(panel + step * kStepOfPanel + 32 * j));
  };
  int64_t n = t.steps;
  for (; n > 1; n -= 2, a += 8, panel += 2 * kStepOfPanel) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j)
        sum[r][j] =
            _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(_mm256_add_epi16(products(r, 0, j), products(r, 1, j)), one));
  }
  if (n > 0) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(products(r, 0, j), one));
  }
  store_sums(sum, t);
}

// Of a panel with small codes: vpmaddubsw adds two products in 16 bits, where there is room for those of `most` steps.
// Sums of 32 bits are kept on the stack: their places in c would take registers to address. Those of 16 bits stay in
// registers because the loop that adds to them runs once at least: g++ would store them for a path around it. A step
// that is left over is added by itself.
template <int kRows>
__attribute__((noinline)) void bytes_micro_kernel(const Int8Part& t, int64_t most) {
  const __m256i one = _mm256_set1_epi16(1);
  const uint8_t *a = t.a, *const end = a + 4 * t.steps;
  const int8_t* panel = t.panel;
  __m256i total[kRows][2];
  load_sums(t, total);
  const auto row_of = [&](int r) { return _mm256_set1_epi32(load<int32_t>(a + r * t.a_stride)); };
  const auto add_to_total = [&](int r, int j, __m256i sum) {
    total[r][j] = _mm256_add_epi32(total[r][j], _mm256_madd_epi16(sum, one));
  };
  while (end - a > 4) {
    const uint8_t* const stop = end - a < 4 * most ? end : a + 4 * most;
    __m256i sum[kRows][2], codes[2] = {load_register(panel), load_register(panel + 32)};
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i row = row_of(r);
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) sum[r][j] = _mm256_maddubs_epi16(row, codes[j]);
    }
    a += 4, panel += kStepOfPanel;
    do {
      codes[0] = load_register(panel), codes[1] = load_register(panel + 32);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i row = row_of(r);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) add_in_place(sum[r][j], _mm256_maddubs_epi16(row, codes[j]));
      }
      a += 4, panel += kStepOfPanel;
    } while (a < stop);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) add_to_total(r, j, sum[r][j]);
  }
  if (a < end) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) add_to_total(r, j, _mm256_maddubs_epi16(row_of(r), load_register(panel + 32 * j)));
  }
  store_sums(total, t);
}

// Bytes 0 and 2 of every word of four as 16-bit numbers, and bytes 1 and 3.
inline __m256i even_codes(__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); }
inline __m256i odd_codes(__m256i x) { return _mm256_srai_epi16(x, 8); }

// kAtOnce columns of a panel as 16-bit numbers: the even bytes of all groups, then the odd ones.
void panel_to_words(const int8_t* panel, int64_t groups, int8_t* words) {
  for (int64_t g = 0; g < groups; ++g, panel += 4 * kInt8Panel, words += 64)
    for (int64_t j = 0; j < 64; j += 32) {
      const __m256i codes = load_register(panel + j);
      store_register(even_codes(codes), words + j);
      store_register(odd_codes(codes), words + groups * 64 + j);
    }
}

// The same of a row. Writes up to 28 bytes more.
void row_to_words(const uint8_t* codes, int64_t groups, uint8_t* words) {
  const __m256i low = _mm256_set1_epi16(255);
  const auto each_register = [&](const auto& to) {
    int64_t g = 0;
    for (; g + 8 <= groups; g += 8) to(g, load_register(codes + 4 * g));
    for (; g < groups; ++g) to(g, _mm256_castsi128_si256(_mm_cvtsi32_si128(load<int32_t>(codes + 4 * g))));
  };
  each_register([&](int64_t g, __m256i x) { store_register(_mm256_and_si256(x, low), words + 4 * g); });
  each_register([&](int64_t g, __m256i x) { store_register(_mm256_srli_epi16(x, 8), words + 4 * (groups + g)); });
}

// Groups that are multiplied at a time: half a panel of them stays in the nearest cache while the rows pass, of which
// there are at most kInt8Block.
constexpr int64_t kGroups = kInt8Run / 4;

void int8_tile(const Int8Tile& t) {
  static constexpr int32_t kZeros[kInt8Panel] = {};
  constexpr int64_t kStride = 2 * kGroups * 4 + 64;
  alignas(64) uint8_t row_words[kInt8Block * kStride];
  alignas(64) int8_t panel_words[2 * kGroups * 64];
  // Steps of vpmaddubsw; fewer than four do not pay, and of loops of more than 16 the end is predicted wrong.
  const int64_t room = 32767 / (2 * 255 * t.most), most = room < 16 ? room : 16;
  const bool small = most >= 4 && t.groups > 0, fours = !small && (t.outlier_starts || t.most <= 32);
  const bool words = !small && !fours;
  const int most_rows = small ? kMostRows - 1 : kMostRows;  // six rows and the first products do not fit 16 registers
  const int parts = (t.rows + most_rows - 1) / most_rows;
  int64_t g = 0;
  do {
    const int64_t groups = t.groups - g < kGroups ? t.groups - g : kGroups;
    for (int r = 0; r < t.rows && words; ++r)
      row_to_words(t.a + r * t.a_stride + 4 * g, groups, row_words + r * kStride);
    for (int64_t half = 0; half < 2 * t.panels; ++half) {
      const int64_t column = half * kAtOnce;
      const int8_t* panel = t.panel;  // null where there is no group
      if (t.groups > 0) panel += half / 2 * t.panel_stride + g * 4 * kInt8Panel + half % 2 * 64;
      if (words) panel_to_words(panel, groups, panel_words);
      for (int i = 0; i < parts; ++i) {
        const int r = t.rows * i / parts, rows_of_part = t.rows * (i + 1) / parts - r;
        int32_t* const c = t.c + r * t.c_stride + column;
        const int32_t* const from = g > 0 ? c : t.start ? t.start + column : kZeros;
        const int64_t from_stride = g > 0 ? t.c_stride : 0;
        const Int8Part part = {
            t.a + r * t.a_stride + 4 * g, t.a_stride, panel, groups, from, from_stride, c, t.c_stride};
        with_constant<kMostRows>(rows_of_part, [&](auto rows) {
          if (words)
            words_micro_kernel<rows>(
                {row_words + r * kStride, kStride, panel_words, 2 * groups, from, from_stride, c, t.c_stride});
          else if (fours)
            fours_micro_kernel<rows>(part);
          else
            bytes_micro_kernel<rows>(part, most);
        });
      }
    }
    if (t.outlier_starts && t.groups > 0) add_outliers(t, g / kGroups);
  } while ((g += kGroups) < t.groups);
}

#else

constexpr int kMostRows = 1;
constexpr int64_t kAtOnce = kInt8Panel;
constexpr int kInt8BestRows = kInt8Rows;
constexpr bool kSumsIn16Bits = false;

// One row of a panel.
template <int kRows>
void int8_micro_kernel(const Int8Tile& t, Ahead&, Ahead&) {
  uint32_t sum[kInt8Panel] = {};  // which wraps around on its way, as vectors do
  if (t.start) std::memcpy(sum, t.start, sizeof sum);
  const int8_t* panel = t.panel;
  for (int64_t g = 0; g < t.groups; ++g, panel += 4 * kInt8Panel)
    for (int64_t j = 0; j < kInt8Panel; ++j)
      for (int k = 0; k < 4; ++k) sum[j] += static_cast<uint32_t>(t.a[4 * g + k] * panel[4 * j + k]);
  std::memcpy(t.c, sum, sizeof sum);
}

#endif

#if defined(BCQ_DPBUSD) || !defined(__AVX2__)
void int8_tile(const Int8Tile& t) {
  const int parts = (t.rows + kMostRows - 1) / kMostRows;
  const int64_t columns = t.panels * kInt8Panel, steps = parts * columns / kAtOnce * t.groups;
  Ahead next_rows(t.next_a, t.next_a_bytes, steps, t.a), next_panels(t.next_panel, t.next_panel_bytes, steps, t.panel);
  for (int64_t column = 0; column < columns; column += kAtOnce)
    for (int i = 0; i < parts; ++i) {
      const int r = t.rows * i / parts, rows_of_part = t.rows * (i + 1) / parts - r;
      Int8Tile part = t;
      part.a += r * t.a_stride;
      if (t.groups > 0) part.panel += column / kInt8Panel * t.panel_stride + 4 * (column % kInt8Panel);
      if (t.start) part.start += column;
      part.c += r * t.c_stride + column;
      with_constant<kMostRows>(rows_of_part, [&](auto rows) { int8_micro_kernel<rows>(part, next_rows, next_panels); });
    }
  for (int64_t run = 0; t.outlier_starts && run < int8_runs(t.groups); ++run) add_outliers(t, run);
}
#endif

}  // namespace
}  // namespace bcq
