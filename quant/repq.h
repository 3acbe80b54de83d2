// RepQ-ViT ("RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers"): asymmetric
// grids at percentiles; per channel behind a norm, folded into it; logarithmic steps of sqrt 2 behind softmax.
#pragma once
#include "engine/grid/uniform.h"
#include "quant/method.h"
#include "quant/ranges.h"

namespace bcq {

// One scale and zero point for each row of w [out, in]: percentile_range().
Asymmetric percentile_grid(const Tensor& w, int bits, std::span<const double> shares = kPercentiles);

// Semantics of the published code, with two deviations. The zero point of folded inputs is rounded, so that codes are
// integers. Layers behind a folded one see it folded, with its weight rounded anew: the code calibrates activations on
// the network whose norms are quantized per channel, and folds afterwards.
class RepqVit : public Method {
 public:
  RepqVit(int wbits, int abits);  // UsageError for bits out of [2, 8]
  Needs needs() const override {
    return {.stream = Stream::Quantized, .sequential = true, .operands = true, .folds = true};
  }
  void begin(Model& model) override { begin_vision(model, "RepQ-ViT"); }
  bool wants(const Layer&) const override { return true; }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 protected:
  // Of two streams' inputs of a layer, what its grid is found on.
  virtual Tensor& calibrated_on(Operands& x) const { return x.a; }
  // The layer's weight, whose input x has the grid `left` and is folded.
  virtual void round_weight(Layer& layer, const Grid& left, const Operands& x, PartRecord& record) const;
  int wbits_, abits_;

 private:
  void fit_linear(const std::vector<Layer*>& group, Operands& x, PartRecord& record);
};

}  // namespace bcq
