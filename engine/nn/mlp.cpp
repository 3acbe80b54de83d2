#include "engine/nn/mlp.h"

#include "engine/nn/int8_layer.h"
#include "engine/nn/ops.h"

namespace bcq {
namespace {

Tensor fused_integer_mlp(const Layer& fc1, const Layer& fc2, const Tensor& x) {
  Shape shape = x.shape;
  shape.back() = fc1.weight.dim(0);
  const Grid& grid = fc2.int8()->left;
  const CodedRows hidden(grid, x.rows(), shape.back());
  int8_linear(
      fc1, code_rows(fc1.int8()->left, x), Broadcast(fc1.added, shape),
      [](int64_t, int64_t) {
        static thread_local float part[kInt8Columns];
        return part;
      },
      [&](int64_t r, int64_t c0, int64_t n, float* y) {
        kernels().gelu_erf(y, y, n);
        grid->code(y, n, 0, hidden.row(r) + c0, hidden.stride);
      });
  shape.back() = fc2.weight.dim(0);
  return int8_linear(fc2, hidden, shape);
}

}  // namespace

Tensor mlp(const Context& ctx, const Layer& fc1, const Layer& fc2, const Tensor& x) {
  if (ctx.observer == nullptr && ctx.tape == nullptr) {
    if (ctx.precision == Precision::Float)
      return fused_mlp(x, fc1.weight, fc1.bias.loaded, fc2.weight, fc2.bias.loaded);
    if (ctx.precision == Precision::Integer && fc1.int8() && fc2.int8()) return fused_integer_mlp(fc1, fc2, x);
  }
  return fc2.run(ctx, gelu_erf(ctx.tape, fc1.run(ctx, x)));
}

}  // namespace bcq
