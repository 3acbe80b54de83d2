// The MLP of a vision transformer's block.
#pragma once
#include "engine/nn/layer.h"
#include "engine/nn/ops.h"

namespace bcq {

// fc2(GELU(fc1(x))). In Precision::Float and ::Integer, unless gradients are wanted or an observer wants to see the
// layers, it runs fused: what fc1 computes becomes GELU's values, or fc2's codes, while it is in cache. The bits are
// those of the layers one by one.
Tensor mlp(const Context& ctx, const Layer& fc1, const Layer& fc2, const Tensor& x, Gelu form = Gelu::Erf);

// The fused float form: GELU(x W1ᵀ + b1) W2ᵀ + b2, x [B, ..., K], w1 [F, K], w2 [O, F] -> [B, ..., O].
Tensor fused_float_mlp(const Tensor& x, const Weight& w1, const Tensor& b1, const Weight& w2, const Tensor& b2,
                       Gelu form = Gelu::Erf);

}  // namespace bcq
