// RepQ-ViT ("RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers"): asymmetric
// grids at percentiles; per channel behind a norm, folded into it; logarithmic steps of sqrt 2 behind softmax.
#pragma once
#include "quant/method.h"

namespace bcq {

struct RepqOptions {
  int wbits = 8, abits = 8;  // 2 ... 8
};

// Semantics of the published code, with two deviations. The zero point of folded inputs is rounded, so that codes are
// integers. Layers behind a folded one see it folded, with its weight rounded anew: the code calibrates activations on
// the network whose norms are quantized per channel, and folds afterwards.
class RepqVit : public Method {
 public:
  explicit RepqVit(const RepqOptions& options);
  Needs needs() const override;
  void begin(Model& model) override;
  void start(const Part& part) override { part_ = part; }
  using Method::fit;
  using Method::wants;
  bool wants(const Layer&) const override { return true; }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 private:
  void fit_linear(const std::vector<Layer*>& group, Tensor& input);
  RepqOptions options_;
  Model* model_ = nullptr;
  Part part_;
};

}  // namespace bcq
