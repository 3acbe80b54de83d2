// Outlier Suppression+ ("Outlier Suppression+: Accurate Quantization of Large Language Models by Equivalent and
// Effective Shifting and Scaling"): channels behind a norm are centred, and those beyond a threshold scaled down to it.
#pragma once
#include <functional>

#include "quant/weight_methods.h"

namespace bcq {

// Of channels centred at (largest + least) / 2, half their width, [in].
struct Centred {
  std::vector<float> shift, half;
};
Centred centre(const std::vector<float>& least, const std::vector<float>& largest);

// s_c = max(1, half_c / t).   (section 4.2)
std::vector<float> threshold_scales(const std::vector<float>& half, float t);

// From the largest half width T down to 1, if that is less, in max(100, 2 T) equal steps, the first threshold of least
// loss(t, s).
struct Threshold {
  float t = 0;
  std::vector<float> scales;
  int step = 0;
  double loss = 0;
};
Threshold search_threshold(const std::vector<float>& half,
                           const std::function<double(float t, const std::vector<float>& scales)>& loss);

// (x_c - shift_c) / s_c, x [..., in], rounded to `bits` over [-t, t], and back:  x̂_c = s_c q + shift_c.
Tensor round_within(const Tensor& x, const std::vector<float>& shift, const std::vector<float>& scales, float t,
                    int bits);

// The shifts and scales of all inputs that norms make, on the float network; rounding is left to others. Losses are
// squares, over the tokens of at most 16 batches, of what attention makes of rounded q, k and v, or of the layer's own
// output. An RMSNorm, whose files have no shift, is scaled only.
class OutlierSuppression : public Method {
 public:
  OutlierSuppression(const WeightGrid& grid, int abits, const LayerBits& bits)
      : grid_(grid), abits_(abits), bits_(bits) {}
  Needs needs() const override { return {.moments = true, .inputs = true, .folds = true}; }
  bool wants(const Layer& layer) const override {
    return is_to_quantize(layer, bits_) && part_.group_of(layer).source.norm;
  }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  Tensor looked_at(Precision precision, Layer& first, const Tensor& fed, const Tensor& block) const;
  WeightGrid grid_;
  int abits_;
  LayerBits bits_;
};

}  // namespace bcq
