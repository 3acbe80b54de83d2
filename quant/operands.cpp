#include "quant/operands.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <map>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/core/timer.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

// Multiplications of each layer, to tell how far the calibration is; finds values that are not finite.
struct Survey : Observer {
  std::map<const Layer*, double> products;
  double total = 0;

  void product(const Layer& layer, const Tensor& a, const Tensor&, const Tensor& y) override {
    for (const Tensor* t : {&a, &y})
      require(kernels().all_finite(t->data, t->size()), "%s: its %s are not finite in the float network", layer.name,
              t == &a ? "inputs" : "outputs");
    const double n = static_cast<double>(y.size()) * static_cast<double>(a.dim(-1));
    products[&layer] += n;
    total += n;
  }
};

// What a layer is fed and makes, a tensor each batch. A Swin has several samples (windows) an image.
struct Captured {
  std::vector<Tensor> a, b, y, g2;
  int exponent = FLT_MIN_EXP;  // g2 is the sum of (G / 2^exponent)²

  // Adds the squares of a gradient at the layer's output, on this batch. Gradients may be as small as 1e-20. They are
  // scaled by a power of two that follows the largest seen at the layer, so that squares stay normal and a change of
  // scale is exact; scores do not see the factor.
  void add_gradient(size_t batch, const Tensor& g) {
    const float top = kernels().max_abs(g.data, g.size());
    if (std::isfinite(top) && top > 0 && std::ilogb(top) > exponent) {
      const float change = std::ldexp(1.f, 2 * (exponent - std::ilogb(top)));
      for (Tensor& t : g2) kernels().scale(t.data, change, t.data, t.size());
      exponent = std::ilogb(top);
    }
    if (g2.size() == batch) g2.emplace_back(g.shape);
    const float down = std::ldexp(1.f, -exponent);
    for (int64_t i = 0; i < g.size(); ++i) g2[batch][i] += (g[i] * down) * (g[i] * down);
  }
  Operands all() const {
    const auto join = [](const std::vector<Tensor>& x) { return x.empty() ? Tensor{} : concatenate(x); };
    return {join(a), join(b), join(y), join(g2)};
  }
};

// Notes what layers make in one pass, and keeps it with their operands in the first of a batch.
struct CapturePass : Observer {
  std::map<const Layer*, Captured>& layers;
  bool keeps_operands;
  std::vector<std::pair<const Layer*, Tensor>> outputs;

  CapturePass(std::map<const Layer*, Captured>& layers, bool keeps) : layers(layers), keeps_operands(keeps) {}
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
    outputs.emplace_back(&layer, y);
    if (!keeps_operands) return;
    Captured& of_layer = layers[&layer];
    of_layer.a.push_back(a);
    if (!layer.is_linear()) of_layer.b.push_back(b);
    of_layer.y.push_back(y);
  }
};

// Operands of the layers of part i from its inputs. `gradients` [draw][batch] are those of its outputs and become
// those of its inputs; without any, g2 stays empty.
std::map<const Layer*, Captured> capture_part(const Model& model, int i, const std::vector<Batch>& data,
                                              const std::vector<Tensor>& inputs,
                                              std::vector<std::vector<Tensor>>& gradients) {
  std::map<const Layer*, Captured> layers;
  for (size_t j = 0; j < data.size(); ++j)
    for (size_t draw = 0; draw < std::max<size_t>(1, gradients.size()); ++draw) {
      Tape tape;
      Tape* recording = gradients.empty() ? nullptr : &tape;
      Tensor x = inputs[j];
      if (recording && i >= 0) tape.watch(x);
      CapturePass pass(layers, draw == 0);
      const Tensor y = model.run({Precision::Float, recording, &pass}, i, data[j], x);
      if (!recording) continue;
      tape.backward(y, gradients[draw][j]);
      for (const auto& [layer, output] : pass.outputs) layers[layer].add_gradient(j, tape.grad(output));
      gradients[draw][j] = i >= 0 ? tape.grad(x) : Tensor{};
    }
  return layers;
}

// ---- A layer that another rank fitted -------------------------------------------------------------------------------

struct Fitted {
  std::string left, right;  // names of grids, which can be made again of what they say of themselves; "": it is float
  Fields of_left, of_right;
  bool renormalized = false;
  Tensor weight;

  void fields(auto visit) { visit(left, right, of_left, of_right, renormalized, weight); }
};

// The grids and the rounded weight of a layer as rank `from` has them, in all ranks: a layer that is packed, or
// compensated, is not for this.
void share_layer(Layer& layer, int from) {
  Fitted fitted;
  if (rank() == from && layer.quantized) {
    const Quantized& q = *layer.quantized;
    fitted = {q.left.name(),      q.right.name(), q.left.describe(),
              q.right.describe(), q.renormalized, q.weight.empty() ? Tensor{} : q.weight.values()};
  }
  share(fitted, from);
  if (rank() == from || fitted.left.empty()) return;
  Quantized q{read_grid(fitted.left, fitted.of_left), read_grid(fitted.right, fitted.of_right), fitted.weight, nullptr,
              nullptr};
  q.renormalized = fitted.renormalized;
  layer.quantize(std::move(q));
}

}  // namespace

CalibrationResult calibrate_on_float(Model& model, const std::vector<Batch>& data, Method& method,
                                     const CalibrationOptions& options) {
  const int depth = model.depth(), last = model.layers(depth).empty() ? depth - 1 : depth;
  const auto report = [&](const std::string& what, double done, double total) {
    if (options.progress) options.progress(what, done, total);
  };
  CalibrationResult result;
  const Timer all;
  report("running the float network", 0, 1);
  Survey survey;
  std::vector<std::vector<Tensor>> inputs(static_cast<size_t>(last) + 2);  // of parts -1 ... last, in batches
  std::vector<Tensor> outputs;
  for (const Batch& batch : data) {
    Tensor x;
    for (int i = -1; i <= last; ++i) {
      inputs[at(i + 1)].push_back(x);
      x = model.run({Precision::Float, nullptr, &survey}, i, batch, x);
    }
    outputs.push_back(x);
  }
  std::vector<std::vector<Tensor>> gradients;
  if (method.needs().gradients) gradients = method.logit_gradients(outputs);

  double done = 0;
  result.parts.resize(static_cast<size_t>(last) + 2);
  std::vector<int> waiting;  // parts of this round, which begins with the first rank's
  for (int i = last; i >= -1; --i) {
    const std::vector<Tensor> x = std::move(inputs[at(i + 1)]);
    PartRecord& record = result.parts[at(i + 1)];
    const bool has_layers = !model.layers(i).empty();
    const bool stored = has_layers && options.store && options.store->load(options.name, model, i, record);
    const bool fits = has_layers && !stored && static_cast<int>(waiting.size()) == rank();
    std::map<const Layer*, Captured> captured;
    if (fits || !gradients.empty()) captured = capture_part(model, i, data, x, gradients);
    if (fits) {
      method.start(model.part(i));
      if (method.needs().inputs) method.see_inputs(i, x);
    }
    for (Layer* layer : model.layers(i)) {
      if (!fits || !method.wants(*layer)) continue;
      report(options.name, done, survey.total);
      Seen seen;
      const auto ran = captured.find(layer);
      require(ran != captured.end(), "%s was never run", layer->name);
      seen.operands.push_back(ran->second.all());
      captured.erase(ran);
      const Timer watch;
      method.fit({layer}, seen, record);
      result.seconds.of_layer[layer] = watch.seconds();
      result.seconds.solve += watch.seconds();
      done += survey.products[layer];
    }
    if (has_layers && !stored) waiting.push_back(i);
    if (static_cast<int>(waiting.size()) < ranks() && i > -1) continue;
    for (size_t r = 0; r < waiting.size(); ++r) {
      for (Layer* layer : model.layers(waiting[r])) {
        share_layer(*layer, static_cast<int>(r));
        if (method.wants(*layer)) share(result.seconds.of_layer[layer], static_cast<int>(r));
      }
      PartRecord& of_part = result.parts[at(waiting[r] + 1)];
      share(of_part, static_cast<int>(r));
      if (options.store) options.store->done(options.name, model, waiting[r], of_part);
    }
    waiting.clear();
  }
  report(options.name, survey.total, survey.total);
  result.seconds.passes = all.seconds() - result.seconds.solve;
  return result;
}

}  // namespace bcq
