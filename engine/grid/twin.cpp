#include "engine/grid/twin.h"

#include <cmath>

#include "engine/grid/parts.h"
#include "engine/kernels/kernels.h"

namespace bcq {

Grid TwinGelu::read(const Fields& fields) {
  return TwinGelu{bits_field(fields), scale_field(fields, "positive"), scale_field(fields, "negative")};
}

void TwinGelu::fake_quantize(const Tensor& x, Tensor& y) const {
  map_chunks(x.data, y.data, x.size(), [&](const float* a, float* b, int64_t n) {
    kernels().fake_twin_gelu(a, b, n, pos, neg, std::ldexp(1.f, bits - 1));
  });
}

void TwinGelu::code(const float* x, int64_t n, int64_t, uint8_t* codes, int64_t stride) const {
  kernels().code_twin_gelu(x, codes, codes + stride, n, pos, neg, std::ldexp(1.f, bits - 1));
}

Grid TwinSoftmax::read(const Fields& fields, bool official) {
  return TwinSoftmax{bits_field(fields), scale_field(fields, "split"), official};
}

float TwinSoftmax::steps() const { return std::ldexp(1.f, bits - 1) - 1; }

void TwinSoftmax::fake_quantize(const Tensor& x, Tensor& y) const {
  map_chunks(x.data, y.data, x.size(), [&](const float* a, float* b, int64_t n) {
    kernels().fake_twin_softmax(a, b, n, split, steps(), official);
  });
}

void TwinSoftmax::code(const float* x, int64_t n, int64_t, uint8_t* codes, int64_t stride) const {
  kernels().code_twin_softmax(x, codes, codes + stride, n, split, steps(), official);
}

}  // namespace bcq
