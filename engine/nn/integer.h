// Sites in integers: what Precision::Integer computes.
//
// An operand is a sum of planes, x̂ = Σ_p s_p (u_p - z): one u8 plane with z = 128 for a uniform grid, two with z = 0
// for a twin-uniform one (engine/grid). With s8 codes v of the other operand, ŵ = s_w v,
//   x̂ ŵᵀ = Σ_p s_p s_w (Σ u_p v - z Σ v),
// of which the sums are exact. What is rounded is one sum to a float if it has more than 24 bits, the product of the
// scales, the product with it, and the additions of terms, bias and compensation: fewer roundings than the simulated
// product, which rounds every operand and every partial sum.
#pragma once
#include "engine/gemm/int8.h"
#include "engine/nn/ops.h"
#include "engine/nn/site.h"

namespace bcq {

// Sums to floats, column by column: Σ_p scale_p sum_p + bias, of sums that begin at start: -z Σ v, or null for z = 0.
struct Dequantizer {
  std::vector<int32_t> starts;
  std::vector<float> scale1, scale2, bias;

  const int32_t* start() const { return starts.empty() ? nullptr : starts.data(); }
  void operator()(int64_t c0, int64_t n, const int32_t* sum1, const int32_t* sum2, float* y) const {
    kernels().from_sums(sum1, sum2, scale1.data() + c0, sum2 ? scale2.data() + c0 : nullptr, bias.data() + c0, y, n);
  }
};

// What a site is run from. Made once, when its grids and its compensation are final.
struct IntegerSite {
  Grid left, right;
  std::shared_ptr<const Int8Panels> weight;  // of a linear site
  Dequantizer dequantizer;                   // of a linear site
};

// Null when the site has to be simulated: an operand that stays float, or a grid that has no integer form here (more
// than 8 bits, affine, or units along another axis than a linear site's rows and a product's heads).
// `same_weight` was made of the same weight on the same grid: its codes are shared.
std::shared_ptr<const IntegerSite> make_integer(const Site& site, const IntegerSite* same_weight = nullptr);

// Rows [begin, end) of a linear site's weight_hat, bit by bit: step times code.
void decode_weight(const IntegerSite& site, int64_t begin, int64_t end, float* y);

// Site::product of a site that was prepared.
Tensor integer_product(const Site& site, const Tensor& x, const Tensor& rhs);

// ---- The parts of it, for chains of sites that run in one go (engine/nn/blocks.cpp) -------------------

// Codes [rows, planes, depth] of n rows of a left operand.
struct CodedRows {
  CodedRows(const Grid& grid, int64_t rows, int64_t depth);
  Int8Rows view() const { return {codes.data(), rows, stride, planes}; }
  uint8_t* row(int64_t r) const { return codes.data() + r * planes * stride; }

  int64_t rows, stride;
  int planes;
  Buffer<uint8_t> codes;
};
CodedRows code_rows(const Grid& grid, const Tensor& x);  // on all threads

// A linear site from the codes of its input: [rows, out], compensated; bc is that of the output's shape. Each part of a
// row, of at most kInt8Columns, is computed into place(row, first column), then handed to done(row, first column, n,
// values), on any thread.
template <class Place, class Done>
void integer_linear(const Site& site, const CodedRows& x, const Broadcast& bc, Place place, Done done) {
  const IntegerSite& in = *site.integer;
  int8_product(x.view(), *in.weight, in.dequantizer.start(),
               [&](int64_t r, int64_t c0, int64_t n, const int32_t* sum1, const int32_t* sum2) {
                 float* y = place(r, c0);
                 in.dequantizer(c0, n, sum1, sum2, y);
                 if (!site.bc.empty()) kernels().add(y, bc.row(r) + c0, y, n);
                 done(r, c0, n, y);
               });
}
// The same, into a tensor of this shape.
Tensor integer_linear(const Site& site, const CodedRows& x, const Shape& shape);

// One head of the right operand of q kᵀ or A v, packed; b: `rows` rows of n floats, `stride` apart.
struct PackedHead {
  PackedHead(const Site& site, int64_t head, int64_t heads, const float* b, int64_t rows, int64_t n, int64_t stride);
  Int8Panels right;
  Dequantizer dequantizer;
};

}  // namespace bcq
