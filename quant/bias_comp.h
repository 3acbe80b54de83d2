// Bias compensation: the vector that cancels the mean of a quantized output's error.
//
//   min_b E || F(x) - (Q(x) + b) ||²   =>   b = E[ F(x) - Q(x) ]
//
// averaged over the samples and over every axis the bias is shared along ("Minimize
// Quantization Output Error with Bias Compensation", eq. 5; estimator and data flow
// as in the official scripts: every layer is fed its float inputs, and the float
// output of a block feeds the next block).
#pragma once
#include <string>
#include <vector>

#include "quant/calibrate.h"

namespace bcq {

// Which outputs are compensated, in this order: a later one is measured with the earlier ones in place. The
// official table scripts use conv, linear and matmul layers for vision, and linear layers and block outputs for
// language; the others are switches of its grid search. downsample and stage exist in a Swin only, where a
// stage ends with the merge after its blocks; model is the only output whose error is that of the network
// run quantized from end to end, all others are fed their float inputs.
struct BcOptions {
  BcShape shape = BcShape::Channel;
  bool conv = true, linear = true, matmul = true;                        // products
  bool attention = false, mlp = false;                                   // residual branches
  bool block = false, downsample = false, stage = false, model = false;  // parts of the network
  // Inputs of what is measured: those of the float network, as in the official code, or those that the quantized
  // network makes, compensated up to there; what is aimed at is the float network's own output in both.
  Stream stream = Stream::Float;
  // Whether the quantized attention of a Swin's shifted windows has its mask while the branch `attention` is measured.
  // The official scripts measure it without: what records its inputs keeps positional ones, and the mask has a name.
  // The network that is compensated is run with it either way. False is of the float stream only.
  bool masked_attention = true;
  // Share of the samples, at most half, that decides for each output whether its compensation is kept: it is where it
  // lowers the error on them. The official scripts hold none out.
  double held_out = 0;
};

// What can be chosen, in the order of Point::Kind.
struct BcSite {
  const char* name;
  bool BcOptions::*chosen;
};
inline constexpr BcSite kBcSites[] = {{"conv", &BcOptions::conv},
                                      {"linear", &BcOptions::linear},
                                      {"matmul", &BcOptions::matmul},
                                      {"attention", &BcOptions::attention},
                                      {"mlp", &BcOptions::mlp},
                                      {"block", &BcOptions::block},
                                      {"downsample", &BcOptions::downsample},
                                      {"stage", &BcOptions::stage},
                                      {"model", &BcOptions::model}};
static_assert(std::size(kBcSites) == static_cast<size_t>(Point::Kind::Model) + 1);

class BiasCompensation : public Method {
 public:
  // UsageError for options that do not fit together.
  explicit BiasCompensation(const BcOptions& options);

  // On the float stream layers do not see one another; on the quantized one each sees those before it.
  Needs needs() const override {
    return {.stream = options_.stream, .sequential = options_.stream == Stream::Quantized};
  }
  bool compensates() const override { return options_.conv || options_.linear || options_.matmul; }
  bool wants_output(Point::Kind kind) const override { return options_.*kBcSites[static_cast<size_t>(kind)].chosen; }
  BcShape shape() const override { return options_.shape; }
  double held_out() const override { return options_.held_out; }
  void fit_output(const Point& point, const Tensor& error, PartRecord& record) override;
  bool masked_branches() const override { return options_.masked_attention; }

 private:
  BcOptions options_;
};

// Compensate a quantized model by this method alone. UsageError when the model has no such output.
CalibrationResult compensate(Model& model, const std::vector<Batch>& batches, const BcOptions& options,
                             const Progress& progress = {}, PartStore* store = nullptr, int window_bits = 24);

// Values the compensations of a model, linear layers beside its blocks included, add to those it has: a bias folded
// into an existing one adds none.
int64_t added_values(Model& model);

// Mean squares at an output that can be compensated, its part of the network fed its float inputs (the model's
// output: the images): of the float output, and of what quantization does to it.
struct OutputError {
  std::string name;    // "blocks.0.attn.qkv", "blocks.0.attn", "blocks.0", "stage.1", "model"
  std::string kind;    // conv, linear, matmul, attention, mlp, block, downsample, stage or model
  const Layer* layer;  // of the first three kinds, else null
  double signal = 0, error = 0;
  // Of a layer whose left operand is rounded: some of its values, the least and the largest among them, and what they
  // are rounded to. Softmax that is renormalized: over the largest of its row.
  std::vector<float> operand = {}, rounded = {};
};
// Of all quantized outputs, compensated as they stand: each part's layers in the order they run, then the larger
// outputs that end with them.
std::vector<OutputError> output_errors(Model& model, const std::vector<Batch>& batches, const Progress& progress);

}  // namespace bcq
