#include "quant/minmax.h"

#include <cmath>
#include <map>

#include "engine/grid/twin_gelu.h"
#include "engine/grid/twin_softmax.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

float step_of(const Tensor& x, int bits) {
  return kernels().max_abs(x.data, x.size()) / (std::ldexp(1.f, bits - 1) - 0.5f);
}

struct RangeGrids : Observer {
  int bits;
  bool twin;
  std::map<const Layer*, Quantized> made;
  RangeGrids(int k, bool t) : bits(k), twin(t) {}

  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor&) override {
    Quantized& q = made[&layer];
    const Tensor right = layer.is_linear() ? layer.weight.values() : b;
    const int axis = layer.is_linear() ? 0 : 1;
    q.right = Uniform{bits, axis, {step_of(right, bits)}};
    if (layer.is_linear()) q.weight = fake_quantize(q.right, right);
    const float step = step_of(a, bits), m = std::ldexp(1.f, bits - 1);
    if (layer.role == Role::Patch)
      q.left = Identity{};
    else if (twin && layer.role == Role::Fc2)
      q.left = TwinGelu{bits, step, 0.17f / m};
    else if (twin && layer.role == Role::AV)
      q.left = TwinSoftmax{bits, 1.f / 16, true};
    else
      q.left = Uniform{bits, axis, {step}};
  }
};

}  // namespace

void quantize_minmax(Model& model, const Batch& batch, int bits, bool twin) {
  model.clear();
  RangeGrids grids(bits, twin);
  model.forward({Precision::Float, nullptr, &grids}, batch);
  for (Layer* layer : model.all_layers()) layer->quantize(grids.made.at(layer));
}

}  // namespace bcq
