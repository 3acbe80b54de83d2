// What a quantization method is to the calibration: it says what it needs to know of the data and is handed it, layer
// by layer, as calibrate() goes through the network. One method, one file; a row in the table of methods gives it a
// name.
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "models/model.h"
#include "quant/moments.h"
#include "quant/running_mean.h"

namespace bcq {

// Whose inputs a layer is shown: those of the float network, or what the quantized network, as far as it is quantized
// and compensated, makes of the same data.
enum class Stream { Float, Quantized };

struct Needs {
  Stream stream = Stream::Float;
  // Groups of layers one after the other, each seen once those before it are fitted; else all of a part at once.
  bool sequential = false;
  bool moments = false;  // second moments of the inputs of a group
  double held_out = 0;   // share of the samples, at most half, of which they are handed over apart
  bool cross = false;    // and their products with the float network's inputs, the samples in two halves
  // Whole operands of each layer, on all samples; with `cross` those of both streams. Sequential methods see those of
  // the quantized stream while it runs: one that folds something into what made an operand folds the operand, too, in
  // place, for it is what the network goes on with.
  bool operands = false;
  bool outputs = false;    // and what the layer, itself in float, makes of them
  bool inputs = false;     // of parts, whole: see_inputs() is called
  bool folds = false;      // Model::fold is called: products cannot be compensated in the same walk
  bool blocks = false;     // inputs of whole blocks and what their outputs lack of the float network's
  bool gradients = false;  // and E[G²] of its outputs; not sequential, Stream::Float
};

// Raw data of one layer on the calibration samples.
struct Operands {
  Tensor a;       // left operand [S, ..., in] or [S, H, N, K]
  Tensor b;       // right operand [S, H, ., .]; empty for a linear layer
  Tensor y;       // Needs::outputs: output with the layer itself in float [S, ..., out] or [S, H, N, M]
  Tensor g2;      // E[G²] up to a factor, in the shape of y; empty: 1 everywhere
  Tensor f = {};  // with Needs::cross: the left operand in the float network, where `a` is that of the quantized one
};

// What has been seen of one group of layers.
struct Seen {
  std::unique_ptr<Moments> moments, odd;  // of all samples; or of the even and the odd ones (Needs::cross)
  std::unique_ptr<Moments> held_out;      // of samples that are in neither (Needs::held_out)
  std::vector<Operands> operands;         // of each of its layers
};

// One layer as a weight solver left it. Errors are mean squares over tokens and outputs of what rounding does to the
// layer's output on its calibration inputs, Σ (Q - V) C (Q - V)ᵀ / out: V the weights that were rounded (refitted
// ones for the float target), C the second moments of inputs, or their covariance. Each is at most the one before it,
// but that of GPTQ, which promises nothing.
struct LayerRecord {
  std::string layer;
  int bits = 0;
  int64_t group = 0;       // columns that share a scale
  double damp = 0;         // that GPTQ needed
  double ridge = 0;        // of the refit, as a share of C's mean diagonal; infinite: the weights as they were
  double signal = 0;       // the same mean of V's own output
  double rounded = 0;      // round to nearest
  double solved = 0;       // GPTQ
  double refined = 0;      // after weighted ranges, coordinate descent and scale refits
  double compensated = 0;  // C centred: what a bias on these inputs cannot take away
  double held_out = NAN;   // on held-out samples (vision: of the finished layer, rounded inputs and all); NaN: none

  void fields(auto visit) {
    visit(layer, bits, group, damp, ridge, signal, rounded, solved, refined, compensated, held_out);
  }
};

// What is kept of a part of the network besides what its layers and points hold.
struct PartRecord {
  std::vector<LayerRecord> layers;
  int64_t fitted = 0;   // values of compensations
  int64_t dropped = 0;  // outputs whose compensation did harm on held-out samples

  void fields(auto visit) { visit(layers, fitted, dropped); }
};

class Method {
 public:
  virtual ~Method() = default;

  virtual Needs needs() const { return {}; }
  virtual void begin(Model& model) { model_ = &model; }  // before anything else
  // A part of the network is about to be calibrated.
  virtual void start(const Part& part) { part_ = part; }
  // For Needs::inputs: what that part, i, is fed on the stream of Needs, a tensor each batch; they stay until the next
  // part.
  virtual void see_inputs(int i, const std::vector<Tensor>& x) { index_ = i, inputs_ = &x; }
  // Layers to be handed to fit(), by the groups that share an input.
  virtual bool wants(const Layer&) const { return false; }
  virtual void fit(const std::vector<Layer*>& /*group*/, Seen& /*seen*/, PartRecord&) {}

  // Outputs of which the mean error, E[F - Q], is to be handed over: those of layers, with Needs' stream and order, if
  // it compensates any; then the larger outputs of the part, once all its layers are fitted.
  virtual bool compensates() const { return false; }
  virtual bool wants_output(Point::Kind) const { return false; }
  virtual BcShape shape() const { return BcShape::Channel; }
  virtual void fit_output(const Point&, const Tensor& /*error*/, PartRecord&) {}
  // For Needs::blocks: of block i, once its layers and outputs are fitted, each sample in order, then the last word. x
  // and error [B, N, D]; blocks that change the shape are left out.
  virtual void see_block(const Tensor& /*x*/, const Tensor& /*error*/) {}
  virtual void fit_block(int /*i*/, PartRecord&) {}
  // Share of the samples, at most half, on which an error has to fall for its compensation to be kept; 0: all are.
  virtual double held_out() const { return 0; }
  // Whether branches are measured with the mask of a Swin's shifted windows.
  virtual bool masked_branches() const { return true; }

  // For Needs::gradients: dL/d(logits) of each draw and batch, [draw][batch] [B, classes], from the float logits.
  virtual std::vector<std::vector<Tensor>> logit_gradients(const std::vector<Tensor>& /*logits*/) { return {}; }

 protected:
  // What methods for vision models that choose grids for everything begin with: the model as loaded, its LayerScales in
  // the weights that are rounded. UsageError naming the method for a language model.
  void begin_vision(Model& model, const char* method);

  // What begin(), start() and see_inputs() were given last.
  Model* model_ = nullptr;
  Part part_;
  int index_ = 0;
  const std::vector<Tensor>* inputs_ = nullptr;
};

}  // namespace bcq
