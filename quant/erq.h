// ERQ ("ERQ: Error Reduction for Post-Training Quantization of Vision Transformers", extended version): on RepQ-ViT's
// grids, those of weights chosen among tighter percentiles, too, weights and biases are refitted to rounded inputs by
// ridge regression, then rounded half by half, and what is left refitted to the errors of what is rounded.
#pragma once
#include "quant/repq.h"

namespace bcq {

struct ErqWeight {
  Tensor values;  // [out, in]
  Grid grid;
  Tensor bias;  // [out], to be added
};
// w [out, in] on inputs x [S, ..., in] that are rounded to `rounded`: with A = [x̂ 1] and sums over all tokens,
//   [W b] += (x - x̂) Wᵀ A (AᵀA + ridge)⁻¹                                                  (activation error reduction)
// and until all columns are rounded, for half of those that are left: to nearest; up to 100 times for each output, that
// rounding is turned whose gradient of δ E[x̂ x̂ᵀ] δᵀ is largest, where that lowers it; and the rest, the bias with it,
//   W_rest -= δ A_halfᵀA_rest (A_restᵀA_rest + rounding_ridge)⁻¹                               (weight error reduction)
ErqWeight erq(const Tensor& w, const Tensor& x, const Tensor& rounded, int bits, double ridge, double rounding_ridge);

// As the published code has it, but for: attention's grids are found on the quantized stream; a Swin's merging norm is
// folded, too. Inputs of all linear layers are the float network's, pixels stay float.
class Erq : public RepqVit {
 public:
  // coe: ten times the ridge, on sums over all tokens; 0.1 is the ridge of a head's refit.
  Erq(int wbits, int abits, double coe = 10000) : RepqVit(wbits, abits), coe_(coe) {}
  Needs needs() const override;

 private:
  Tensor& calibrated_on(Operands& x) const override { return x.f; }
  void round_weight(Layer& layer, const Grid& left, const Operands& x, PartRecord& record) const override;
  double coe_;
};

}  // namespace bcq
