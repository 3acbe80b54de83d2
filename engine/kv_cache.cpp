#include "engine/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "engine/check.h"
#include "engine/kernels.h"
#include "engine/ops.h"
#include "engine/parallel.h"

namespace bcq {
namespace {

// The stride of a row of keys: an odd number of cache lines, so that the rows of a head do not compete for the same
// ones.
int64_t key_stride(int64_t capacity) { return (capacity + 31) / 32 * 32 + 16; }

}  // namespace

Tensor cached_attention(KvCache& cache, int layer, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        float scale, const std::vector<float>& slopes) {
  const int64_t B = q.dim(0), T = q.dim(1), D = q.dim(2), d = D / heads, first = cache.length;
  const int64_t stride = key_stride(cache.capacity);
  require(first + T <= cache.capacity, "%lld tokens after %lld do not fit into a cache of %lld",
          static_cast<long long>(T), static_cast<long long>(first), static_cast<long long>(cache.capacity));
  cache.layers.resize(std::max(cache.layers.size(), static_cast<size_t>(layer) + 1));
  KvCache::Layer& held = cache.layers[static_cast<size_t>(layer)];
  if (held.k.empty())
    held = {Tensor::uninitialized({B, heads, d, stride}), Tensor::uninitialized({B, cache.capacity, D})};
  require(held.k.dim(0) == B && held.k.dim(1) == heads && held.v.dim(2) == D, "the cache belongs to another model");

  for (int64_t b = 0; b < B; ++b) {
    std::memcpy(held.v.data + (b * cache.capacity + first) * D, v.data + b * T * D, static_cast<size_t>(T * D) * 4);
    for (int64_t t = 0; t < T; ++t)
      for (int64_t i = 0; i < D; ++i) held.k[(b * D + i) * stride + first + t] = k[(b * T + t) * D + i];
  }
  if (first == 0) return causal_attention(q, k, v, heads, scale, slopes);

  Tensor y = Tensor::uninitialized(q.shape);
  parallel_for(B * heads, [&](int64_t item) {
    const int64_t b = item / heads, h = item % heads;
    std::vector<float> scaled(static_cast<size_t>(d)), scores(static_cast<size_t>(first + T));
    for (int64_t t = 0; t < T; ++t) {
      const int64_t at = (b * T + t) * D + h * d, keys = first + t + 1;
      kernels().scale(q.data + at, scale, scaled.data(), d);
      kernels().weighted_rows(scaled.data(), held.k.data + item * d * stride, stride, d, keys, scores.data());
      for (int64_t j = 0; !slopes.empty() && j < keys; ++j)
        scores[static_cast<size_t>(j)] += slopes[static_cast<size_t>(h)] * static_cast<float>(j - (keys - 1));
      kernels().softmax(scores.data(), keys);
      kernels().weighted_rows(scores.data(), held.v.data + b * cache.capacity * D + h * d, D, keys, d, y.data + at);
    }
  });
  return y;
}

}  // namespace bcq
