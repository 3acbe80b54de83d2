// Symmetric uniform grids moved by a constant for each channel: x̂ = Q(x + o) - o.   (NoisyQuant, section 3)
#pragma once
#include <utility>

#include "engine/grid/grid.h"

namespace bcq {

// One step Δ, Q(x) = Δ clamp(round(x / Δ), -m, m - 1), m = 2^(bits-1), and an offset o for each channel, the last
// dimension. Simulated: a layer's codes are those of x + o, and W o, a constant, would leave its bias.
class Offset final : public GridKind {
 public:
  Offset(int bits, float delta, std::vector<float> offsets)
      : GridKind(bits), step(delta), offset_of(std::move(offsets)) {}
  static Grid read(const Fields& fields);

  float step;
  std::vector<float> offset_of;

  const char* name() const override { return "uniform+offset"; }
  Fields describe() const override { return {{"bits", bits}, {"interval", step}, {"offsets", offset_of}}; }
  void fake_quantize(const Tensor& x, Tensor& y) const override;  // Error when there are other channels
  double storage_bits(const Shape& shape) const override;         // a 32-bit step, 32-bit offsets
};

}  // namespace bcq
