// The joint method for vision transformers: layer by layer on the quantized stream, grids that fit their values,
// weights that make the float network's outputs of the inputs they get, and a bias for what is left.
#pragma once
#include "quant/method.h"
#include "quant/ranges.h"
#include "quant/weight_methods.h"

namespace bcq {

// Grids of activations: levels from tables; asymmetric uniform grids behind norms and GELU, in place of them; or AdaLog
// of softmax and behind GELU, in place of them.
enum class ActGrid { Table, Uniform, AdaLog };

struct JointOptions {
  int wbits = 4, abits = 4;  // 2 ... 8, or kFloatBits
  ActGrid grid = ActGrid::Table;
  int refine = 10, scale_rounds = 3;
  bool bias = true;        // fits the biases of linear layers, which the weights then rely on
  double held_out = 0.25;  // share of the images that decides whether a bias, or a fold, is kept
};

// Of each group of layers, in the order of the network, with the inputs both streams have there:
//  1. The keys lose their mean, which softmax does not see. Channels of a tensor behind a norm, or of what attention
//     makes of the values, may be centred and divided by their deviation or range (Model::fold): what errs least at
//     the layer's output on held-out images, weights included.
//  2. The input gets a table of 2^abits levels among 256 (quant/ranges.h): one for q, k and v of each head.
//     Softmax is rounded as exp(score - largest of its row) and renormalized (Quantized::renormalized).
//  3. Weights are refitted to the float network's outputs (quant/refine.h) and rounded by GPTQ with weighted ranges,
//     coordinate descent and scale refits, on the covariance of the rounded inputs.
//  4. The bias takes the mean error, unless that makes it worse on held-out images.
// In all of this a token counts as quant/tokens.h has it.
class Joint : public Method {
 public:
  // What becomes of each channel of an input: x / scale - shift; empty: nothing.
  struct Fold {
    std::vector<float> scale, shift;
    bool changes() const { return !scale.empty(); }
  };

  // UsageError for options that mean nothing.
  Joint(const JointOptions& options, const Warn& warn);
  Needs needs() const override {
    return {.stream = Stream::Quantized, .sequential = true, .cross = true, .operands = true, .folds = true};
  }
  void begin(Model& model) override { begin_vision(model, "this form of joint"); }
  void start(const Part& part) override { Method::start(part), of_values_ = {}; }
  bool wants(const Layer&) const override { return true; }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 private:
  int64_t read_tokens() const;
  Grid grid_of(const Histogram& values) const;
  Grid softmax_grid(const Tensor& a) const;
  Grid head_grids(const Tensor& x, bool is_signed) const;
  Fold choose_fold(const std::vector<Layer*>& layers, const Tensor& x) const;
  void fit_linear(const std::vector<Layer*>& group, Operands& x, PartRecord& record);
  void fit_bias(Layer& layer, const Operands& x, PartRecord& record) const;
  void fit_scores(Layer& layer, Operands& x);
  void fit_mix(Layer& layer, Operands& x);

  JointOptions options_;
  Gptq solver_;
  Fold of_values_;  // of the present block, which its proj undoes
};

}  // namespace bcq
