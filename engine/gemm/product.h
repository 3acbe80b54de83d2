// Products of float matrices, the only ones of a forward or backward pass.
//
// The left operand is read where it lies, 14 rows at a time; the right one is packed into panels of 32 columns, which
// stay in cache while the rows pass. Every value is a sum of its own (engine/kernels/float_tile.h): no cut into items,
// samples or tiles changes it, and the instruction sets agree to the last bit.
#pragma once
#include "engine/core/buffer.h"
#include "engine/kernels/kernels.h"

namespace bcq {

// Entry (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;

  Matrix at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
  Matrix transposed() const { return {data, column, row}; }
};

inline Matrix row_major(const float* data, int64_t columns) { return {data, columns, 1}; }

// A right operand [depth, columns], rows or columns of which are contiguous: [panels, depth, 32], zeros beyond the
// last.
class FloatPanels {
 public:
  FloatPanels() = default;
  FloatPanels(const Matrix& b, int64_t depth, int64_t columns);
  const float* panel(int64_t p) const { return values_.data() + p * depth_ * kFloatPanel; }

 private:
  int64_t depth_ = 0;
  Buffer<float> values_;
};

// c[i, j] = start[i, j] + (a b)[i, j] for all rows of a, serially; start may be c, null (zeros) or, with a stride of 0,
// one row for all. b may be longer and wider: `depth` of its rows and `columns` count.
void multiply(const Matrix& a, int64_t rows, const FloatPanels& b, int64_t depth, int64_t columns, const float* start,
              int64_t start_stride, float* c, int64_t ldc);
inline void multiply(const Matrix& a, int64_t rows, const Matrix& b, int64_t depth, int64_t columns, const float* start,
                     int64_t start_stride, float* c, int64_t ldc) {
  multiply(a, rows, FloatPanels(b, depth, columns), depth, columns, start, start_stride, c, ldc);
}

}  // namespace bcq
