// Layers in integers: what Precision::Integer computes.
//
// An operand is a sum of planes, x̂ = Σ_p s_p (u_p - z): one u8 plane for a uniform grid, z its zero point, two with z =
// 0 for a twin-uniform one (engine/grid). With s8 codes v of the other operand, ŵ = s_w v,
//   x̂ ŵᵀ = Σ_p s_p s_w (Σ u_p v - z Σ v),
// of which the sums are exact. What is rounded is one sum to a float if it has more than 24 bits, the product of the
// scales, the product with it, and the additions of terms, bias and compensation: fewer roundings than the simulated
// product, which rounds every operand and every partial sum.
#pragma once
#include "engine/gemm/gemm_int8.h"
#include "engine/nn/layer.h"
#include "engine/nn/ops.h"

namespace bcq {

// Sums to floats, column by column: Σ_p scale_p sum_p + bias, of sums that begin at start: -z Σ v, or null for z = 0.
// The bias is that of the layer as it stands when a product is computed, [columns]; null: none. Where the left grid
// adds a constant to its values, `constant` is what that makes of each column, else it is empty.
struct Dequantizer {
  std::vector<int32_t> starts;
  std::vector<float> scale1, scale2, zeros, constant;

  const int32_t* start() const { return starts.empty() ? nullptr : starts.data(); }
  void operator()(int64_t c0, int64_t n, const int32_t* sum1, const int32_t* sum2, const float* bias, float* y) const {
    kernels().from_sums(sum1, sum2, scale1.data() + c0, sum2 ? scale2.data() + c0 : nullptr,
                        (bias ? bias : zeros.data()) + c0, y, n);
    if (!constant.empty()) kernels().add(y, constant.data() + c0, y, n);
  }
};

// What a linear layer is run from; of a product of activations there is nothing to prepare.
struct Int8Layer {
  std::shared_ptr<const Int8Panels> weight;
  Dequantizer dequantizer;
};

// Null when the layer has to be simulated: an operand that stays float, or a grid that has no integer form here (more
// than 8 bits, affine, or units along another axis than a linear layer's rows and a product's heads).
// `same_weight` was made of the same weight on the same grid: its codes are shared.
std::shared_ptr<const Int8Layer> make_int8(const Layer& layer, const Int8Layer* same_weight);

// Rows [begin, end) of a linear layer's rounded weight, bit by bit: step times code.
void decode_weight(const Int8Panels& weight, const Grid& grid, int64_t begin, int64_t end, float* y);

// Layer::product of a layer that was prepared.
Tensor int8_layer_product(const Layer& layer, const Tensor& x, const Tensor& rhs);

// ---- The parts of it, for fused layers (engine/nn/attention.cpp, mlp.cpp) -------------------

// The codes of a left operand.
Int8Rows code_rows(const Grid& grid, const Tensor& x);  // on all threads

// A linear layer from the codes of its input: [rows, out], compensated; added is that of the output's shape. Each part
// of a row, of at most kInt8Columns, is computed into place(row, first column), then handed to done(row, first column,
// n, values), on any thread.
template <class Place, class Done>
void int8_linear(const Layer& layer, const Int8Rows& x, const Broadcast& added, Place place, Done done) {
  const Int8Layer& in = *layer.int8();
  const Tensor& bias = layer.bias.in(Precision::Integer);
  gemm_int8(x, *in.weight, in.dequantizer.start(),
            [&](int64_t r, int64_t c0, int64_t n, const int32_t* sum1, const int32_t* sum2) {
              float* y = place(r, c0);
              in.dequantizer(c0, n, sum1, sum2, bias.data, y);
              if (!layer.added.empty()) kernels().add(y, added.row(r) + c0, y, n);
              done(r, c0, n, y);
            });
}
// The same, into a tensor of this shape.
Tensor int8_linear(const Layer& layer, const Int8Rows& x, const Shape& shape);

// The sum of the n values that the codes of a row stand for, one over it; 1 for a sum of 0.
float inverse_row_sum(const Grid& grid, int64_t unit, const uint8_t* codes, int64_t stride, int64_t n);

// One head of the right operand of q kᵀ or A v, packed; b: `rows` rows of n floats, `stride` apart.
struct PackedHead {
  PackedHead(const Layer& layer, int64_t head, int64_t heads, const float* b, int64_t rows, int64_t n, int64_t stride);
  Int8Panels right;
  Dequantizer dequantizer;
};

}  // namespace bcq
