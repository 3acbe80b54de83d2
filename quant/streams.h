// The two streams of hidden states that go through a network while it is calibrated: what the float network makes of
// the data, and what the network as quantized so far makes of it, one tensor [B, N, D] a batch each.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/core/parallel.h"
#include "engine/core/ranks.h"
#include "engine/core/timer.h"
#include "quant/calibrate.h"
#include "quant/passes.h"

namespace bcq {

class Streams {
 public:
  // Before the embedding. What it is given has to outlive it. `whole`: every rank has the hidden states of all
  // batches, else only of its own.
  Streams(Model& model, const std::vector<Batch>& data, int window_bits, bool whole, CalibrationSeconds& seconds);

  size_t batches() const { return data_.size(); }
  // The rank whose batch j is.
  static int owner(size_t j) { return static_cast<int>(j % static_cast<size_t>(ranks())); }
  static bool owns(size_t j) { return owner(j) == rank(); }
  // What the present part is fed; empty tensors before the embedding, on a stream that is not kept, and of other ranks'
  // batches.
  const Tensors& real() const { return real_; }
  const Tensors& quantized() const { return quantized_; }

  // Part i of x, for batch j. From a late start, where x is a stream's and that is known.
  Tensor run(Precision precision, int i, size_t j, const Tensor& x, PartPass* pass = nullptr) const;
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
  void run_together(int i, Precision precision, const std::vector<Group>& groups, const Pass::OnGroup& on_group);
  // The samples of batch j in x, which holds all samples. A Swin has several (windows) an image.
  Tensor samples_of(size_t j, const Tensor& x) const;
  // From the present part i to the next, on the streams that are needed.
  void advance(int i, bool needs_real, bool needs_quantized);

  // make(j) for every batch j, by the rank whose batch it is, some for each thread at a time; use(j, what was made) in
  // order, on every rank.
  template <class Make, class Use>
  void for_batches(Make make, Use use);
  // make(j) for the batches of this rank.
  template <class Make>
  void for_own_batches(Make make);

  CalibrationSeconds& seconds;  // of which passes and sums are counted here

 private:
  Context context(Precision precision, Observer* observer) const;
  // made[k] = make(the k-th of a round of batches that is this rank's), `first` the first of all ranks'.
  template <class Make, class Made>
  void make_own(size_t first, Make make, std::vector<Made>& made);
  // Batches of a rank in a round.
  static size_t of_round() { return 4 * static_cast<size_t>(most_threads()); }

  Model& model_;
  const std::vector<Batch>& data_;
  int window_bits_;
  bool whole_;
  std::vector<int64_t> first_sample_{0};  // of each batch, and their number
  Tensors real_, quantized_;
  Tensors outputs_;  // of the float network in the present part, as far as they are known
  const Layer* late_ = nullptr;
  Tensors late_real_, late_quantized_;
};

template <class Make, class Made>
void Streams::make_own(size_t first, Make make, std::vector<Made>& made) {
  const size_t step = static_cast<size_t>(ranks()), own = first + static_cast<size_t>(rank());
  made.resize(own < batches() ? std::min(of_round(), (batches() - own + step - 1) / step) : 0);
  const Stopwatch watch(seconds.passes);
  const auto one = [&](int64_t k) { made[at(k)] = make(own + static_cast<size_t>(k) * step); };
  if (made.size() >= static_cast<size_t>(threads()))
    parallel_for(static_cast<int64_t>(made.size()), one);
  else  // few batches leave the threads to what is inside
    for (size_t k = 0; k < made.size(); ++k) one(static_cast<int64_t>(k));
}

template <class Make, class Use>
void Streams::for_batches(Make make, Use use) {
  using Made = decltype(make(size_t{}));
  const size_t step = static_cast<size_t>(ranks());
  for (size_t first = 0; first < batches(); first += of_round() * step) {
    std::vector<Made> made;
    make_own(first, make, made);
    const Stopwatch watch(seconds.sums);
    for (size_t j = first; j < std::min(batches(), first + of_round() * step); ++j) {
      const size_t k = (j - first) / step;
      Made other{};
      Made& one = owns(j) ? made[k] : other;
      share(one, owner(j));
      use(j, one);
      one = Made{};
    }
  }
}

template <class Make>
void Streams::for_own_batches(Make make) {
  for (size_t first = 0; first < batches(); first += of_round() * static_cast<size_t>(ranks())) {
    std::vector<char> made;
    make_own(
        first, [&](size_t j) { return make(j), char{}; }, made);
  }
}

}  // namespace bcq
