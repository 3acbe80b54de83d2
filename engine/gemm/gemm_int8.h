// Exact matrix products of 8-bit integers, u8 x s8 -> s32: what every forward pass in integers is made of.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/core/buffer.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"

namespace bcq {

// The definition: sums [rows, columns] = start + a [rows, depth] bᵀ, b [columns, depth], start [columns] or null for
// zeros. No order, no cut and no instruction set shows in sums of integers.
inline void gemm_int8_reference(const uint8_t* a, int64_t rows, const int8_t* b, int64_t columns, int64_t depth,
                                const int32_t* start, int32_t* sums) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      int32_t sum = start ? start[c] : 0;
      for (int64_t k = 0; k < depth; ++k) sum += a[r * depth + k] * b[c * depth + k];
      sums[r * columns + c] = sum;
    }
}

constexpr int64_t kInt8Columns = 4 * kInt8Panel;  // of one item of work: they stay in cache while its rows pass
constexpr int64_t kInt8MostDepth = 65536;         // 255 * 128 * depth < 2^31

// Bytes from one row of u8 codes to the next: whole cache lines, and no power of two that sends all rows of a tile to
// the same few sets of the cache.
inline int64_t int8_stride(int64_t depth) {
  const int64_t lines = (depth + 63) / 64;
  return 64 * (lines % 4 == 0 ? lines + 1 : lines);
}

// The right operand: [columns, depth] codes, packed once into panels of 32 columns.
class Int8Panels {
 public:
  Int8Panels() = default;
  Int8Panels(int64_t columns, int64_t depth);  // zeros; depth <= kInt8MostDepth

  // The codes of column c. Different columns may be set by different threads.
  void set_column(int64_t c, const int8_t* codes);
  // Codes at depths [4 group, 4 group + n) of all columns, n <= 4: codes [n, columns], `stride` apart.
  void set_group(int64_t group, int64_t n, const int8_t* codes, int64_t stride);
  // The sum of each column's codes, times `factor`; of the columns of all panels.
  std::vector<int32_t> sums(int32_t factor) const;
  // When all codes are set: products are faster where these are small, on machines without VNNI.
  void find_range();
  // After that, for operands that are used often, where kernels().sums_in_16_bits says that it pays: codes are cut so
  // that products of any bytes with four of a column add up in 16 bits, and what is cut off is kept beside them. Does
  // nothing where all codes are small or more than an eighth would be cut. Products, sums() and column() stay the same;
  // no code is set afterwards.
  void cut_outliers();
  void column(int64_t c, int8_t* codes) const;  // [depth]: what set_column was given

  int64_t columns() const { return columns_; }
  int64_t depth() const { return depth_; }
  int64_t groups() const { return (depth_ + 3) / 4; }  // of four depths, padded with zeros
  int64_t panels() const { return (columns_ + kInt8Panel - 1) / kInt8Panel; }
  int64_t bytes() const { return panels() * panel_bytes(); }
  int64_t outliers() const { return static_cast<int64_t>(outliers_.size()); }
  const int8_t* panel(int64_t p) const { return codes_.data() + p * panel_bytes(); }
  // The right operand of a tile of panels [p0, p1), to which the left one and the sums are to be added.
  Int8Tile tile(int64_t p0, int64_t p1) const;
  int64_t panel_bytes() const { return groups() * 4 * kInt8Panel; }
  int most() const { return most_; }  // a bound of the codes' magnitudes

 private:
  int64_t at(int64_t c, int64_t k) const {
    return ((c / kInt8Panel * groups() + k / 4) * kInt8Panel + c % kInt8Panel) * 4 + k % 4;
  }
  int64_t columns_ = 0, depth_ = 0;
  Buffer<int8_t> codes_;
  int most_ = 128;
  std::vector<int32_t> outlier_starts_;  // as Int8Tile has them; empty before cut_outliers()
  std::vector<Int8Outlier> outliers_;
};

// The left operand: [rows, planes, depth] codes, rows of planes `stride` bytes apart. Both planes of a row meet the
// same columns in one pass: a twin-uniform operand is the sum of two grids.
struct Int8Rows {
  Int8Rows(int64_t n, int64_t depth, int planes_of_row)
      : rows(n), stride(int8_stride(depth)), planes(planes_of_row), codes(n * planes * stride) {}

  int64_t rows, stride;
  int planes;  // 1 or 2
  Buffer<uint8_t> codes;

  uint8_t* row(int64_t r) const { return codes.data() + r * planes * stride; }
};

// Says what is read after a tile of rows [r0, r1) and panels up to p1: the next rows, and of the next panels, which all
// rows together prefetch, the part that falls to these.
inline void set_next(const Int8Rows& a, const Int8Panels& b, int64_t r0, int64_t r1, int64_t p1, Int8Tile& tile) {
  const int64_t next = r1 < a.rows ? r1 : 0;
  tile.next_a = a.row(next);
  tile.next_a_bytes = std::min(r1 - r0, a.rows - next) * a.planes * a.stride;
  const int64_t bytes = std::min(tile.panels, b.panels() - p1) * b.panel_bytes();
  tile.next_panel = b.panel(p1) + bytes * r0 / a.rows;
  tile.next_panel_bytes = bytes * r1 / a.rows - bytes * r0 / a.rows;
}

// Sums of rows [r0, r1) with panels [p0, p1), serially: finish(row, sums of plane 0, of plane 1 or null), the sums of
// columns 32 p0 ... 32 p1. They begin at start, [columns of all panels], or at 0 if it is null.
template <class Finish>
void gemm_int8_block(const Int8Rows& a, const Int8Panels& b, const int32_t* start, int64_t r0, int64_t r1, int64_t p0,
                     int64_t p1, Finish finish) {
  const int64_t width = (p1 - p0) * kInt8Panel;
  const int most = kernels().int8_rows;
  const Buffer<int32_t> sums(most * width);
  for_parts(r1 - r0, most / a.planes, [&](int64_t begin, int64_t end) {
    Int8Tile tile = b.tile(p0, p1);
    tile.rows = static_cast<int>(end - begin) * a.planes;
    tile.a = a.row(r0 + begin), tile.a_stride = a.stride;
    tile.start = start ? start + p0 * kInt8Panel : nullptr;
    tile.c = sums.data(), tile.c_stride = width;
    set_next(a, b, r0 + begin, r0 + end, p1, tile);
    kernels().int8_tile(tile);
    for (int64_t r = begin; r < end; ++r) {
      const int32_t* of_row = sums.data() + (r - begin) * a.planes * width;
      finish(r0 + r, of_row, a.planes == 2 ? of_row + width : nullptr);
    }
  });
}

// All sums, on all threads: finish(row, first column, columns, sums of plane 0, of plane 1 or null).
template <class Finish>
void gemm_int8(const Int8Rows& a, const Int8Panels& b, const int32_t* start, Finish finish) {
  constexpr int64_t kPanels = kInt8Columns / kInt8Panel, kTiles = 4;
  const int64_t tall = kInt8Rows / a.planes, tiles = (a.rows + tall - 1) / tall, down = (tiles + kTiles - 1) / kTiles;
  const int64_t across = (b.panels() + kPanels - 1) / kPanels;
  parallel_for(down * across, [&](int64_t item) {
    const int64_t p0 = item / down * kPanels, p1 = std::min(b.panels(), p0 + kPanels), i = item % down;
    const int64_t t0 = tiles * i / down, t1 = tiles * (i + 1) / down;
    const int64_t c0 = p0 * kInt8Panel, n = std::min(b.columns(), p1 * kInt8Panel) - c0;
    gemm_int8_block(a, b, start, a.rows * t0 / tiles, a.rows * t1 / tiles, p0, p1,
                    [&](int64_t row, const int32_t* sum1, const int32_t* sum2) { finish(row, c0, n, sum1, sum2); });
  });
}

}  // namespace bcq
