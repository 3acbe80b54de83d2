#include "quant/mean_errors.h"

#include "engine/nn/ops.h"

namespace bcq {
namespace {

// Mean output of a linear layer whose mean input is mean [in] or, per position, [T, in]; in the same form.
Tensor mean_output(const Layer& layer, Precision precision, const Tensor& mean) {
  const int64_t rows = mean.rows(), in = mean.dim(-1);
  const Tensor y = layer.product({precision}, mean.reshaped({1, rows, in}), {});
  return y.reshaped(mean.rank() == 1 ? Shape{y.dim(-1)} : Shape{rows, y.dim(-1)});
}

// Shows one residual branch, and is done with it.
struct BranchPass : PartPass {
  using OnBranch = std::function<void(const Tensor& x, const Tensor& y, const Branch&)>;
  BranchPass(const Layer* of, OnBranch show) : last_of(of), on_branch(std::move(show)) {}
  void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch& branch) override {
    if (&last != last_of) return;
    on_branch(x, y, branch);
    done = true;
  }
  bool has_seen_all() const override { return done; }

  const Layer* last_of;
  OnBranch on_branch;
  bool done = false;
};

}  // namespace

RunningMean mean_of_one(BcShape shape, const Tensor& f, const Tensor& q) {
  RunningMean mean(shape);
  mean.update(f, q);
  return mean;
}

Means means_of(BcShape shape, const Tensors& inputs) {
  Means means;
  for (const Tensor& x : inputs) means.push_back(mean_of_one(shape, x));
  return means;
}

Tensor error_by_means(const Layer& layer, const Tensor& real, const Tensor& quantized) {
  const Tensor y = mean_output(layer, Precision::Fake, quantized);
  return add(nullptr, mean_output(layer, Precision::Float, real), scale(nullptr, y, -1));
}

HeldOutMean branch_error(Streams& streams, int i, const Method& method, const Point& branch) {
  const bool same_inputs = method.needs().stream == Stream::Float;
  HeldOutMean error(method.shape(), method.held_out());
  streams.for_batches(
      [&](size_t j) {
        RunningMean one(method.shape());
        Tensor f;
        BranchPass real(branch.layer, [&](const Tensor& x, const Tensor& y, const Branch& run) {
          f = y;
          if (same_inputs) one.update(y, run({Precision::Fake, nullptr, nullptr, method.masked_branches()}, x));
        });
        streams.run(Precision::Float, i, j, streams.real()[j], &real);
        if (same_inputs) return one;
        BranchPass quantized(branch.layer, [&](const Tensor&, const Tensor& y, const Branch&) { one.update(f, y); });
        streams.run(Precision::Fake, i, j, streams.quantized()[j], &quantized);
        return one;
      },
      [&](size_t j, const RunningMean& one) { error.add(j, one); });
  return error;
}

HeldOutMean output_error(Streams& streams, const Tensors& inputs, int first, int i, const Method& method) {
  HeldOutMean error(method.shape(), method.held_out());
  streams.for_batches(
      [&](size_t j) {
        Tensor x = inputs.empty() ? Tensor{} : inputs[j];
        for (int k = first; k <= i; ++k) x = streams.run(Precision::Fake, k, j, x);
        return mean_of_one(method.shape(), streams.float_output(i, j), x);
      },
      [&](size_t j, const RunningMean& one) { error.add(j, one); });
  return error;
}

// The mean error of a sum is that of what attention and the MLP add, and theirs a product of mean inputs: the last
// product, a third of the work, need not be computed for every token.
Tensor error_of_sum(Streams& streams, int i, const Method& method, const std::vector<Group>& groups,
                    const Tensors& real_means) {
  Means own(groups.size(), RunningMean(method.shape()));
  streams.for_batches(
      [&](size_t j) {
        Pass pass(groups, false);
        streams.run(Precision::Fake, i, j, streams.real()[j], &pass);
        return means_of(method.shape(), pass.inputs);
      },
      [&](size_t, const Means& one) {
        for (size_t g = 0; g < one.size(); ++g) own[g].add(one[g]);
      });
  Tensor error;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (!ends_branch(groups[g])) continue;
    const Tensor one = error_by_means(*groups[g].front(), real_means[g], own[g].mean());
    error = error.empty() ? one : add(nullptr, error, one);
  }
  return error;
}

bool ends_branch(const Group& group) { return group.front()->role == Role::Proj || group.front()->role == Role::Fc2; }

}  // namespace bcq
