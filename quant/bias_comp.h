// Bias compensation: the vector that cancels the mean of a quantized output's error.
//
//   min_b E || F(x) - (Q(x) + b) ||²   =>   b = E[ F(x) - Q(x) ]
//
// averaged over the samples and over every axis the bias is shared along ("Minimize
// Quantization Output Error with Bias Compensation", eq. 5; estimator and data flow
// as in the official scripts: every site is fed its float inputs, and the float
// output of a block feeds the next block).
#pragma once
#include <map>
#include <vector>

#include "engine/progress.h"
#include "models/model.h"

namespace bcq {

enum class BcShape {
  Channel,  // one value per output channel: folded into the layer's bias, free at run time
  Position  // one value per position and channel: the official scripts' default
};

// Running mean of F - Q over batches, each batch with equal weight as in the official class.
class MeanError {
 public:
  explicit MeanError(BcShape shape) : shape_(shape) {}

  // f, q [B, ..., C] -> averages over B, and for Channel over all but C (and the heads of [B, H, N, M]).
  void update(const Tensor& f, const Tensor& q);
  // The compensation: Position [..., C]; Channel [C], or [H, 1, M] for heads. Empty before any update.
  Tensor mean() const;

 private:
  BcShape shape_;
  Shape mean_shape_;
  std::vector<double> mean_;
  int64_t batches_ = 0;
};

// Which outputs are compensated. The official table scripts use conv, linear and matmul sites for
// vision, and linear sites and block outputs for language.
struct BcOptions {
  BcShape shape = BcShape::Channel;
  bool conv = true, linear = true, matmul = true, block = false;
};

// Attach a compensation: a vector [out] is folded into the bias of a linear site, anything else is kept.
void compensate(Site& site, const Tensor& b);
void compensate_block(Model& model, int i, const Tensor& b);

// Measure and attach compensations at every quantized site that `options` names, then at the block
// outputs with the sites of the block already compensated. `batches` is the calibration data; the model
// must be quantized. Returns the number of values fitted.
int64_t compensate(Model& model, const std::vector<Batch>& batches, const BcOptions& options, const Progress& progress);

}  // namespace bcq
