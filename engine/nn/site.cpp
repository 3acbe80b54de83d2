#include "engine/nn/site.h"

#include "engine/core/check.h"
#include "engine/nn/attention.h"
#include "engine/nn/integer.h"

namespace bcq {

Tensor Site::product(Precision precision, Tape* tape, const Tensor& x, const Tensor& rhs, int64_t first) const {
  const bool transpose = role == Role::QK;
  if (precision == Precision::Float)
    return is_linear() ? linear(tape, x, weight, bias) : matmul(tape, x, rhs, transpose);
  require(tape == nullptr, "%s: gradients are those of the float network", name);
  if (precision == Precision::Integer && integer) return integer_product(*this, x, rhs);
  Tensor y = is_linear() ? linear(nullptr, fake_quantize(a, x), weight_hat.empty() ? weight : weight_hat,
                                  bias_hat.empty() ? bias : bias_hat)
                         : matmul(nullptr, fake_quantize(a, x), fake_quantize(b, rhs), transpose);
  if (!bc.empty()) add_broadcast(y, bc, first);
  return y;
}

Tensor Site::run(const Context& ctx, const Tensor& x) const { return run(ctx, x, Tensor{}); }

Tensor Site::run(const Context& ctx, const Tensor& x, const Tensor& rhs) const {
  if (ctx.observer) ctx.observer->input(*this, x);
  Tensor y = product(ctx.precision, ctx.tape, x, rhs, ctx.cache ? ctx.cache->length : 0);
  if (ctx.tape && y.slot < 0) ctx.tape->watch(y);  // the first site of a network: its input is data
  if (ctx.observer) ctx.observer->site(*this, x, rhs, y);
  return y;
}

Tensor run_chain(const Context& ctx, const Site& last, const Tensor& x, const Body& body) {
  const Tensor y = body(ctx, x);
  if (ctx.observer) ctx.observer->chain(last, x, y, body);
  return y;
}

void Site::set_packed(PackedWeight w) {
  b = Identity{};
  packed = std::make_shared<const PackedWeight>(std::move(w));
  weight_hat = packed;
}

bool Site::prepare_integer(const IntegerSite* same_weight) {
  integer = make_integer(*this, same_weight);
  if (integer && is_linear())
    weight_hat = Weight(weight.shape(), [codes = integer](int64_t begin, int64_t end, float* y) {
      decode_weight(*codes, begin, end, y);
    });
  return integer != nullptr;
}

void Site::clear() {
  a = b = Identity{};
  weight_hat = Weight{};
  packed = nullptr;
  integer = nullptr;
  bias_hat = bc = Tensor{};
}

}  // namespace bcq
