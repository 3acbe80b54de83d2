#include "engine/nn/tape.h"

#include <cstring>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"

namespace bcq {

int Tape::new_slot(const Tensor& t) {
  shapes_.push_back(t.shape);
  grads_.emplace_back();
  return static_cast<int>(shapes_.size()) - 1;
}

void Tape::record(Tensor& y, std::function<void(const Tensor&)> backward) {
  y.slot = new_slot(y);
  steps_.push_back({y.slot, std::move(backward)});
}

Tensor& Tape::grad(const Tensor& t) {
  require(t.slot >= 0 && t.slot < static_cast<int>(grads_.size()), "this tensor is not on the tape");
  Tensor& g = grads_[at(t.slot)];
  if (g.empty()) g = Tensor(shapes_[at(t.slot)]);
  return g;
}

void Tape::add_to_grad(const Tensor& t, const Tensor& g) {
  if (t.slot < 0) return;
  const Tensor& sum = grad(t);
  for_chunks(g.size(), [&](int64_t b, int64_t e) { kernels().add(sum.data + b, g.data + b, sum.data + b, e - b); });
}

void Tape::backward(const Tensor& y, const Tensor& dy) {
  require(y.size() == dy.size(), "gradient of shape %s for a tensor of shape %s", to_string(dy.shape),
          to_string(y.shape));
  std::memcpy(grad(y).data, dy.data, static_cast<size_t>(dy.size()) * sizeof(float));
  for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
    const Tensor& g = grads_[at(step->slot)];
    if (!g.empty()) step->backward(g);  // nothing downstream of y otherwise
  }
}

}  // namespace bcq
