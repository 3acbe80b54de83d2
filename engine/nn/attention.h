// Attention of H heads, softmax(scale q kᵀ + bias) v, all of it.
//
// A vision model's layers q kᵀ and A v are quantized, observed and differentiated, so attend() runs them one by one
// where somebody looks; where nobody does, in Precision::Float and ::Integer, they run fused, head by head while scores
// are in cache. Both give the same bits. A language model's attention is causal and always float.
#pragma once
#include <vector>

#include "engine/nn/layer.h"

namespace bcq {

struct AttentionForm {
  int64_t heads;
  bool scales_queries;  // 1 / sqrt(d) is applied to q before q kᵀ, else to the scores
  Tensor bias, mask;    // of add_window_bias; empty: none
};
// Each head's output, side by side: qkv [B, N, 3D] -> [B, N, D]
Tensor attend(const Context& ctx, const Layer& qk, const Layer& av, const Tensor& qkv, const AttentionForm& form);

// Causal: token i sees tokens 0 to i. q [B, T, H*d] -> [B, T, H*d]; k and v [B, T, K*d], where H / K heads of queries
// in a row share one of keys and values (grouped-query attention). scale multiplies q first, as OPT does. The bias is
// ALiBi's, slopes[h] (j - i) for key j of query i, and none without slopes. ("Train Short, Test Long: Attention with
// Linear Biases")
Tensor causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads, float scale,
                        const std::vector<float>& slopes = {});

// Keys and values of the tokens that have gone through a language model.
struct KvCache {
  static constexpr int64_t kKeys = 64;  // that are multiplied at once
  // As attention reads them: head by head, keys transposed; of both, the first `length` tokens count.
  struct Block {
    Tensor k;  // [B, K, blocks of kKeys, d, kKeys]
    Tensor v;  // [B, K, tokens of these blocks, d]
  };

  explicit KvCache(int64_t tokens) : capacity(tokens) {}
  int64_t capacity;           // tokens of a window it may hold; memory is taken as they come
  int64_t length = 0;         // tokens it holds; the model moves it on when all blocks have run
  std::vector<Block> blocks;  // made when a block first runs
};
// causal_attention() of tokens that follow those in the cache, which they join: q [B, T, H*d] -> [B, T, H*d].
// For the first tokens it is causal_attention() itself. Error when there is no room.
Tensor cached_attention(KvCache& cache, int layer, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        float scale, const std::vector<float>& slopes = {});

// ---- Differentiable steps of attend() ----------------------------------------------------------------

// Part `part` of a fused projection, cut into heads: x [B, N, parts*D] -> [B, H, N, D/H].
Tensor split_heads(Tape* tape, const Tensor& x, int64_t heads, int64_t part, int64_t parts);
Tensor merge_heads(Tape* tape, const Tensor& x);  // [B, H, N, d] -> [B, N, H*d]
// scores [B*W, H, N, N] += bias [H, N, N] + mask [W, N, N] of window number s mod W of sample s; no mask when
// it is empty. Both are constants. (Swin's relative position bias and its mask of shifted windows)
Tensor add_window_bias(Tape* tape, const Tensor& scores, const Tensor& bias, const Tensor& mask);

// Part `part` of a projection fused head by head, the parts of a head side by side: x [B, T, H*parts*d] -> [B, T, H*d].
Tensor select_part(const Tensor& x, int64_t heads, int64_t part, int64_t parts);

}  // namespace bcq
