// Weight and activation quantizers of vision transformers: BasePTQ, EasyQuant and PTQ4ViT
// ("PTQ4ViT: Post-Training Quantization Framework for Vision Transformers", section 3;
// semantics of the official code, which calibrates all layers in parallel on the float network).
#pragma once
#include <cstdint>

#include "engine/core/progress.h"
#include "quant/method.h"
#include "quant/search.h"

namespace bcq {

// Where G comes from. The official code back-propagates a KL divergence of the network to itself,
// whose gradient is rounding noise; a deterministic engine needs a probe with a name.
enum class Probe {
  Fisher,  // dL/dz = p - onehot(y), y drawn from p: E[G²] is the Fisher diagonal
  Noise    // dL/dz = p ∘ ξ, ξ uniform in (-1, 1): closest to what the official code does
};

// The grid of softmax's output: the published code's two overlapping ranges, the paper's disjoint ones, or uniform,
// with a sign as all others or (APQ-ViT) from 0 to the largest value.
enum class SoftmaxTwin { Official, Clean, None, Unsigned };
// The grid of GELU's output, Δ⁻ of which is fixed: Δ⁺ among the candidates of every other step, as in the published
// code; Δ⁺ = 2^m Δ⁻ with a whole m >= 0, as in the paper; or uniform.
enum class GeluTwin { Official, Aligned, None };

constexpr int kFloatBits = 32;  // "do not quantize", as in the official code

struct PtqOptions {
  int wbits = 8, abits = 8;  // 2 ... 16, or kFloatBits
  // Defaults are PTQ4ViT's; base_ptq() gives the other row of the tables.
  SoftmaxTwin softmax_twin = SoftmaxTwin::Official;
  GeluTwin gelu_twin = GeluTwin::Official;
  bool channel_conv = true;      // one step per output channel of the patch convolution
  bool head_intervals = true;    // one step per head of the operands of products, as in the code; else one for all
  bool quantize_pixels = false;  // the input of the patch convolution, which the code leaves float
  Metric metric = Metric::Hessian;
  // Candidates Δ0 (eq_alpha + i (eq_beta - eq_alpha) / eq_n), i = 0 ... eq_n - 1: eq_beta itself is not
  // among them, and all rounds search around the same Δ0.
  double eq_alpha = 0.01, eq_beta = 1.2;
  int eq_n = 100;
  int rounds = 3;
  Probe probe = Probe::Fisher;
  int draws = 4;  // probe samples per image
  uint32_t seed = 3;
  // Calibrate in the order of the network on quantized inputs, instead of all layers on the float network.
  bool sequential = false;
};
PtqOptions base_ptq(int wbits, int abits);
// "EasyQuant: Post-training Quantization via Scale Optimization": cosine similarity, scales of both operands in
// turns until neither changes (or 10 rounds), inputs from the quantized layers before. It has no published code
// for transformers; grids and candidates are BasePTQ's.
PtqOptions easy_quant(int wbits, int abits);

// The best candidate of each unit of an operand, while the other is on the grid `other`.
using Search = std::function<std::vector<int>(Side side, const Grid& other, const Candidates& candidates)>;
// Choose the grids of one layer by this search, or without one by search() with the options' metric, and round its
// weight. Deterministic. Throws Error naming the layer when its data is not finite or does not fit, UsageError when the
// options make no sense.
void calibrate_layer(Layer& layer, const Operands& data, const PtqOptions& options, const Search& by = {});

// What the model held of quantization and compensation before is forgotten.
class Ptq : public Method {
 public:
  // UsageError when the options make no sense.
  Ptq(const PtqOptions& options, const Warn& warn);
  Needs needs() const override {
    return {.stream = options_.sequential ? Stream::Quantized : Stream::Float,
            .sequential = options_.sequential,
            .operands = true,
            .outputs = true,
            .gradients = options_.metric == Metric::Hessian};
  }
  void begin(Model& model) override {
    Method::begin(model);
    model.clear();
  }
  bool wants(const Layer&) const override { return true; }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;
  std::vector<std::vector<Tensor>> logit_gradients(const std::vector<Tensor>& logits) override;

 protected:
  PtqOptions options_;

 private:
  Warn warn_;
};

}  // namespace bcq
