#include "engine/nn/mlp.h"

#include "engine/core/check.h"
#include "engine/gemm/gemm_float.h"
#include "engine/nn/int8_layer.h"

namespace bcq {
namespace {

Tensor fused_integer_mlp(const Layer& fc1, const Layer& fc2, const Tensor& x, Gelu form) {
  Shape shape = x.shape;
  shape.back() = fc1.weight.dim(0);
  const Grid& grid = fc2.quantized->left;
  const Int8Rows hidden(x.rows(), shape.back(), grid->planes());
  int8_linear(
      fc1, code_rows(fc1.quantized->left, x), Broadcast(fc1.added, shape),
      [](int64_t, int64_t) {
        static thread_local float part[kInt8Columns];
        return part;
      },
      [&](int64_t r, int64_t c0, int64_t n, float* y) {
        gelu_kernel(form)(y, y, n);
        grid->code(y, n, 0, hidden.row(r) + c0, hidden.stride);
      });
  shape.back() = fc2.weight.dim(0);
  return int8_linear(fc2, hidden, shape);
}

}  // namespace

Tensor fused_float_mlp(const Tensor& x, const Weight& w1, const Tensor& b1, const Weight& w2, const Tensor& b2,
                       Gelu form) {
  if (is_few_rows(x) || w1.packed() || w2.packed())
    return linear(nullptr, gelu(nullptr, linear(nullptr, x, w1, b1), form), w2, b2);
  require(x.dim(-1) == w1.dim(1) && w1.dim(0) == w2.dim(1), "mlp: shapes %s, %s and %s do not fit", to_string(x.shape),
          to_string(w1.shape()), to_string(w2.shape()));
  Shape shape = x.shape;
  shape.back() = w2.dim(0);
  Tensor y = Tensor::uninitialized(shape);
  const int64_t rows = x.rows(), stride = row_stride(w1.dim(0));
  const Buffer<float> hidden(rows * stride);
  Buffer<float> copy;
  linear_rows({.x = with_row_stride(x, copy),
               .rows = rows,
               .w = w1,
               .bias = b1.data,
               .y = hidden.data(),
               .y_stride = stride,
               .activation = gelu_kernel(form)});
  linear_rows({.x = row_major(hidden.data(), stride),
               .rows = rows,
               .w = w2,
               .bias = b2.data,
               .y = y.data,
               .y_stride = shape.back()});
  return y;
}

Tensor mlp(const Context& ctx, const Layer& fc1, const Layer& fc2, const Tensor& x, Gelu form) {
  if (ctx.observer == nullptr && ctx.tape == nullptr) {
    if (ctx.precision == Precision::Float)
      return fused_float_mlp(x, fc1.weight, fc1.bias.loaded, fc2.weight, fc2.bias.loaded, form);
    if (ctx.precision == Precision::Integer && fc1.int8() && fc2.int8()) return fused_integer_mlp(fc1, fc2, x, form);
  }
  return fc2.run(ctx, gelu(ctx.tape, fc1.run(ctx, x), form));
}

}  // namespace bcq
