// The micro-kernel of the float products: a tile of sums of 14 rows and 32 columns, or as many as there are registers
// for.
//
// Every sum is fused multiply-adds in the order of depths, kFloatRun of them from 0 and then the next, so that neither
// the place of a value in a tile nor the instruction set shows in it. Where the processor has no such instruction it
// is made of what it has, correctly rounded and slow.
#pragma once
#include "engine/kernels/kernels.h"
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

#if defined(__AVX512F__)
constexpr int kTall = kFloatRows;  // 28 sums, two registers of columns and one value of a row: 31 registers
constexpr int kAhead = 32;         // depths that are fetched into the nearest cache before they are used
constexpr bool kFetchNext = true;  // prefetches FloatTile's next_a and next_panel into the second cache
Floats fma(Floats x, Floats y, Floats sum) { return Floats(_mm512_fmadd_ps(__m512(x), __m512(y), __m512(sum))); }
#elif defined(__AVX2__)
constexpr int kTall = 6, kAhead = 16;
constexpr bool kFetchNext = false;
Floats fma(Floats x, Floats y, Floats sum) { return Floats(_mm256_fmadd_ps(__m256(x), __m256(y), __m256(sum))); }
#else
constexpr int kTall = 1, kAhead = 0;
constexpr bool kFetchNext = false;
// x y + c rounded once. The product of floats is exact in double; the sum is rounded to odd there, by what the rounding
// to nearest has left (Knuth's two-sum), so that rounding it once more gives the float nearest to the exact value.
// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums")
float fma_of_one(float x, float y, float c) {
  const double product = static_cast<double>(x) * static_cast<double>(y), a = static_cast<double>(c);
  double sum = product + a;
  const double b = sum - product, left = (product - (sum - b)) + (a - b);
  int64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  if ((left < 0 || left > 0) && bits % 2 == 0) bits += (left > 0) == (sum > 0) ? 1 : -1;
  std::memcpy(&sum, &bits, sizeof sum);
  return static_cast<float>(sum);
}
// Of two lanes. To round a double again is wrong only halfway between two floats, and denormal ones lie elsewhere: such
// lanes are marked.
__m128 fma_twice(__m128 x, __m128 y, __m128 sum, __m128i& doubt) {
  const __m128d once = _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(x), _mm_cvtps_pd(y)), _mm_cvtps_pd(sum));
  const __m128d size = _mm_andnot_pd(_mm_set1_pd(-0.0), once);
  const __m128i rest = _mm_and_si128(_mm_castpd_si128(once), _mm_set1_epi64x(0x1fffffff));
  const __m128i halfway = _mm_cmpeq_epi32(rest, _mm_set_epi32(1, 0x10000000, 1, 0x10000000));
  const __m128d denormal = _mm_and_pd(_mm_cmplt_pd(size, _mm_set1_pd(0x1p-126)), _mm_cmpgt_pd(size, _mm_setzero_pd()));
  doubt = _mm_or_si128(doubt, _mm_or_si128(halfway, _mm_castpd_si128(denormal)));
  return _mm_cvtpd_ps(once);
}
Floats fma(Floats x, Floats y, Floats sum) {
  const __m128 a(x), b(y), c(sum);
  __m128i doubt = _mm_setzero_si128();
  const __m128 low = fma_twice(a, b, c, doubt);
  const __m128 high = fma_twice(_mm_movehl_ps(a, a), _mm_movehl_ps(b, b), _mm_movehl_ps(c, c), doubt);
  Floats twice(_mm_movelh_ps(low, high));
  if (_mm_movemask_epi8(doubt) != 0)
    for (int l = 0; l < kWide; ++l) twice[l] = fma_of_one(x[l], y[l], sum[l]);
  return twice;
}
#endif

constexpr int kBeside = 2;                    // registers of columns
constexpr int64_t kAcross = kBeside * kWide;  // their columns

// A tile of kRows rows and up to kAcross columns.
template <int kRows>
void float_micro_kernel(const FloatTile& t) {
  constexpr int64_t kPanelBytes = kFloatPanel * sizeof(float);
  constexpr int kLow = 7;  // addresses of rows are one of two pointers and one of seven offsets: they fit in registers
  const float* start = t.start;
  int64_t start_stride = t.start_stride;
  const auto* next_panel = reinterpret_cast<const char*>(t.next_depths > 0 ? t.next_panel : t.panel);
  const int64_t panel_step = t.next_depths > 0 ? (t.next_depths * kPanelBytes + t.depth - 1) / t.depth : 0;  // bytes
  for (int64_t k = 0; k < t.depth; k += kFloatRun) {
    Floats sum[kRows][kBeside];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < kBeside; ++j) sum[r][j] = Floats{};
    // Where sums go, another core may have written last: its lines are taken over while sums are made
    // (with AVX-512, whose flags have no prefetchw, they are read).
    for (int r = 0; r < kRows && kAhead > 0; ++r) {
      __builtin_prefetch(t.c + r * t.c_stride, 1);
      __builtin_prefetch(t.c + r * t.c_stride + kAcross - 1, 1);
    }
    const float *low = t.a + k * t.a_step, *high = low + kLow * t.a_stride, *b = t.panel + k * kFloatPanel;
    const int64_t depths = t.depth - k < kFloatRun ? t.depth - k : kFloatRun;
    const int64_t parts = kFetchNext && t.next_rows > 0 ? t.next_rows : 1;  // each fetches from one of the next rows
    for (int64_t part = 0; part < parts; ++part) {
      const float* next = t.next_rows > 0 ? t.next_a + part * t.a_stride + k : low;
      for (int64_t n = depths * (part + 1) / parts - depths * part / parts; n > 0; --n) {
        Floats block[kBeside];
        for (int64_t j = 0; kAhead > 0 && j < kAcross; j += 16) __builtin_prefetch(b + kAhead * kFloatPanel + j);
        if (kFetchNext) {
          __builtin_prefetch(next, 0, 2);
          __builtin_prefetch(next_panel, 0, 2);
          next += t.next_rows, next_panel += panel_step;
        }
#pragma GCC unroll 2
        for (int j = 0; j < kBeside; ++j) block[j] = load<Floats>(b + kWide * j);
        const auto add = [&](int r, float value) {
          const Floats x = value - Floats{};
#pragma GCC unroll 2
          for (int j = 0; j < kBeside; ++j) sum[r][j] = fma(x, block[j], sum[r][j]);
        };
#pragma GCC unroll 8
        for (int r = 0; r < kRows && r < kLow; ++r) add(r, low[r * t.a_stride]);
#pragma GCC unroll 8
        for (int r = kLow; r < kRows; ++r) add(r, high[(r - kLow) * t.a_stride]);
        low += t.a_step, high += t.a_step, b += kFloatPanel;
      }
    }
    if (t.columns == kAcross) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < kBeside; ++j)
          store(start ? load<Floats>(start + r * start_stride + kWide * j) + sum[r][j] : sum[r][j],
                t.c + r * t.c_stride + kWide * j);
    } else {
      float part[kRows][kAcross];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < kBeside; ++j) store(sum[r][j], part[r] + kWide * j);
      for (int r = 0; r < kRows; ++r)
        for (int64_t j = 0; j < t.columns; ++j)
          t.c[r * t.c_stride + j] = start ? start[r * start_stride + j] + part[r][j] : part[r][j];
    }
    start = t.c, start_stride = t.c_stride;
  }
}

void float_tile(const FloatTile& t) {
  for (int r = 0; r < t.rows; r += kTall)
    for (int64_t j = 0; j < t.columns; j += kAcross) {
      FloatTile part = t;
      part.a += r * t.a_stride;
      part.panel += j;
      part.columns = t.columns - j < kAcross ? t.columns - j : kAcross;
      part.c += r * t.c_stride + j;
      if (t.start) part.start += r * t.start_stride + j;
      with_constant<kTall>(t.rows - r, [&](auto rows) { float_micro_kernel<rows>(part); });
    }
}

}  // namespace
}  // namespace bcq
