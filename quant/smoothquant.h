// SmoothQuant ("SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"): scales move
// what is hard to round from inputs to weights.
#pragma once
#include "quant/method.h"

namespace bcq {

// s_c = max(max |x_c|^alpha / max(max |w_c|, 1e-5)^(1 - alpha), 1e-5) over all tokens and the rows of all weights
// [out, in] that read x.   (eq. 4 and the published code)
std::vector<float> smoothing_scales(const std::vector<float>& max_x, const std::vector<Tensor>& weights, double alpha);

// Divides what norms make by these scales, on the float network; rounding is left to others. As in the published code,
// inputs that norms do not make are left alone.
class Smoothing : public Method {
 public:
  explicit Smoothing(double alpha) : alpha_(alpha) {}
  Needs needs() const override { return {.moments = true, .folds = true}; }
  bool wants(const Layer& layer) const override { return layer.is_linear() && part_.group_of(layer).source.norm; }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  double alpha_;
};

}  // namespace bcq
