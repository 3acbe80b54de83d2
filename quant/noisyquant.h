// NoisyQuant ("NoisyQuant: Noisy Bias-Enhanced Post-Training Activation Quantization for Vision Transformers"): a fixed
// offset for each channel is added to inputs before they are rounded and taken off behind the product.
#pragma once
#include <map>

#include "engine/grid/offset.h"
#include "quant/method.h"

namespace bcq {

struct NoisyQuantOptions {
  int wbits = 6, abits = 6;  // 2 ... 8
  uint32_t seed = 3;         // of the noise
};

// The searches below score what rounding x [tokens, in] does to a layer's output by E e ŴᵀŴ eᵀ, e the error of a token;
// gram [in, in] is ŴᵀŴ, the upper triangle. First strict best of all candidates.

// The step of `bits` codes that end at i / 1000 of max |x|, i = 1000 ... 1.
float clip_step(const Tensor& x, const std::vector<double>& gram, int bits);
// Offsets of the channels: a constant step i / 200, i = -200 ... 199, and then that plus noise_c step j / 1000,
// j = 0 ... 1999.
Offset search_offsets(const Tensor& x, const std::vector<double>& gram, int bits, float step,
                      const std::vector<float>& noise);

// The linear form, which is the one with published code: all linear layers but the patch embedding and the head, with
// weights of one symmetric scale a row; attention products stay float, which makes it an easier setting than PTQ4ViT's.
// Differences to the code: each layer gets its step and its offsets before the next is looked at, where the code makes
// two passes; searches see at most 512 tokens, evenly spaced; the noise is Gaussian with a seed of its own for each
// layer, mean -1 and deviation 2 as in the code.
class NoisyQuant : public Method {
 public:
  explicit NoisyQuant(const NoisyQuantOptions& options);  // UsageError for other bits
  Needs needs() const override;
  void begin(Model& model) override;
  using Method::fit;
  using Method::wants;
  bool wants(const Layer& layer) const override {
    return layer.is_linear() && layer.role != Role::Patch && layer.role != Role::Head;
  }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  NoisyQuantOptions options_;
  std::map<const Layer*, uint32_t> seeds_;  // of their noise, counted from the head back
};

}  // namespace bcq
