// Grids by the range of what is seen: each step just wide enough, nothing is searched. The floor that every other
// method of vision models has to be better than.
#pragma once
#include "quant/method.h"

namespace bcq {

// Every operand symmetric, by the largest magnitude it has in the float network; of weights one step a layer. The
// pixels stay float. `twin`: PTQ4ViT's twin-uniform grids after GELU and softmax.
class MinMax : public Method {
 public:
  // UsageError for bits out of [2, 8].
  MinMax(int wbits, int abits, bool twin = false);
  Needs needs() const override { return {.operands = true}; }
  void begin(Model& model) override { begin_vision(model, "min-max"); }
  bool wants(const Layer&) const override { return true; }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 private:
  int wbits_, abits_;
  bool twin_;
};

// The same of a model as loaded, on one batch, all operands of `bits`.
void quantize_minmax(Model& model, const Batch& batch, int bits, bool twin = false);

}  // namespace bcq
