// The operations transformers are made of. Each differentiable op takes the tape
// first (nullptr: no gradients wanted) and has its backward beside its forward.
//
// A result depends neither on the number of threads nor on what else is in the batch
// nor on the instruction set: every value of a matrix product is a sum of its own
// (engine/gemm/gemm_float.h).
#pragma once
#include "engine/core/parallel.h"
#include "engine/gemm/weight.h"
#include "engine/nn/tape.h"

namespace bcq {

// f(row) over all rows of x, several rows an item.
template <class F>
void for_rows(const Tensor& x, F f) {
  const int64_t rows = x.rows(), width = x.dim(-1) > 1 ? x.dim(-1) : 1, most = kElementsPerItem / width;
  const int64_t per_item = most > 1 ? most : 1;
  parallel_for((rows + per_item - 1) / per_item, [&](int64_t i) {
    for (int64_t r = i * per_item; r < rows && r < (i + 1) * per_item; ++r) f(r);
  });
}

// y = x Wᵀ + bias.  x [B, ..., K], weight [O, K] (constant), bias [O] or empty -> [B, ..., O]. window_bits: of
// PackedWeight::multiply.
Tensor linear(Tape* tape, const Tensor& x, const Weight& weight, const Tensor& bias, int window_bits = 24);

// Per sample and head: a bᵀ (transpose_b: b [B, H, M, K]) or a b (b [B, H, K, M]).  a [B, H, N, K] -> [B, H, N, M]
Tensor matmul(Tape* tape, const Tensor& a, const Tensor& b, bool transpose_b);

Tensor add(Tape* tape, const Tensor& a, const Tensor& b);  // same shape
Tensor scale(Tape* tape, const Tensor& x, float s);
// y[..., c] = gamma[c] x[..., c]; x itself where gamma is empty. ("Going deeper with Image Transformers": LayerScale)
Tensor scale_channels(Tape* tape, const Tensor& x, const Tensor& gamma);
// Side by side: [B, ..., D1], [B, ..., D2] ... -> [B, ..., D1 + D2 ...]
Tensor concat(Tape* tape, const std::vector<Tensor>& parts);
Tensor softmax(Tape* tape, const Tensor& x);  // over the last dimension
// x Phi(x), or an approximation of it: 0.5 x (1 + tanh(0.79788456 (x + 0.044715 x^3))), x / (1 + exp(-1.702 x)).
enum class Gelu { Erf, Tanh, Quick };
Tensor gelu(Tape* tape, const Tensor& x, Gelu form);
inline Tensor gelu_erf(Tape* tape, const Tensor& x) { return gelu(tape, x, Gelu::Erf); }
inline Tensor gelu_tanh(const Tensor& x) { return gelu(nullptr, x, Gelu::Tanh); }
void (*gelu_kernel(Gelu form))(const float* x, float* y, int64_t n);
Tensor relu(const Tensor& x);
// x / (1 + exp(-x)) of the gate, times `up`, of the same shape. ("GLU Variants Improve Transformer")
Tensor swiglu(const Tensor& gate, const Tensor& up);
// gamma (x - mean) / sqrt(var + eps) + beta over the last dimension, biased variance.
Tensor layer_norm(Tape* tape, const Tensor& x, const Tensor& gamma, const Tensor& beta, float eps);
// gamma x / sqrt(mean(x²) + eps) + beta over the last dimension; networks have no beta (zeros), what is folded into a
// norm may. ("Root Mean Square Layer Normalization")
Tensor rms_norm(const Tensor& x, const Tensor& gamma, const Tensor& beta, float eps);

// Put `tokens` [K, D] before the N rows of each sample and add positions [K+N, D]: [B, N, D] -> [B, K+N, D].
Tensor prepend_tokens(Tape* tape, const Tensor& x, const Tensor& tokens, const Tensor& positions);
Tensor select_token(Tape* tape, const Tensor& x, int64_t index);  // [B, N, D] -> [B, D]

Tensor mean_tokens(Tape* tape, const Tensor& x);  // [B, N, D] -> [B, D]

// Row i of each sample of the result is row index[i] of the sample of x: x [B, N, D], index [M] -> shape, of B*M*D
// values in all.
Tensor gather_rows(Tape* tape, const Tensor& x, const std::vector<int64_t>& index, const Shape& shape);
// Entries index[i] of an axis of x.
Tensor take(const Tensor& x, int axis, const std::vector<int64_t>& index);
// Non-overlapping P x P patches, row-major; inside a patch channel, row, column: as a convolution
// kernel [O, C, P, P] flattens.  pixels [B, C, R, S] -> [B, (R/P)(S/P), C*P*P]
Tensor unfold_patches(const Tensor& pixels, int64_t patch);

// The values c[...] that belong to a row of y[b, ...]: c has the rank of y less one; a dimension of 1 is shared, one
// longer than y's is cut to its first entries (a bias per position used on a shorter text), one shorter is an Error.
// Of an empty c there are no rows.
class Broadcast {
 public:
  Broadcast(const Tensor& c, const Shape& y);
  const float* row(int64_t r) const;  // of y's rows

 private:
  Tensor c_;
  Shape y_;
};
// y += c, row by row; with `first`, y begins at that position of a c per position [T, n].
void add_broadcast(Tensor& y, const Tensor& c, int64_t first = 0);

}  // namespace bcq
