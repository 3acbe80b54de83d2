#include "quant/minmax.h"

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"
#include "quant/calibrate.h"

namespace bcq {
namespace {

float step_of(const Tensor& x, int bits) {
  return kernels().max_abs(x.data, x.size()) / (std::ldexp(1.f, bits - 1) - 0.5f);
}
Grid grid_of(const Tensor& x, int bits, int axis) { return Uniform{bits, axis, {step_of(x, bits)}}; }

}  // namespace

MinMax::MinMax(int wbits, int abits, bool twin) : wbits_(wbits), abits_(abits), twin_(twin) {
  for (const int bits : {wbits, abits}) require_usage(bits >= 2 && bits <= 8, "%d bits: min-max takes 2 to 8", bits);
}

void MinMax::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  for (size_t i = 0; i < group.size(); ++i) {
    Layer& layer = *group[i];
    const Tensor &a = seen.operands[i].a, &b = seen.operands[i].b;
    const bool linear = layer.is_linear();
    const Grid right = linear ? grid_of(layer.weight.values(), wbits_, 0) : grid_of(b, abits_, 1);
    Grid left;
    if (twin_ && layer.role == Role::Fc2)
      left = TwinGelu{abits_, step_of(a, abits_), 0.17f / std::ldexp(1.f, abits_ - 1)};
    else if (twin_ && layer.role == Role::AV)
      left = TwinSoftmax{abits_, 1.f / 16, true};
    else if (layer.role != Role::Patch)
      left = grid_of(a, abits_, linear ? 0 : 1);
    layer.quantize(left, right);
  }
}

void quantize_minmax(Model& model, const Batch& batch, int bits, bool twin) {
  MinMax method(bits, bits, twin);
  calibrate(model, {batch}, {&method});
}

}  // namespace bcq
