#include "engine/gemm/gemm_float.h"

#include <unistd.h>
#include <xmmintrin.h>

#include <algorithm>

#include "engine/core/parallel.h"

namespace bcq {
namespace {

// Four values of each of four columns, which are contiguous, become four rows.
void transpose_4x4(const float* b, int64_t stride, float* panel) {
  __m128 a0 = _mm_loadu_ps(b), a1 = _mm_loadu_ps(b + stride), a2 = _mm_loadu_ps(b + 2 * stride),
         a3 = _mm_loadu_ps(b + 3 * stride);
  _MM_TRANSPOSE4_PS(a0, a1, a2, a3);
  _mm_store_ps(panel, a0);
  _mm_store_ps(panel + kFloatPanel, a1);
  _mm_store_ps(panel + 2 * kFloatPanel, a2);
  _mm_store_ps(panel + 3 * kFloatPanel, a3);
}

void pack_panel(const Matrix& b, int64_t depth, int64_t columns, float* panel) {
  constexpr int64_t kLine = 16, kAhead = 4 * kLine;  // values; more columns than the processor prefetches by itself
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
        transpose_4x4(b.at(k, j).data, b.column, panel + k * kFloatPanel + j);
      }
    for (int64_t k = k0; k < lines; ++k)
      for (int64_t j = k < whole ? fours : 0; j < columns; ++j) panel[k * kFloatPanel + j] = *b.at(k, j).data;
  }
}

// Of this depth, as many panels as fill three quarters of a core's second cache (512 KB where the system does not say).
int64_t panels_in_cache(int64_t depth) {
  static const int64_t found = sysconf(_SC_LEVEL2_CACHE_SIZE), bytes = found > 0 ? found : 512 << 10;
  return std::max<int64_t>(1, bytes / 4 * 3 / (depth * kFloatPanel * static_cast<int64_t>(sizeof(float))));
}

}  // namespace

FloatPanels::FloatPanels(const Matrix& b, int64_t depth, int64_t columns)
    : depth_(depth), values_((columns + kFloatPanel - 1) / kFloatPanel * depth * kFloatPanel) {
  for (int64_t c = 0; c < columns; c += kFloatPanel)
    pack_panel(b.at(0, c), depth, std::min(kFloatPanel, columns - c), values_.data() + c * depth);
}

FloatPanels::FloatPanels(const Weight& w)
    : depth_(w.dim(1)), values_((w.dim(0) + kFloatPanel - 1) / kFloatPanel * depth_ * kFloatPanel) {
  parallel_for((w.dim(0) + kFloatPanel - 1) / kFloatPanel, [&](int64_t p) {
    const int64_t begin = p * kFloatPanel, end = std::min(w.dim(0), begin + kFloatPanel);
    Tensor scratch;
    pack_panel(row_major(w.rows(begin, end, scratch), depth_).transposed(), depth_, end - begin,
               values_.data() + begin * depth_);
  });
}

void FloatPanels::columns(int64_t begin, int64_t end, float* y) const {
  for (int64_t c = begin; c < end; ++c, y += depth_) {
    const float* from = view().panel(c / kFloatPanel) + c % kFloatPanel;
    for (int64_t k = 0; k < depth_; ++k) y[k] = from[k * kFloatPanel];
  }
}

void gemm_float(const FloatGemm& p) {
  const int64_t panels = (p.columns + kFloatPanel - 1) / kFloatPanel;
  for_parts(p.rows, kernels().float_rows, [&](int64_t r0, int64_t r1) {
    // Tile i also prefetches its part of the next rows (after the last, of the first) and of panel i of `next`.
    const int64_t next = r1 < p.rows ? r1 : 0, ahead = p.a.column == 1 ? std::min(r1 - r0, p.rows - next) : 0;
    const int64_t k0 = p.next_depth * r0 / p.rows, k1 = p.next_depth * r1 / p.rows;
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t j = i * kFloatPanel, a0 = ahead * i / panels, a1 = ahead * (i + 1) / panels;
      kernels().float_tile({.rows = static_cast<int>(r1 - r0),
                            .a = p.a.at(r0, 0).data,
                            .a_stride = p.a.row,
                            .a_step = p.a.column,
                            .panel = p.b.panel(i),
                            .depth = p.depth,
                            .columns = std::min(kFloatPanel, p.columns - j),
                            .start = p.start ? p.start + r0 * p.start_stride + j : nullptr,
                            .start_stride = p.start_stride,
                            .c = p.c + r0 * p.c_stride + j,
                            .c_stride = p.c_stride,
                            .next_a = p.a.at(next + a0, 0).data,
                            .next_rows = a1 - a0,
                            .next_panel = p.next_depth > 0 ? p.next.at(k0, i).data : nullptr,
                            .next_depths = k1 - k0});
    }
    float* c = p.c + r0 * p.c_stride;
    for (int64_t r = r0; r < r1 && p.activation; ++r, c += p.c_stride) p.activation(c, c, p.columns);
  });
}

// Cut into items: blocks of columns and depths whose panels stay in cache, and of rows so that the number of items is
// even and at least eight, as far as there are rows. Sums go on from one block of depths to the next, whose size is
// fixed: a value has the same bits however columns and rows are cut.
void linear_rows(const LinearRows& p) {
  constexpr int64_t kDepth = 2 * kFloatRun;  // at a time
  const int64_t depth = p.w.dim(p.transposed ? 1 : 0), columns = p.w.dim(p.transposed ? 0 : 1);
  const FloatPanels* ready = p.transposed ? p.w.panels() : nullptr;
  const int64_t panels = (columns + kFloatPanel - 1) / kFloatPanel, tiles = (p.rows + kFloatRows - 1) / kFloatRows;
  // Where rows are cut each part packs the same panels, and of 197 rows 8 % of the time is packing: columns are cut
  // finer.
  const int64_t most = depth <= kDepth ? 3 : 2, finer = p.rows <= 256 ? std::max<int64_t>(1, panels / 8) : most;
  const int64_t width = std::min({most, finer, panels_in_cache(std::min(depth, kDepth))});
  const int64_t across = (panels + width - 1) / width;
  const int64_t down =
      std::max<int64_t>(1, std::min(across >= 8 ? 1 + across % 2 : (7 / across + 2) / 2 * 2, tiles / 2));
  parallel_for(across * down, [&](int64_t item) {
    const int64_t i = item % down, j = item / down;
    const int64_t c0 = panels * j / across * kFloatPanel;
    const int64_t n = std::min(columns, panels * (j + 1) / across * kFloatPanel) - c0;
    Tensor scratch;
    Matrix right{};
    if (!ready)
      right = p.transposed ? row_major(p.w.rows(c0, c0 + n, scratch), depth).transposed()
                           : row_major(p.w.rows(0, depth, scratch), columns).at(0, c0);
    const int64_t first = p.rows * i / down, last = p.rows * (i + 1) / down;
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t some = std::min(kDepth, depth - k);
      const FloatPanels packed = ready ? FloatPanels() : FloatPanels(right.at(k, 0), some, n);
      const FloatPanelsView block = ready ? ready->view().at(k, c0 / kFloatPanel) : packed.view();
      float* y = p.y + first * p.y_stride + c0;
      FloatGemm product{.a = p.x.at(first, k),
                        .rows = last - first,
                        .b = block,
                        .depth = some,
                        .columns = n,
                        .c = y,
                        .c_stride = p.y_stride,
                        .start = k > 0    ? y
                                 : p.bias ? p.bias + c0
                                          : nullptr,
                        .start_stride = k > 0 ? p.y_stride : 0};
      if (ready && k + some < depth)
        product.next = block.at(some, 0), product.next_depth = std::min(kDepth, depth - k - some);
      else if (ready && i == down - 1 && c0 + 2 * n <= columns)
        product.next = ready->view().at(0, (c0 + n) / kFloatPanel), product.next_depth = std::min(kDepth, depth);
      if (k + some == depth) product.activation = p.activation;
      gemm_float(product);
    }
  });
}

Matrix with_row_stride(const Tensor& x, Buffer<float>& copy) {
  const int64_t depth = x.dim(-1), stride = row_stride(depth);
  if (stride == depth) return row_major(x.data, depth);
  copy = Buffer<float>(x.rows() * stride);
  constexpr int64_t kRows = 16;
  parallel_for((x.rows() + kRows - 1) / kRows, [&](int64_t item) {
    for (int64_t r = item * kRows; r < std::min(x.rows(), (item + 1) * kRows); ++r)
      std::copy_n(x.data + r * depth, depth, copy.data() + r * stride);
  });
  return row_major(copy.data(), stride);
}

namespace {

void linear_few_rows(const Tensor& x, const Weight& w, const Tensor& bias, Tensor& y) {
  const int64_t rows = x.rows(), depth = x.dim(-1), columns = y.dim(-1);
  const int64_t items = std::clamp<int64_t>(rows * columns * depth / kWorkPerItem, 1, (columns + 63) / 64);
  parallel_for(items, [&](int64_t item) {
    const int64_t begin = columns * item / items, end = columns * (item + 1) / items;
    Tensor scratch;
    for_parts(end - begin, std::max<int64_t>(1, 4096 / depth), [&](int64_t c, int64_t stop) {
      const float* row = w.rows(begin + c, begin + stop, scratch);  // decoded rows stay in the nearest cache
      for (int64_t i = begin + c; i < begin + stop; ++i, row += depth)
        for (int64_t r = 0; r < rows; ++r) y[r * columns + i] = kernels().dot_float(x.data + r * depth, row, depth);
    });
    for (int64_t r = 0; r < rows && !bias.empty(); ++r) {
      float* out = y.data + r * columns + begin;
      kernels().add(out, bias.data + begin, out, end - begin);
    }
  });
}

}  // namespace

void linear_float(const Tensor& x, const Weight& w, const Tensor& bias, Tensor& y) {
  if (is_few_rows(x)) return linear_few_rows(x, w, bias, y);
  Buffer<float> copy;
  linear_rows(
      {.x = with_row_stride(x, copy), .rows = x.rows(), .w = w, .bias = bias.data, .y = y.data, .y_stride = y.dim(-1)});
}

}  // namespace bcq
