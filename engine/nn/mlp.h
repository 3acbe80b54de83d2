// The MLP of a vision transformer's block.
#pragma once
#include "engine/nn/layer.h"

namespace bcq {

// fc2(GELU(fc1(x))). In Precision::Float and ::Integer, unless gradients are wanted or an observer wants to see the
// layers, it runs fused: what fc1 computes becomes GELU's values, or fc2's codes, while it is in cache. The bits are
// those of the layers one by one.
Tensor mlp(const Context& ctx, const Layer& fc1, const Layer& fc2, const Tensor& x);

}  // namespace bcq
