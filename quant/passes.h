// What a calibration looks at while one part of a network runs.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "models/model.h"

namespace bcq {

using Group = std::vector<Layer*>;  // layers that share an input
using Tensors = std::vector<Tensor>;

// Looks at one part.
class PartPass : public Observer {
 public:
  // The part begins with what its layer `first` is fed, which is known; all that precedes it is left out.
  void begin_with(const Layer& first, const Tensor& input) { first_ = &first, input_ = input; }
  bool is_done() const override { return first_ || has_seen_all(); }
  const Tensor* known_input(const Layer& layer) override {
    if (&layer != first_) return nullptr;
    first_ = nullptr;
    return &input_;
  }

 protected:
  virtual bool has_seen_all() const { return false; }

 private:
  const Layer* first_ = nullptr;  // null: it has run
  Tensor input_;
};

// What the layers of a group are fed: an input a [S, ..., in] of linear ones, or both operands of a product.
struct Fed {
  Tensor a, b;
};

// Keeps the inputs of groups [B, ..., in], or hands what each group is fed to a function before the first of its layers
// runs; and shows the products of some layers. It is done with the last of them, unless the part's output is wanted,
// too. Error naming the layer whose input is not finite.
class Pass : public PartPass {
 public:
  using OnGroup = std::function<void(size_t group, const Fed& fed)>;
  using OnProduct = std::function<void(const Layer&, const Tensor& a, const Tensor& b, const Tensor& y)>;
  Pass(std::span<const Group> groups, bool to_output, OnGroup on_group = {})
      : groups_(groups), to_output_(to_output), on_group_(std::move(on_group)) {}

  // Products of these layers, in the order they run.
  void watch(const Group& layers, OnProduct on_product);
  void input(const Layer& layer, const Tensor& a, const Tensor& b) override;
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override;

  Tensors inputs;  // of each group

 private:
  bool has_seen_all() const override { return next_ == groups_.size() && seen_ == watched_.size() && !to_output_; }

  std::span<const Group> groups_;
  bool to_output_;
  OnGroup on_group_;
  Group watched_;
  size_t next_ = 0, seen_ = 0;
  OnProduct on_product_;
};

// What the layer is fed where the model's block i, in float, is fed x.
Tensor input_of(const Model& model, int i, Layer& layer, const Tensor& x);

// Σ_j |make(j) - real[j]|², on all threads.
double squared_errors(const Tensors& real, const std::function<Tensor(size_t j)>& make);

}  // namespace bcq
