// What is known of APQ-ViT ("Towards Accurate Post-Training Quantization for Vision Transformer"), of which no code is
// published: grids of PTQ4ViT, chosen by what a block makes of them, of which the smallest errors are left out; and
// softmax on a uniform grid that keeps its largest value. Thresholds, candidates and order are this engine's.
#pragma once
#include "quant/ptq4vit.h"

namespace bcq {

// PTQ4ViT's with 20 candidates, from 0.3 times the min-max step on, and softmax from 0 to its largest value.
PtqOptions apq_like(int wbits, int abits);

// A candidate of an operand, one multiplier for all of its units, is scored at the output Y of its block, all else in
// float:  -Σ G² (Y - Ŷ)² over the largest terms of each image, a share of them, G the gradient there. Layers outside of
// blocks are scored at their own outputs, as PTQ4ViT's.
class ApqLike : public Ptq {
 public:
  // UsageError when the options make no sense.
  ApqLike(const PtqOptions& options, double share, const Warn& warn) : Ptq(options, warn), share_(share) {}
  Needs needs() const override {
    Needs needs = Ptq::needs();
    needs.inputs = true;
    return needs;
  }
  void begin(Model& model) override { begin_vision(model, "apq-like"); }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 private:
  double error(const std::vector<Tensor>& real, const Tensor& g2) const;
  double share_;
  std::vector<std::pair<Layer*, Operands>> waiting_;  // for the last layer of their block, which has its gradient
};

}  // namespace bcq
