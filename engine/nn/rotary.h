// Rotary position embeddings: channels c and c + d/2 of a head are turned by an angle that grows with the position.
// ("RoFormer: Enhanced Transformer with Rotary Position Embedding"; halves as Hugging Face transformers pairs them)
#pragma once
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

// How fast the d/2 pairs turn. All steps are in float32, in transformers' order.
struct Rotary {
  enum class Scaling {
    None,
    Linear,  // all by `factor` slower
    Llama3   // those slow for `original` positions are, those fast are not, between the two it is mixed
  };
  double theta = 10000;  // pair c turns by theta^(-2c/d) a position
  Scaling scaling = Scaling::None;
  double factor = 1, low = 1, high = 4;  // turns in `original` positions that are slow (at most), and fast (at least)
  double original = 8192;
};
std::vector<float> rotary_frequencies(const Rotary& rotary, int64_t d);  // radians a position, [d/2]

// cos, then sin, of the angles of T tokens from position `first` on: [T, d].
Tensor rotary_angles(const std::vector<float>& frequencies, int64_t first, int64_t T);

// Every head turned: x [B, T, H*d], angles [T, d] -> [B, T, H*d].
Tensor rotate(const Tensor& x, const Tensor& angles);

}  // namespace bcq
