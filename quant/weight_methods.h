// Methods that quantize weights: round to nearest, and GPTQ with what can be added to it, a centred Hessian, weights
// refitted to the float network's outputs and coordinate descent on the codes. A layer's input keeps its grid.
#pragma once
#include "quant/allocation.h"
#include "quant/gptq.h"
#include "quant/method.h"

namespace bcq {

// W diag(s) rounded to nearest, times diag(s)⁻¹: what a rounded weight [out, in] is to an input that is not divided by
// s.
Tensor rounded_scaled(const Tensor& w, const std::vector<float>& s, const WeightGrid& grid);

// How the inputs of linear layers are rounded, too.
struct ActivationGrid {
  int bits = 32;       // 2 ... 8; 32: not at all
  bool fixed = false;  // one asymmetric grid for the tensor, from least to largest as seen in calibration; else one a
                       // token, from the token itself (engine/grid/uniform.h)
};

// Every linear layer to the nearest numbers of its grid; those in `bits` with bits of their own, or not at all (0). It
// looks at data for fixed grids of activations, those of the quantized stream, and for what changes weights first.
class RoundToNearest : public Method {
 public:
  using Change = Tensor (*)(const Layer&, const WeightGrid&, const Seen&);  // the weight that is rounded
  explicit RoundToNearest(const WeightGrid& grid, LayerBits bits = {}, const ActivationGrid& activations = {},
                          Change change = nullptr)
      : grid_(grid), bits_(std::move(bits)), activations_(activations), change_(change) {}
  Needs needs() const override {
    const bool fixed = activations_.bits < 32 && activations_.fixed;
    return {.stream = fixed ? Stream::Quantized : Stream::Float, .moments = fixed || change_};
  }
  bool wants(const Layer& layer) const override { return is_to_quantize(layer, bits_); }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  WeightGrid grid_;
  LayerBits bits_;
  ActivationGrid activations_;
  Change change_;
};

// What GPTQ rounds: the layer's weights, those refitted to make the float network's output of these inputs (asymmetric
// calibration), or the layer's weights with GPTAQ's way to carry on what the inputs have drifted.
enum class Target { Own, Float, Gptaq };

struct GptqMethodOptions {
  GptqOptions gptq;
  LayerBits bits = {};  // as for RoundToNearest
  // The official order takes the inputs of a block's layers from the block still float; in sequential order
  // a layer sees those before it quantized, and compensated (GPTQ's --true-sequential).
  bool sequential = false;
  // Which second moments of inputs the solver looks at, those a layer gets on the quantized stream: raw, the Hessian,
  // or centred, the covariance, for a layer whose bias is fitted afterwards and so takes up any constant error.
  bool centred = false;
  Target target = Target::Own;
  int refine = 0;        // sweeps of coordinate descent over the codes, after GPTQ
  int scale_rounds = 0;  // times the scales are then refitted to the codes and the codes refined again
  ActivationGrid activations = {};
  double held_out = 0;  // share of the samples LayerRecord::held_out is measured on
  bool packed = true;   // weights are kept as packed codes; else as values on their grid, as integer products need them
};

class Gptq : public Method {
 public:
  // Warns when there are fewer tokens than columns. UsageError for options that mean nothing.
  Gptq(const GptqMethodOptions& options, const Warn& warn);
  Needs needs() const override {
    return {.stream = Stream::Quantized,
            .sequential = options_.sequential,
            .moments = true,
            .held_out = options_.held_out,
            .cross = options_.target != Target::Own};
  }
  void start(const Part& part) override;  // its weights are float again
  bool wants(const Layer& layer) const override { return is_to_quantize(layer, options_.bits); }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) override;

 private:
  QuantizedWeight start_from(const Tensor& v, const std::vector<double>& hessian, const std::vector<double>& drift,
                             const GptqOptions& options, const std::string& name, double& error);
  LayerRecord fit_layer(Layer& layer, const Tensor& v, const std::vector<double>& hessian,
                        const std::vector<double>& drift, double mean, const std::vector<double>& means);
  GptqMethodOptions options_;
  Warn warn_;
  bool warned_ = false;
};

}  // namespace bcq
