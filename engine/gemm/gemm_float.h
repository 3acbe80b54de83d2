// Products of float matrices, the only ones of a forward or backward pass: y = x Wᵀ + b.
#pragma once
#include <algorithm>
#include <cmath>

#include "engine/core/buffer.h"
#include "engine/gemm/weight.h"
#include "engine/kernels/kernels.h"

namespace bcq {

// The definition: y [rows, out] = x [rows, in] Wᵀ + bias, w [out, in], bias [out] or null for none. Every value is a
// sum of its own, of fused multiply-adds in the order of columns, kFloatRun of them from 0 and then the next. No cut
// into items, samples or tiles changes it, and all instruction sets agree to the last bit.
inline void linear_reference(const float* x, int64_t rows, const float* w, int64_t out, int64_t in, const float* bias,
                             float* y) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < out; ++o) {
      float& value = y[r * out + o];
      if (bias) value = bias[o];
      for (int64_t begin = 0; begin < in; begin += kFloatRun) {
        float sum = 0;
        for (int64_t i = begin; i < std::min(in, begin + kFloatRun); ++i)
          sum = std::fma(x[r * in + i], w[o * in + i], sum);
        value = bias || begin > 0 ? value + sum : sum;
      }
    }
}

// The same of samples of at most kFewRows rows, which read the weight once and need no part of it copied: products are
// rounded and go to 16 sums, column i to sum i mod 16, which are added up in halves.
constexpr int64_t kFewRows = 4;
inline void linear_few_reference(const float* x, int64_t rows, const float* w, int64_t out, int64_t in,
                                 const float* bias, float* y) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < out; ++o) {
      float sum[16] = {};
      for (int64_t i = 0; i < in; ++i) sum[i % 16] += x[r * in + i] * w[o * in + i];
      for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
      y[r * out + o] = bias ? sum[0] + bias[o] : sum[0];
    }
}

inline bool is_few_rows(const Tensor& x) { return x.rows() <= kFewRows * x.dim(0); }

// One of these two, by the rows of a sample: x [B, ..., in], bias [out] or empty -> y [B, ..., out]. On all threads.
void linear_float(const Tensor& x, const Weight& w, const Tensor& bias, Tensor& y);

// ---- Its parts -----------------------------------------------------------------------------------------

// Entry (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;

  Matrix at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
  Matrix transposed() const { return {data, column, row}; }
};
inline Matrix row_major(const float* data, int64_t stride) { return {data, stride, 1}; }

// x Wᵀ + bias of many rows, or x W; on all threads.
struct LinearRows {
  Matrix x;
  int64_t rows;
  const Weight& w;
  bool transposed = true;       // x Wᵀ, else x W
  const float* bias = nullptr;  // [columns of y]
  float* y;                     // rows y_stride apart
  int64_t y_stride;
  void (*activation)(const float*, float*, int64_t) = nullptr;  // as FloatGemm has it
};
void linear_rows(const LinearRows& p);

// From one row of a left operand to the next: rows that are a multiple of 4096 bytes apart share a few lines of the
// nearest cache.
inline int64_t row_stride(int64_t depth) { return depth % 1024 == 0 ? depth + 16 : depth; }
// The rows of x so far apart: where they are, or copied.
Matrix with_row_stride(const Tensor& x, Buffer<float>& copy);

// Panels of 32 columns where they lie, the rows of a panel one after the other.
struct FloatPanelsView {
  const float* data;
  int64_t stride;  // from one panel to the next

  const float* panel(int64_t p) const { return data + p * stride; }
  FloatPanelsView at(int64_t k, int64_t p) const { return {panel(p) + k * kFloatPanel, stride}; }
};

// A right operand [depth, columns], rows or columns of which are contiguous, packed: [panels, depth, 32], zeros beyond
// the last column. Its panels stay in cache while the rows of the left operand, read where they lie, pass.
class FloatPanels {
 public:
  FloatPanels() = default;
  FloatPanels(const Matrix& b, int64_t depth, int64_t columns);
  explicit FloatPanels(const Weight& w);  // of Wᵀ, w [out, in]; on all threads
  FloatPanelsView view() const { return {values_.data(), depth_ * kFloatPanel}; }
  void columns(int64_t begin, int64_t end, float* y) const;  // of these, one after the other: rows of W

 private:
  int64_t depth_ = 0;
  Buffer<float> values_;
};

// c [rows, columns] = start + a b, serially. b may be longer and wider.
struct FloatGemm {
  Matrix a;
  int64_t rows;
  FloatPanelsView b;
  int64_t depth, columns;
  float* c;
  int64_t c_stride;
  const float* start = nullptr;  // c, null for zeros, or with a stride of 0 one row for all
  int64_t start_stride = 0;
  FloatPanelsView next{};                                       // as many panels, which are multiplied after these,
  int64_t next_depth = 0;                                       // of this depth; 0: it is not known which
  void (*activation)(const float*, float*, int64_t) = nullptr;  // of Kernels: applied to c while it is in cache
};
void gemm_float(const FloatGemm& p);

}  // namespace bcq
