// The two chains of layers that blocks of vision transformers are made of.
//
// Each is written once, as the papers have it. In Precision::Float and ::Integer, unless gradients are wanted or an
// observer wants to see every product, the same chain runs in one go: what one site computes is used by the next, or
// becomes its codes, while it is in cache. The values are those of the layers one by one, bit by bit.
#pragma once
#include "engine/nn/layer.h"

namespace bcq {

// fc2(GELU(fc1(x)))
Tensor mlp(const Context& ctx, const Layer& fc1, const Layer& fc2, const Tensor& x);

struct AttentionForm {
  int64_t heads;
  bool scales_queries;  // 1 / sqrt(d) is applied to q before q kᵀ, else to the scores
  Tensor bias, mask;    // of add_window_bias; empty bias: none
};
// Softmax(q kᵀ / sqrt(d) + bias) v of each head, side by side: qkv [B, N, 3D] -> [B, N, D]
Tensor attend(const Context& ctx, const Layer& qk, const Layer& av, const Tensor& qkv, const AttentionForm& form);

}  // namespace bcq
