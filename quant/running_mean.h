// The mean of what a layer is fed, or of the error of an output, over calibration batches.
#pragma once
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

// What a compensation is shared along.
enum class BcShape {
  Channel,  // one value per output channel: folded into the layer's bias, free at run time
  Position  // one value per position and channel: the official scripts' default
};

// Running mean of F - Q over batches, each batch with equal weight as in the official class.
class RunningMean {
 public:
  explicit RunningMean(BcShape shape = BcShape::Channel) : shape_(shape) {}

  // f, q [B, ..., C] -> averages over B, and for Channel over all but C (and the heads of [B, H, N, M]). Without q
  // it is the mean of f.
  void update(const Tensor& f, const Tensor& q = {});
  // What another has averaged, of the same form: as if its batches had come here.
  void add(const RunningMean& more);
  // Position [..., C]; Channel [C], or [H, 1, M] for heads. Empty before any update.
  Tensor mean() const;

  void fields(auto visit) { visit(shape_, mean_shape_, mean_, batches_); }  // for share()

 private:
  BcShape shape_;
  Shape mean_shape_;
  std::vector<double> mean_;
  int64_t batches_ = 0;
};

// Whether a sample is held out where one in 1 / share is (0: none).
bool is_held_out(int64_t sample, double share);

// A mean over samples and, apart, that of those that are held out, to tell whether taking the mean away helps on data
// it was not taken from.
struct HeldOutMean {
  explicit HeldOutMean(BcShape shape = BcShape::Channel, double s = 0) : share(s), all(shape), held_out(shape) {}

  double share;
  RunningMean all, held_out;
  int64_t samples = 0, samples_held_out = 0;

  void add(size_t sample, const RunningMean& one);
  // The share there was: of few samples it is not the one asked for.
  double actual_share() const { return static_cast<double>(samples_held_out) / static_cast<double>(samples); }
};

// Whether b, the mean error of the samples that are not held out, lowers E|e|² on those that are: of the mean over
// `all`, the mean over those held out, and their actual share. E|e - b|² - E|e|² = |b|² - 2 b E[e]. With none held out,
// or none left, it is taken to help.
bool helps_held_out(const Tensor& all, const Tensor& held_out, double share);

}  // namespace bcq
