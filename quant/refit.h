// Weights refitted to the inputs they will get: those that quantized layers before them make.
#pragma once
#include <vector>

#include "engine/core/tensor.h"
#include "quant/moments.h"

namespace bcq {

struct Refit {
  std::vector<Tensor> weights;  // V of each W
  double ridge = 0;             // λ as a share of C's mean diagonal; infinite: V = W
};

// What each of `weights`, W [out, in], should have been, given inputs x~ where it had x:
//   min_V E || W x - V x~ ||² + λ || V - W ||²   =>   V = W + W (E x x~ᵀ - C) (C + λ)⁻¹,  C = E x~ x~ᵀ,
// products centred when `centred`, for a bias fitted afterwards takes up the means. The two halves of the
// windows, a and b, choose λ: the one whose V, fitted on either half, errs least on the other; where none does
// better than W, V is W. V is then fitted on both halves, which a holds afterwards.
Refit refit(const std::vector<Tensor>& weights, Moments& a, const Moments& b, bool centred);

}  // namespace bcq
