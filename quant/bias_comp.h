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
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "models/model.h"

namespace bcq {

enum class BcShape {
  Channel,  // one value per output channel: folded into the layer's bias, free at run time
  Position  // one value per position and channel: the official scripts' default
};

// Running mean of F - Q over batches, each batch with equal weight as in the official class.
class MeanError {
 public:
  explicit MeanError(BcShape shape = BcShape::Channel) : shape_(shape) {}

  // f, q [B, ..., C] -> averages over B, and for Channel over all but C (and the heads of [B, H, N, M]). Without q
  // it is the mean of f.
  void update(const Tensor& f, const Tensor& q = {});
  // What another has averaged, of the same form: as if its batches had come here.
  void add(const MeanError& more);
  // The compensation: Position [..., C]; Channel [C], or [H, 1, M] for heads. Empty before any update.
  Tensor mean() const;

 private:
  BcShape shape_;
  Shape mean_shape_;
  std::vector<double> mean_;
  int64_t batches_ = 0;
};

// Which outputs are compensated, in this order: a later one is measured with the earlier ones in place. The
// official table scripts use conv, linear and matmul sites for vision, and linear sites and block outputs for
// language; the others are switches of its grid search. downsample and stage exist in a Swin only, where a
// stage ends with the merge after its blocks; model is the only output whose error is that of the network
// run quantized from end to end, all others are fed their float inputs.
struct BcOptions {
  BcShape shape = BcShape::Channel;
  bool conv = true, linear = true, matmul = true;                        // products
  bool attention = false, mlp = false;                                   // chains of products
  bool block = false, downsample = false, stage = false, model = false;  // parts of the network
  // Inputs of what is measured: those of the float network, as in the official code, or those that the quantized
  // network makes, compensated up to there; what is aimed at is the float network's own output in both.
  bool quantized_stream = false;
  // Whether the quantized attention of a Swin's shifted windows has its mask while the chain `attention` is measured.
  // The official scripts measure it without: what records its inputs keeps positional ones, and the mask has a name.
  // The network that is compensated is run with it either way. False is of the float stream only.
  bool masked_attention = true;
};

// Attach a compensation: a vector [out] is folded into the bias of a linear site, anything else is kept.
void compensate(Site& site, const Tensor& b);
void compensate_block(Model& model, int i, const Tensor& b);

// Measure and attach compensations at every output of the quantized model that `options` names; `batches`
// is the calibration data. Returns the number of values fitted. UsageError when the model has no such output.
int64_t compensate(Model& model, const std::vector<Batch>& batches, const BcOptions& options, const Progress& progress);

// Values the compensations of a model add to those it has: a bias folded into an existing one adds none.
int64_t added_values(Model& model);

// Mean squares at an output that can be compensated, its part of the network fed its float inputs (the model's
// output: the images): of the float output, and of what quantization does to it.
struct OutputError {
  std::string name;  // "blocks.0.attn.qkv", "blocks.0.attn", "blocks.0", "stage.1", "model"
  std::string kind;  // conv, linear, matmul, attention, mlp, block, downsample, stage or model
  const Site* site;  // of the first three kinds, else null
  double signal = 0, error = 0;
};
// Of all quantized outputs, compensated as they stand: each part's sites in the order they run, then the larger
// outputs that end with them.
std::vector<OutputError> output_errors(Model& model, const std::vector<Batch>& batches, const Progress& progress);

}  // namespace bcq
