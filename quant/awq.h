// AWQ ("AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration"): channels with large
// inputs get larger weights, so that rounding costs them less; then ranges are clipped. Semantics of the published
// code, in float.
#pragma once
#include "quant/weight_methods.h"

namespace bcq {

struct AwqOptions {
  WeightGrid grid;  // of which the scales are searched
  LayerBits bits = {};
  int steps = 20;  // ratios 0, 1 / steps ... that are tried
  // BLOOM: the published code looks at the output of the whole block and feeds it the input of the linear layer, a
  // norm's output, in place of the block's own; and it does not scale the input of the attention's output projection.
  bool official_bloom = true;
};

// s_c = max(mean |x_c|^ratio, 1e-4), divided by sqrt(max s min s).
std::vector<float> awq_scales(const std::vector<double>& mean_abs, double ratio);

// The scales of all inputs that can be folded (LayerGroup::source), each those of least squared error with rounded
// weights, on the float network: at the output of attention for what q, k and v read, else at the layers' own; of BLOOM
// at the block's behind norms. What GELU makes is not scaled: the published code divides by the scales at run time.
class AwqScales : public Method {
 public:
  explicit AwqScales(const AwqOptions& options) : options_(options) {}
  Needs needs() const override { return {.moments = true, .inputs = true, .folds = true}; }
  void begin(Model& model) override;  // UsageError unless it is a language model
  bool wants(const Layer& layer) const override;
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  bool is_bloom() const { return part_.groups[0].layers[0]->role == Role::QKV; }
  Tensor inspect(Precision precision, const Tensor& x, const Layer* watched) const;
  std::vector<double> errors_at_run(const std::vector<Layer*>& group,
                                    const std::vector<std::vector<Tensor>>& candidates) const;
  AwqOptions options_;
};

// The largest magnitudes [out, groups] to clip w [out, in] to before it is rounded: of 1, 0.95 ... 0.55 times that of
// the group, those of least E(Σ_c x_c (ŵ_c - w_c))² over the group's own columns. second [in, in]: E x xᵀ up to a
// factor, the upper triangle.
Tensor clip_search(const Tensor& w, const std::vector<double>& second, const WeightGrid& grid);
// w with the values of each group of so many columns clipped to these.
Tensor clipped(const Tensor& w, const Tensor& largest, int64_t groupsize);

// The layer's weight clipped by that search. As in the published code, what makes queries and keys is not clipped.
// Errors are over all calibration tokens, where the code takes about 512.
Tensor clipped_weight(const Layer& layer, const WeightGrid& grid, const Seen& seen);

}  // namespace bcq
