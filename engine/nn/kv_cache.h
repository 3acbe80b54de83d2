// Keys and values of the tokens that have gone through a language model, so that those that follow are all that is
// left to compute.
#pragma once
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

struct KvCache {
  static constexpr int64_t kKeys = 64;  // that are multiplied at once
  // As attention reads them: head by head, keys transposed; of both, the first `length` tokens count.
  struct Layer {
    Tensor k;  // [B, H, blocks of kKeys, d, kKeys]
    Tensor v;  // [B, H, tokens of these blocks, d]
  };

  explicit KvCache(int64_t tokens) : capacity(tokens) {}
  int64_t capacity;           // tokens of a window there is room for
  int64_t length = 0;         // tokens it holds; the model moves it on when all blocks have run
  std::vector<Layer> layers;  // made when a block first runs
};

// causal_attention() of tokens that follow those in the cache, which they join: q, k, v [B, T, D] -> [B, T, D].
// For the first tokens it is causal_attention() itself. Error when there is no room.
Tensor cached_attention(KvCache& cache, int layer, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        float scale, const std::vector<float>& slopes = {});

}  // namespace bcq
