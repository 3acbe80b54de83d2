// The two streams of hidden states that go through a network while it is calibrated: what the float network makes of
// the data, and what the network as quantized so far makes of it, one tensor [B, N, D] a batch each.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "models/model.h"
#include "quant/passes.h"

namespace bcq {

class Streams {
 public:
  // Before the embedding. The model and the data have to outlive it.
  Streams(Model& model, const std::vector<Batch>& data, int window_bits);

  size_t batches() const { return data_.size(); }
  // What the present part is fed; empty tensors before the embedding and on a stream that is not kept.
  const Tensors& real() const { return real_; }
  const Tensors& quantized() const { return quantized_; }

  // Part i of x, for batch j. From a late start, where x is a stream's and that is known.
  Tensor run(Precision precision, int i, size_t j, const Tensor& x, Observer* observer = nullptr) const;
  // What the float network makes of batch j in the present part i; computed once, unless it was kept before.
  const Tensor& float_output(int i, size_t j);
  void keep_float_outputs(int i);  // of all batches, for the part is about to be folded
  bool has_float_output(size_t j) const { return !outputs_[j].empty(); }
  void keep_float_output(size_t j, const Tensor& y) {
    outputs_[j] = y;
    late_real_[j] = Tensor{};
  }
  // Runs of the present part may begin at `layer` from now on, with what it is fed in batch j on the two streams: all
  // that precedes it will not change any more. Empty: not known.
  void start_late(const Layer& layer, size_t j, const Tensor& real, const Tensor& quantized);
  void forget_late_start();  // something that precedes it does change
  // The present part i on all batches at once, showing what each group is fed. Of the float network it keeps the
  // output.
  void run_together(int i, Precision precision, const std::vector<Group>& groups, const FeedPass::OnGroup& on_group);
  // The samples of batch j in x, which holds all samples. A Swin has several (windows) an image.
  Tensor samples_of(size_t j, const Tensor& x) const;
  // From the present part i to the next, on the streams that are needed.
  void advance(int i, bool needs_real, bool needs_quantized);

  // make(j) for every batch j, some for each thread at a time; use(j, what was made) in order.
  template <class Make, class Use>
  void for_batches(Make make, Use use);

  // Wall time: of data through the network, and of what is summed over it.
  struct Seconds {
    double passes = 0, sums = 0;
  };
  Seconds seconds;

 private:
  Context context(Precision precision, Observer* observer) const;

  Model& model_;
  const std::vector<Batch>& data_;
  int window_bits_;
  std::vector<int64_t> first_sample_{0};  // of each batch, and their number
  Tensors real_, quantized_;
  Tensors outputs_;  // of the float network in the present part, as far as they are known
  const Layer* late_ = nullptr;
  Tensors late_real_, late_quantized_;
};

template <class Make, class Use>
void Streams::for_batches(Make make, Use use) {
  const size_t n = batches(), at_once = static_cast<size_t>(threads()), together = 4 * at_once;
  for (size_t first = 0; first < n; first += together) {
    std::vector<decltype(make(first))> made(std::min(together, n - first));
    {
      const Stopwatch watch(seconds.passes);
      const auto one = [&](int64_t k) { made[static_cast<size_t>(k)] = make(first + static_cast<size_t>(k)); };
      if (made.size() >= at_once)
        parallel_for(static_cast<int64_t>(made.size()), one);
      else  // few batches leave the threads to what is inside
        for (size_t k = 0; k < made.size(); ++k) one(static_cast<int64_t>(k));
    }
    const Stopwatch watch(seconds.sums);
    for (size_t k = 0; k < made.size(); ++k) use(first + k, made[k]);
  }
}

}  // namespace bcq
