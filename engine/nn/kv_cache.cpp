#include "engine/nn/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/ops.h"

namespace bcq {

Tensor cached_attention(KvCache& cache, int layer, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        float scale, const std::vector<float>& slopes) {
  const int64_t B = q.dim(0), T = q.dim(1), D = q.dim(2), d = D / heads, first = cache.length;
  constexpr int64_t kKeys = KvCache::kKeys;
  const int64_t room = (cache.capacity + kKeys - 1) / kKeys * kKeys;
  require(first + T <= cache.capacity, "%d tokens after %d do not fit into a cache of %d", T, first, cache.capacity);
  cache.layers.resize(std::max(cache.layers.size(), static_cast<size_t>(layer) + 1));
  KvCache::Layer& held = cache.layers[static_cast<size_t>(layer)];
  if (held.k.empty())
    held = {Tensor::uninitialized({B, heads, room / kKeys, d, kKeys}), Tensor::uninitialized({B, heads, room, d})};
  require(held.k.dim(0) == B && held.k.dim(1) == heads && held.v.dim(3) == d, "the cache belongs to another model");

  Tensor y = Tensor::uninitialized(q.shape);
  parallel_for(B * heads, [&](int64_t item) {
    const int64_t from = item / heads * T * D + item % heads * d;
    float *const keys = held.k.data + item * room * d, *const values = held.v.data + item * room * d;
    for (int64_t t = first; t < first + T; ++t) {
      const int64_t row = from + (t - first) * D;
      std::memcpy(values + t * d, v.data + row, static_cast<size_t>(d) * 4);
      for (int64_t i = 0; i < d; ++i) keys[t / kKeys * kKeys * d + i * kKeys + t % kKeys] = k[row + i];
    }
    if (first == 0) return;
    const float slope = slopes.empty() ? 0 : slopes[static_cast<size_t>(item % heads)];
    std::vector<float> scaled(static_cast<size_t>(d)), scores(static_cast<size_t>(room));
    for (int64_t t = first; t < first + T; ++t) {
      const int64_t row = from + (t - first) * D, n = t + 1;
      kernels().scale(q.data + row, scale, scaled.data(), d);
      for (int64_t j = 0; j < n; j += kKeys)  // in whole vectors: what stands behind the keys is not looked at
        kernels().weighted_rows(scaled.data(), keys + j * d, kKeys, d, std::min(kKeys, (n - j + 15) / 16 * 16),
                                scores.data() + j);
      for (int64_t j = 0; !slopes.empty() && j < n; ++j)
        scores[static_cast<size_t>(j)] += slope * static_cast<float>(j - (n - 1));
      kernels().softmax(scores.data(), n);
      kernels().weighted_rows(scores.data(), values, d, n, d, y.data + row);
    }
  });
  return first == 0 ? causal_attention(q, k, v, heads, scale, slopes) : y;
}

}  // namespace bcq
