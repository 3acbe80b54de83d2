#include "engine/nn/blocks.h"

#include <cmath>
#include <limits>

#include "engine/gemm/product.h"
#include "engine/nn/integer.h"
#include "engine/nn/ops.h"

namespace bcq {
namespace {

bool in_one_go(const Context& ctx, Precision precision, const Site& first, const Site& second) {
  return ctx.precision == precision && ctx.observer == nullptr && ctx.tape == nullptr &&
         (precision == Precision::Float || (first.integer && second.integer));
}

// Scores of one query become weights, in place: of query r of head h in sample b. A row is as long as whole registers;
// what lies beyond its N scores counts as -inf, and exp(-inf) adds 0 to a sum.
void weigh(const AttentionForm& form, float scale, int64_t b, int64_t h, int64_t r, int64_t N, int64_t padded,
           float* scores) {
  if (!form.scales_queries) kernels().scale(scores, scale, scores, N);
  if (!form.bias.empty()) kernels().add(scores, form.bias.data + (h * N + r) * N, scores, N);
  if (!form.mask.empty()) kernels().add(scores, form.mask.data + (b % form.mask.dim(0) * N + r) * N, scores, N);
  std::fill(scores + N, scores + padded, -std::numeric_limits<float>::infinity());
  kernels().softmax(scores, padded);
}
int64_t padded_scores(int64_t N) { return (N + 15) / 16 * 16; }

Tensor integer_mlp(const Site& fc1, const Site& fc2, const Tensor& x) {
  Shape shape = x.shape;
  shape.back() = fc1.weight.dim(0);
  const Grid& grid = fc2.integer->left;
  const CodedRows hidden(grid, x.rows(), shape.back());
  integer_linear(
      fc1, code_rows(fc1.integer->left, x), Broadcast(fc1.bc, shape),
      [](int64_t, int64_t) {
        static thread_local float part[kInt8Columns];
        return part;
      },
      [&](int64_t r, int64_t c0, int64_t n, float* y) {
        kernels().gelu_erf(y, y, n);
        grid->code(y, n, 0, hidden.row(r) + c0, hidden.stride);
      });
  shape.back() = fc2.weight.dim(0);
  return integer_linear(fc2, hidden, shape);
}

Tensor integer_attend(const Site& qk, const Site& av, const Tensor& qkv, const AttentionForm& form, float scale) {
  const int64_t B = qkv.dim(0), N = qkv.dim(1), D = qkv.dim(2) / 3, H = form.heads, d = D / H;
  const Grid &queries = qk.integer->left, &weights = av.integer->left;
  const Broadcast qk_bc(qk.bc, {B, H, N, N}), av_bc(av.bc, {B, H, N, d});
  const int64_t padded = padded_scores(N);
  Tensor y = Tensor::uninitialized({B, N, D});
  parallel_for(B * H, [&](int64_t i) {
    const int64_t b = i / H, h = i % H;
    const float *q = qkv.data + b * N * 3 * D + h * d, *k = q + D, *v = k + D;
    const PackedHead keys(qk, h, H, k, N, d, 3 * D), values(av, h, H, v, N, d, 3 * D);
    const CodedRows coded(queries, N, d), a(weights, N, padded);
    const Buffer<float> row(std::max(padded, d));
    for (int64_t r = 0; r < N; ++r) {
      const float* x = q + r * 3 * D;
      if (form.scales_queries) {
        kernels().scale(x, scale, row.data(), d);
        x = row.data();
      }
      queries->code(x, d, h * queries->units() / H, coded.row(r), coded.stride);
    }
    int8_block(coded.view(), keys.right, keys.dequantizer.start(), 0, N, 0, keys.right.panels(),
               [&](int64_t r, const int32_t* sum1, const int32_t* sum2) {
                 float* scores = row.data();
                 keys.dequantizer(0, N, sum1, sum2, scores);
                 if (!qk.bc.empty()) kernels().add(scores, qk_bc.row(i * N + r), scores, N);
                 weigh(form, scale, b, h, r, N, padded, scores);
                 weights->code(scores, padded, h * weights->units() / H, a.row(r), a.stride);
               });
    int8_block(a.view(), values.right, values.dequantizer.start(), 0, N, 0, values.right.panels(),
               [&](int64_t r, const int32_t* sum1, const int32_t* sum2) {
                 float* out = y.data + (b * N + r) * D + h * d;
                 values.dequantizer(0, d, sum1, sum2, out);
                 if (!av.bc.empty()) kernels().add(out, av_bc.row(i * N + r), out, d);
               });
  });
  return y;
}

Tensor float_attend(const Tensor& qkv, const AttentionForm& form, float scale) {
  constexpr int64_t kQueries = 5 * kFloatRows;  // at a time: their scores stay in cache
  const int64_t B = qkv.dim(0), N = qkv.dim(1), D = qkv.dim(2) / 3, H = form.heads, d = D / H;
  const int64_t padded = padded_scores(N);
  Tensor y = Tensor::uninitialized({B, N, D});
  parallel_for(B * H, [&](int64_t i) {
    const int64_t b = i / H, h = i % H;
    const Matrix q = row_major(qkv.data + b * N * 3 * D + h * d, 3 * D);
    const FloatPanels keys(q.at(0, D).transposed(), d, N), values(q.at(0, 2 * D), N, d);
    const Buffer<float> scaled(kQueries * d), scores(kQueries * padded);
    for_parts(N, kQueries, [&](int64_t r0, int64_t r1) {
      Matrix queries = q.at(r0, 0);
      if (form.scales_queries) {
        queries = row_major(scaled.data(), d);
        for (int64_t r = r0; r < r1; ++r) kernels().scale(q.at(r, 0).data, scale, scaled.data() + (r - r0) * d, d);
      }
      multiply(queries, r1 - r0, keys, d, N, nullptr, 0, scores.data(), padded);
      for (int64_t r = r0; r < r1; ++r) weigh(form, scale, b, h, r, N, padded, scores.data() + (r - r0) * padded);
      multiply(row_major(scores.data(), padded), r1 - r0, values, N, d, nullptr, 0, y.data + (b * N + r0) * D + h * d,
               D);
    });
  });
  return y;
}

}  // namespace

Tensor mlp(const Context& ctx, const Site& fc1, const Site& fc2, const Tensor& x) {
  if (in_one_go(ctx, Precision::Integer, fc1, fc2)) return integer_mlp(fc1, fc2, x);
  if (in_one_go(ctx, Precision::Float, fc1, fc2)) return perceptron(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias);
  return fc2.run(ctx, gelu_erf(ctx.tape, fc1.run(ctx, x)));
}

Tensor attend(const Context& ctx, const Site& qk, const Site& av, const Tensor& qkv, const AttentionForm& form) {
  const int64_t H = form.heads;
  const float scale_by = 1.f / std::sqrt(static_cast<float>(qkv.dim(2) / 3 / H));
  if (in_one_go(ctx, Precision::Integer, qk, av)) return integer_attend(qk, av, qkv, form, scale_by);
  if (in_one_go(ctx, Precision::Float, qk, av)) return float_attend(qkv, form, scale_by);
  Tape* t = ctx.tape;
  const Tensor q = split_heads(t, qkv, H, 0, 3), k = split_heads(t, qkv, H, 1, 3), v = split_heads(t, qkv, H, 2, 3);
  Tensor scores = qk.run(ctx, form.scales_queries ? scale(t, q, scale_by) : q, k);  // [B, H, N, N]
  if (!form.scales_queries) scores = scale(t, scores, scale_by);
  if (!form.bias.empty()) scores = add_window_bias(t, scores, form.bias, form.mask);
  return merge_heads(t, av.run(ctx, softmax(t, scores), v));
}

}  // namespace bcq
