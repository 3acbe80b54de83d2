// The innermost loop of the float products: a tile of sums of 14 rows and 32 columns, or as many as there are registers
// for. Part of kernels_impl.h, whose registers (packed_kernels.h) it uses.
//
// Every sum is fused multiply-adds in the order of depths, kFloatRun of them from 0 and then the next, so that neither
// the place of a value in a tile nor the instruction set shows in it. Where the processor has no such instruction it
// is made of what it has, correctly rounded and slow.
#include <emmintrin.h>

namespace bcq {
namespace {

#if defined(__AVX512F__)
constexpr int kTall = kFloatRows;  // 28 sums, two registers of columns and one value of a row: 31 registers
Floats fused(Floats x, Floats y, Floats sum) { return Floats(_mm512_fmadd_ps(__m512(x), __m512(y), __m512(sum))); }
#elif defined(__AVX2__)
constexpr int kTall = 6;
Floats fused(Floats x, Floats y, Floats sum) { return Floats(_mm256_fmadd_ps(__m256(x), __m256(y), __m256(sum))); }
#else
constexpr int kTall = 1;
// x y + c rounded once. The product of floats is exact in double; the sum is rounded to odd there, by what the rounding
// to nearest has left (Knuth's two-sum), so that rounding it once more gives the float nearest to the exact value.
// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums")
float fused_of(float x, float y, float c) {
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
__m128 fused_twice(__m128 x, __m128 y, __m128 sum, __m128i& doubt) {
  const __m128d once = _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(x), _mm_cvtps_pd(y)), _mm_cvtps_pd(sum));
  const __m128d size = _mm_andnot_pd(_mm_set1_pd(-0.0), once);
  const __m128i rest = _mm_and_si128(_mm_castpd_si128(once), _mm_set1_epi64x(0x1fffffff));
  const __m128i halfway = _mm_cmpeq_epi32(rest, _mm_set_epi32(1, 0x10000000, 1, 0x10000000));
  const __m128d denormal = _mm_and_pd(_mm_cmplt_pd(size, _mm_set1_pd(0x1p-126)), _mm_cmpgt_pd(size, _mm_setzero_pd()));
  doubt = _mm_or_si128(doubt, _mm_or_si128(halfway, _mm_castpd_si128(denormal)));
  return _mm_cvtpd_ps(once);
}
Floats fused(Floats x, Floats y, Floats sum) {
  const __m128 a(x), b(y), c(sum);
  __m128i doubt = _mm_setzero_si128();
  const __m128 low = fused_twice(a, b, c, doubt);
  const __m128 high = fused_twice(_mm_movehl_ps(a, a), _mm_movehl_ps(b, b), _mm_movehl_ps(c, c), doubt);
  Floats twice(_mm_movelh_ps(low, high));
  if (_mm_movemask_epi8(doubt) != 0)
    for (int l = 0; l < kWide; ++l) twice[l] = fused_of(x[l], y[l], sum[l]);
  return twice;
}
#endif

constexpr int kBeside = 2;                    // registers of columns
constexpr int64_t kAcross = kBeside * kWide;  // their columns
inline void store(Floats x, float* y) { std::memcpy(y, &x, sizeof x); }

// As Kernels::float_tile, for kRows rows and up to kAcross columns.
template <int kRows>
void float_tile_part(const float* a, int64_t stride, int64_t step, const float* panel, int64_t depth,
                     const float* start, int64_t start_stride, int64_t columns, float* c, int64_t ldc) {
  constexpr int kLow = 7;  // addresses of rows are one of two pointers and one of seven offsets: they fit in registers
  for (int64_t k = 0; k < depth; k += kFloatRun) {
    Floats sum[kRows][kBeside];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < kBeside; ++j) sum[r][j] = Floats{};
    const float *low = a + k * step, *high = low + kLow * stride, *b = panel + k * kFloatPanel;
    for (int64_t n = depth - k < kFloatRun ? depth - k : kFloatRun; n > 0; --n) {
      Floats block[kBeside];
#pragma GCC unroll 2
      for (int j = 0; j < kBeside; ++j) block[j] = load<Floats>(b + kWide * j);
      const auto add = [&](int r, float value) {
        const Floats x = value - Floats{};
#pragma GCC unroll 2
        for (int j = 0; j < kBeside; ++j) sum[r][j] = fused(x, block[j], sum[r][j]);
      };
#pragma GCC unroll 8
      for (int r = 0; r < kRows && r < kLow; ++r) add(r, low[r * stride]);
#pragma GCC unroll 8
      for (int r = kLow; r < kRows; ++r) add(r, high[(r - kLow) * stride]);
      low += step, high += step, b += kFloatPanel;
    }
    if (columns == kAcross) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < kBeside; ++j)
          store(start ? load<Floats>(start + r * start_stride + kWide * j) + sum[r][j] : sum[r][j],
                c + r * ldc + kWide * j);
    } else {
      float part[kRows][kAcross];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < kBeside; ++j) store(sum[r][j], part[r] + kWide * j);
      for (int r = 0; r < kRows; ++r)
        for (int64_t j = 0; j < columns; ++j)
          c[r * ldc + j] = start ? start[r * start_stride + j] + part[r][j] : part[r][j];
    }
    start = c, start_stride = ldc;
  }
}

template <int kRows>
void float_tile_of(int rows, const float* a, int64_t stride, int64_t step, const float* panel, int64_t depth,
                   const float* start, int64_t start_stride, int64_t columns, float* c, int64_t ldc) {
  if constexpr (kRows > 1) {
    if (rows < kRows)
      return float_tile_of<kRows - 1>(rows, a, stride, step, panel, depth, start, start_stride, columns, c, ldc);
  }
  float_tile_part<kRows>(a, stride, step, panel, depth, start, start_stride, columns, c, ldc);
}

void float_tile(int rows, const float* a, int64_t stride, int64_t step, const float* panel, int64_t depth,
                const float* start, int64_t start_stride, int64_t columns, float* c, int64_t ldc) {
  for (; rows > 0; rows -= kTall, a += kTall * stride, c += kTall * ldc) {
    for (int64_t j = 0; j < columns; j += kAcross) {
      const int64_t n = columns - j < kAcross ? columns - j : kAcross;
      float_tile_of<kTall>(rows < kTall ? rows : kTall, a, stride, step, panel + j, depth, start ? start + j : nullptr,
                           start_stride, n, c + j, ldc);
    }
    if (start) start += kTall * start_stride;
  }
}

}  // namespace
}  // namespace bcq
