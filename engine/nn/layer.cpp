#include "engine/nn/layer.h"

#include "engine/core/check.h"
#include "engine/grid/binary.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/attention.h"
#include "engine/nn/int8_layer.h"
#include "engine/nn/ops.h"

namespace bcq {
namespace {

// a + b, where an empty a is zero.
Tensor sum(const Tensor& a, const Tensor& b) {
  require(a.empty() || a.shape == b.shape, "bias compensation: a bias of shape %s on top of one of shape %s",
          to_string(b.shape), to_string(a.shape));
  Tensor y = b.clone();
  if (!a.empty()) kernels().add(a.data, b.data, y.data, y.size());
  return y;
}

Shape product_shape(const Layer& layer, const Tensor& a, const Tensor& b) {
  Shape shape = a.shape;
  shape.back() = layer.is_linear() ? layer.weight.dim(0) : b.dim(layer.role == Role::QK ? 2 : 3);
  return shape;
}

// The product of rows as Quantized::renormalized has them with a right operand that is rounded already.
Tensor renormalized_product(const Grid& grid, const Tensor& weights, const Tensor& values) {
  const int64_t n = weights.dim(-1);
  Tensor a = weights.clone();
  for_rows(a, [&](int64_t r) { scale_to_largest(a.data + r * n, n); });
  a = fake_quantize(grid, a);
  Tensor y = matmul(nullptr, a, values, false);
  for_rows(y, [&](int64_t r) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[r * n + i];
    if (sum != 0)
      kernels().scale(y.data + r * y.dim(-1), static_cast<float>(1 / sum), y.data + r * y.dim(-1), y.dim(-1));
  });
  return y;
}

}  // namespace

void scale_to_largest(float* x, int64_t n) {
  const float largest = kernels().max_abs(x, n);
  if (largest > 0) kernels().scale(x, 1 / largest, x, n);
}

int64_t Context::first_position() const { return cache ? cache->length : 0; }

bool Layer::is_quantized() const {
  return quantized && (quantized->packed || !is_identity(quantized->left) || !is_identity(quantized->right));
}

const Grid& Layer::left_grid() const {
  static const Grid identity;
  return quantized ? quantized->left : identity;
}

const Weight& Layer::weight_in(Precision precision) const {
  return precision != Precision::Float && quantized && !quantized->weight.empty() ? quantized->weight : weight;
}

Tensor Layer::product(const Context& ctx, const Tensor& x, const Tensor& rhs) const {
  const bool transpose = role == Role::QK;
  if (ctx.precision == Precision::Float)
    return is_linear() ? linear(ctx.tape, x, weight, bias.loaded) : matmul(ctx.tape, x, rhs, transpose);
  require(ctx.tape == nullptr, "%s: gradients are those of the float network", name);
  if (ctx.precision == Precision::Integer && int8()) return int8_layer_product(*this, x, rhs);
  const Grid &left = left_grid(), &right = quantized ? quantized->right : left;
  Tensor y;
  if (is_linear())
    y = linear(nullptr, fake_quantize(left, x), weight_in(ctx.precision), bias.in(ctx.precision), ctx.window_bits);
  else if (quantized && quantized->renormalized)
    y = renormalized_product(left, x, fake_quantize(right, rhs));
  else
    y = matmul(nullptr, fake_quantize(left, x), fake_quantize(right, rhs), transpose);
  add_compensation(ctx, added, y);
  return y;
}

Tensor Layer::run(const Context& ctx, const Tensor& x, const Tensor& rhs) const {
  if (const Tensor* known = ctx.observer ? ctx.observer->known_input(*this) : nullptr) return run(ctx, *known, rhs);
  if (ctx.observer && !ctx.is_done()) ctx.observer->input(*this, x, rhs);
  if (ctx.is_done()) return Tensor(product_shape(*this, x, rhs));
  Tensor y = product(ctx, x, rhs);
  if (ctx.tape && y.slot < 0) ctx.tape->watch(y);  // the first layer of a network: its input is data
  if (ctx.observer) ctx.observer->product(*this, x, rhs, y);
  return y;
}

void Layer::fold_gamma() {
  if (gamma.empty()) return;
  require(!quantized && bias.compensated.empty() && added.empty(),
          "%s: a LayerScale is folded before the layer is quantized or compensated", name);
  const Tensor w = weight.values();
  Tensor folded = Tensor::uninitialized(w.shape);
  const int64_t in = w.dim(1);
  for (int64_t r = 0; r < w.dim(0); ++r) kernels().scale(w.data + r * in, gamma[r], folded.data + r * in, in);
  weight = folded;
  if (!bias.loaded.empty()) bias.loaded = scale_channels(nullptr, bias.loaded, gamma);
  gamma = Tensor{};
}

void Layer::quantize(Grid left, Grid right) {
  Quantized q{std::move(left), std::move(right), {}, nullptr, nullptr};
  if (is_linear() && !q.right.is_identity()) q.weight = fake_quantize(q.right, weight.values());
  quantize(std::move(q));
}

void Layer::quantize(PackedWeight w) {
  const auto packed = std::make_shared<const PackedWeight>(std::move(w));
  quantize({left_grid(), {}, packed, packed, nullptr});
}

const BinaryPlanes* Layer::binarized() const {
  const Binary* grid = quantized ? quantized->right.as<Binary>() : nullptr;
  return grid ? grid->planes.get() : nullptr;
}

void Layer::quantize(std::shared_ptr<const BinaryPlanes> planes) {
  quantize({left_grid(), Binary(planes), planes, nullptr, nullptr});
}

bool Layer::prepare_int8(const Int8Layer* same_weight) {
  const auto int8 = make_int8(*this, same_weight);
  if (!int8) return false;
  Quantized q = *quantized;
  q.int8 = int8;
  if (is_linear())
    q.weight = Weight(weight.shape(), [codes = int8->weight, grid = q.right](int64_t begin, int64_t end, float* y) {
      decode_weight(*codes, grid, begin, end, y);
    });
  quantize(std::move(q));
  return true;
}

void Point::add(const Tensor& b) const {
  Tensor before = b;  // gamma
  if (!gamma.empty() && b.rank() == 1) {
    require(b.size() == gamma.size(), "bias compensation: %d values behind %d scales", b.size(), gamma.size());
    before = Tensor(b.shape);
    for (int64_t c = 0; c < b.size(); ++c) before[c] = b[c] / gamma[c];
  }
  if (b.rank() == 1 && !folds_into.empty() && (gamma.empty() || kernels().all_finite(before.data, b.size()))) {
    for (Bias* bias : folds_into) bias->compensated = sum(bias->in(Precision::Fake), before);
    return;
  }
  const bool shared = !gamma.empty() && b.rank() == 1;  // by all tokens
  for (Tensor* kept : added) *kept = sum(*kept, shared ? b.reshaped({1, b.size()}) : b);
}

void Point::clear() const {
  for (Bias* bias : folds_into) bias->compensated = Tensor{};
  for (Tensor* kept : added) *kept = Tensor{};
}

void add_compensation(const Context& ctx, const Tensor& added, Tensor& y) {
  if (ctx.precision != Precision::Float && !added.empty()) add_broadcast(y, added, ctx.first_position());
}

Tensor run_branch(const Context& ctx, const Layer& last, const Tensor& x, const Branch& branch) {
  const Tensor y = branch(ctx, x);
  if (ctx.observer) ctx.observer->branch(last, x, y, branch);
  return y;
}

}  // namespace bcq
