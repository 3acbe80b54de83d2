// NoisyQuant ("NoisyQuant: Noisy Bias-Enhanced Post-Training Activation Quantization for Vision Transformers"): a fixed
// offset for each channel is added to inputs before they are rounded and taken off behind the product.
#pragma once
#include <map>

#include "engine/grid/offset.h"
#include "quant/ptq4vit.h"

namespace bcq {

// What rounding x [tokens, in] to q does to the output of a layer with weight w [out, in]: |(q - x) wᵀ|², by wᵀw where
// that is the smaller matrix.
class ProductError {
 public:
  explicit ProductError(const Tensor& w);
  double operator()(const Tensor& q, const Tensor& x) const;

 private:
  bool by_gram_;
  Tensor factor_;  // w or wᵀw
};

// What rounding x [tokens, in] to q - o does to the same output, for one candidate after another: |(q - o - x) wᵀ|²
// with offsets o [in] of the channels. A step of the search changes few values q; of a = q - x it keeps a wᵀw and a wᵀw
// aᵀ, from which  Σ_tokens a wᵀw aᵀ - 2 a wᵀw oᵀ + o wᵀw oᵀ  follows. In double.
class OffsetErrors {
 public:
  OffsetErrors(const Tensor& x, const Tensor& w);
  double operator()(const Tensor& q, const std::vector<float>& o);

 private:
  Tensor x_, gram_, rounded_;     // q as it was
  std::vector<double> products_;  // [tokens, in] a wᵀw
  std::vector<double> squares_;   // [tokens] a wᵀw aᵀ
};

// The searches below take the first of the candidates with the least error.
// The step of `bits` codes that end at i / 1000 of max |x|, i = 1000 ... 1.
float clip_step(const Tensor& x, const ProductError& error, int bits);
// The offsets of the channels in front of a grid, of which `step` is the step: a constant step i / 200, i = -200 ...
// 199, and then that plus noise_c step j / 1000, j = 0 ... 1999.
Offset search_offsets(const Tensor& x, const Tensor& w, const Grid& grid, float step, const std::vector<float>& noise);

// All linear layers but the patch embedding and the head.
inline bool takes_noise(const Layer& layer) {
  return layer.is_linear() && layer.role != Role::Patch && layer.role != Role::Head;
}

// The linear form, which is the one with published code: attention products stay float, too, which makes it an easier
// setting than PTQ4ViT's; weights have one symmetric scale a row. Differences to the code: each layer gets its step and
// its offsets before the next is looked at, where the code makes two passes; searches see at most 512 tokens, evenly
// spaced. Noise is Gaussian, of mean -1 and deviation 2 as in the code, with a seed of its own for each layer.
class NoisyQuant : public Method {
 public:
  NoisyQuant(int wbits, int abits, uint32_t seed = 3);  // of the noise. UsageError for bits out of [2, 8]
  Needs needs() const override { return {.stream = Stream::Quantized, .sequential = true, .operands = true}; }
  void begin(Model& model) override;
  bool wants(const Layer& layer) const override { return takes_noise(layer); }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  int wbits_, abits_;
  uint32_t seed_;
  std::map<const Layer*, uint32_t> seeds_;
};

// The form the paper combines with PTQ4ViT, of which no code is published: PTQ4ViT, and then offsets in front of the
// grids it chose, twin ones too, searched for on the inputs of the float network.
class NoisyPtq4vit : public Ptq {
 public:
  using Ptq::Ptq;
  void begin(Model& model) override;
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 private:
  std::map<const Layer*, uint32_t> seeds_;
};

}  // namespace bcq
