#include "quant/operands.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/core/timer.h"
#include "engine/kernels/kernels.h"
#include "quant/share_layer.h"

namespace bcq {

OperandCapture::OperandCapture(const std::vector<Batch>& data) : first_{0} {
  for (const Batch& batch : data) first_.push_back(first_.back() + batch.size());
}

void OperandCapture::start(size_t batch) { batch_ = batch; }

// A Swin has several samples (windows) an image.
void OperandCapture::put(Tensor& all, const Tensor& batch) const {
  const int64_t begin = first_[batch_], end = first_[batch_ + 1], per_sample = batch.dim(0) / (end - begin);
  if (all.empty()) {
    Shape shape = batch.shape;
    shape[0] = first_.back() * per_sample;
    all = Tensor::uninitialized(shape);
  }
  const Tensor place = all.slice(begin * per_sample, end * per_sample);
  require(place.size() == batch.size(), "calibration batches need samples of one shape, got %s",
          to_string(batch.shape));
  std::memcpy(place.data, batch.data, static_cast<size_t>(batch.size()) * sizeof(float));
}

void OperandCapture::add(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) {
  Operands& operands = layers_[&layer].operands;
  put(operands.a, a);
  if (!layer.is_linear()) put(operands.b, b);
  put(operands.y, y);
}

// Gradients may be as small as 1e-20. They are scaled by a power of two that follows the largest seen
// at the layer, so that squares stay normal and a change of scale is exact; scores do not see the factor.
void OperandCapture::add_gradient(const Layer& layer, const Tensor& g) {
  Entry& e = layers_[&layer];
  const float top = kernels().max_abs(g.data, g.size());
  Tensor& g2 = e.operands.g2;
  const bool first = g2.empty();
  if (first) {
    g2 = Tensor(e.operands.y.shape);
    e.exponent = FLT_MIN_EXP;
  }
  if (std::isfinite(top) && top > 0 && std::ilogb(top) > e.exponent) {
    const int exponent = std::ilogb(top);
    if (!first) kernels().scale(g2.data, std::ldexp(1.f, 2 * (e.exponent - exponent)), g2.data, g2.size());
    e.exponent = exponent;
  }
  const float down = std::ldexp(1.f, -e.exponent);
  float* into = g2.data + first_[batch_] * (g2.size() / first_.back());
  for (int64_t i = 0; i < g.size(); ++i) into[i] += (g[i] * down) * (g[i] * down);
}

Operands OperandCapture::take(const Layer* layer) {
  const auto found = layers_.find(layer);
  require(found != layers_.end(), "%s was never run", layer->name);
  Operands operands = std::move(found->second.operands);
  layers_.erase(found);
  return operands;
}

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

// Hands the products of one pass to a capture, and their gradients once these are known.
struct CapturePass : Observer {
  OperandCapture& capture;
  bool keeps_operands;
  std::vector<std::pair<const Layer*, Tensor>> outputs;

  CapturePass(OperandCapture& capture, bool keeps_operands) : capture(capture), keeps_operands(keeps_operands) {}
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (keeps_operands) capture.add(layer, a, b, y);
    outputs.emplace_back(&layer, y);
  }
};

// Operands of the layers of part i from its inputs. `gradients` [draw][batch] are those of its outputs and become
// those of its inputs; without any, g2 stays empty.
OperandCapture capture_part(const Model& model, int i, const std::vector<Batch>& data,
                            const std::vector<Tensor>& inputs, std::vector<std::vector<Tensor>>& gradients) {
  OperandCapture capture(data);
  for (size_t j = 0; j < data.size(); ++j) {
    capture.start(j);
    for (size_t draw = 0; draw < std::max<size_t>(1, gradients.size()); ++draw) {
      Tape tape;
      Tape* recording = gradients.empty() ? nullptr : &tape;
      Tensor x = inputs[j];
      if (recording && i >= 0) tape.watch(x);
      CapturePass pass(capture, draw == 0);
      const Tensor y = model.run({Precision::Float, recording, &pass}, i, data[j], x);
      if (!recording) continue;
      tape.backward(y, gradients[draw][j]);
      for (const auto& [layer, output] : pass.outputs) capture.add_gradient(*layer, tape.grad(output));
      gradients[draw][j] = i >= 0 ? tape.grad(x) : Tensor{};
    }
  }
  return capture;
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
    OperandCapture capture(data);
    if (fits || !gradients.empty()) capture = capture_part(model, i, data, x, gradients);
    if (fits) {
      method.start(model.part(i));
      if (method.needs().inputs) method.see_inputs(i, x);
    }
    for (Layer* layer : model.layers(i)) {
      if (!fits || !method.wants(*layer)) continue;
      report(options.name, done, survey.total);
      Seen seen;
      seen.operands.push_back(capture.take(layer));
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
