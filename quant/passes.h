// What a calibration looks at while one part of a network runs.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "models/model.h"

namespace bcq {

using Group = std::vector<Layer*>;  // layers that share an input
using Tensors = std::vector<Tensor>;

// Keeps the inputs of groups [B, ..., in] and shows the products of some layers. It is done with the last of them,
// unless the part's output is wanted, too. Error naming the layer whose input is not finite.
class Pass : public Observer {
 public:
  using OnProduct = std::function<void(const Layer&, const Tensor& a, const Tensor& b, const Tensor& y)>;
  Pass(std::span<const Group> groups, bool to_output) : groups_(groups), to_output_(to_output) {}

  // Products of these layers, in the order they run.
  void watch(const Group& layers, OnProduct on_product);
  void input(const Layer& layer, const Tensor& x, const Tensor&) override;
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override;
  bool is_done() const override { return inputs.size() == groups_.size() && seen_ == watched_.size() && !to_output_; }

  Tensors inputs;  // of each group

 private:
  std::span<const Group> groups_;
  bool to_output_;
  Group watched_;
  size_t seen_ = 0;
  OnProduct on_product_;
};

// Begins a part with what its layer `first` is fed, which is known; all that precedes it is left out. What follows is
// shown to `then`, which may be null.
class LatePass : public Observer {
 public:
  LatePass(const Layer& first, const Tensor& input, Observer* then) : first_(&first), input_(&input), then_(then) {}
  bool is_done() const override { return first_ || (then_ && then_->is_done()); }
  const Tensor* known_input(const Layer& layer) override {
    if (&layer != first_) return nullptr;
    first_ = nullptr;
    return input_;
  }
  void input(const Layer& layer, const Tensor& a, const Tensor& b) override {
    if (then_) then_->input(layer, a, b);
  }
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (then_) then_->product(layer, a, b, y);
  }
  void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch& branch) override {
    if (then_) then_->branch(last, x, y, branch);
  }

 private:
  const Layer* first_;  // null: it has run
  const Tensor* input_;
  Observer* then_;
};

// Shows one residual branch.
class BranchPass : public Observer {
 public:
  using OnBranch = std::function<void(const Tensor& x, const Tensor& y, const Branch&)>;
  BranchPass(const Layer* last, OnBranch on_branch) : last_(last), on_branch_(std::move(on_branch)) {}
  void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch& branch) override;
  bool is_done() const override { return done_; }

 private:
  const Layer* last_;
  OnBranch on_branch_;
  bool done_ = false;
};

// What the layers of a group are fed: an input a [S, ..., in] of linear ones, or both operands of a product.
struct Fed {
  Tensor a, b;
};

// Hands what each group is fed to a function, before the first of its layers runs. Error as of Pass.
class FeedPass : public Observer {
 public:
  using OnGroup = std::function<void(size_t group, const Fed& fed)>;
  FeedPass(std::span<const Group> groups, OnGroup on_group) : groups_(groups), on_group_(std::move(on_group)) {}
  void input(const Layer& layer, const Tensor& a, const Tensor& b) override;

 private:
  std::span<const Group> groups_;
  OnGroup on_group_;
  size_t next_ = 0;
};

// What the layer is fed where the model's block i, in float, is fed x.
Tensor input_of(const Model& model, int i, Layer& layer, const Tensor& x);

// Σ_j |make(j) - real[j]|², on all threads.
double squared_errors(const Tensors& real, const std::function<Tensor(size_t j)>& make);

}  // namespace bcq
