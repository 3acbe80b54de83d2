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

 private:
  BcShape shape_;
  Shape mean_shape_;
  std::vector<double> mean_;
  int64_t batches_ = 0;
};

// A mean over samples and, apart, that of the share of them that is held out, to tell whether taking the mean away
// helps on data it was not taken from.
struct HeldOutMean {
  explicit HeldOutMean(BcShape shape = BcShape::Channel, double held_out = 0)
      : share(held_out), all(shape), held_out(shape) {}

  double share;  // 0: none is held out; else one sample in 1 / share
  RunningMean all, held_out;

  void add(size_t sample, const RunningMean& one);
};

// Whether b, the mean error of the samples that are not held out, lowers E|e|² on those that are: of the mean over
// `all`, the mean over those held out, and their share. E|e - b|² - E|e|² = |b|² - 2 b E[e].
bool helps_held_out(const Tensor& all, const Tensor& held_out, double share);

}  // namespace bcq
