#include "engine/gemm/product.h"

#include <xmmintrin.h>

#include <algorithm>

#include "engine/core/parallel.h"

namespace bcq {
namespace {

// Sixteen values at a time: 4 x 4 of columns that are contiguous become rows.
void turn(const float* b, int64_t stride, float* panel) {
  __m128 a0 = _mm_loadu_ps(b), a1 = _mm_loadu_ps(b + stride), a2 = _mm_loadu_ps(b + 2 * stride),
         a3 = _mm_loadu_ps(b + 3 * stride);
  _MM_TRANSPOSE4_PS(a0, a1, a2, a3);
  _mm_store_ps(panel, a0);
  _mm_store_ps(panel + kFloatPanel, a1);
  _mm_store_ps(panel + 2 * kFloatPanel, a2);
  _mm_store_ps(panel + 3 * kFloatPanel, a3);
}

void pack(const Matrix& b, int64_t depth, int64_t columns, float* panel) {
  constexpr int64_t kLine = 16, kAhead = 4 * kLine;  // values; columns come from memory, too many for it to foresee
  if (columns < kFloatPanel) std::fill_n(panel, depth * kFloatPanel, 0.f);
  if (b.column == 1) {
    for (int64_t k = 0; k < depth; ++k) std::copy_n(b.data + k * b.row, columns, panel + k * kFloatPanel);
    return;
  }
  const int64_t fours = columns / 4 * 4;
  for (int64_t k0 = 0; k0 < depth; k0 += kLine) {
    const int64_t lines = std::min(depth, k0 + kLine), whole = lines / 4 * 4;
    for (int64_t j = 0; j < fours; j += 4)
      for (int64_t k = k0; k < whole; k += 4) {
        _mm_prefetch(b.at(k0 + kAhead, j + (k - k0) / 4).data, _MM_HINT_T1);
        turn(b.at(k, j).data, b.column, panel + k * kFloatPanel + j);
      }
    for (int64_t k = k0; k < lines; ++k)
      for (int64_t j = k < whole ? fours : 0; j < columns; ++j) panel[k * kFloatPanel + j] = *b.at(k, j).data;
  }
}

}  // namespace

FloatPanels::FloatPanels(const Matrix& b, int64_t depth, int64_t columns)
    : depth_(depth), values_((columns + kFloatPanel - 1) / kFloatPanel * depth * kFloatPanel) {
  for (int64_t c = 0; c < columns; c += kFloatPanel)
    pack(b.at(0, c), depth, std::min(kFloatPanel, columns - c), values_.data() + c * depth);
}

void multiply(const Matrix& a, int64_t rows, const FloatPanels& b, int64_t depth, int64_t columns, const float* start,
              int64_t start_stride, float* c, int64_t ldc) {
  for_parts(rows, kFloatRows, [&](int64_t r0, int64_t r1) {
    for (int64_t j = 0; j < columns; j += kFloatPanel)
      kernels().float_tile(static_cast<int>(r1 - r0), a.at(r0, 0).data, a.row, a.column, b.panel(j / kFloatPanel),
                           depth, start ? start + r0 * start_stride + j : nullptr, start_stride,
                           std::min(kFloatPanel, columns - j), c + r0 * ldc + j, ldc);
  });
}

}  // namespace bcq
