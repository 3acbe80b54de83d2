#include "engine/nn/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/core/check.h"
#include "engine/gemm/gemm_float.h"
#include "engine/nn/int8_layer.h"
#include "engine/nn/ops.h"

namespace bcq {
namespace {

// q, k and v where they lie: the d channels of head h of token t of sample b are at (b T + t) stride + h d of q, those
// of keys and values, of which `group` heads of queries share one, at (b T + t) kv_stride + h / group d. Head i of all
// is head i mod H of sample i / H, and has the keys and values i / group.
struct Heads {
  const float *q, *k, *v;
  int64_t samples, tokens, heads, channels, stride;
  int64_t group = 1, kv_stride = stride;

  int64_t count() const { return samples * heads; }
  int64_t kv_count() const { return count() / group; }
  int64_t at(int64_t i) const { return i / heads * tokens * stride + i % heads * channels; }
  int64_t kv_at(int64_t i) const {
    const int64_t kv_heads = heads / group;
    return i / kv_heads * tokens * kv_stride + i % kv_heads * channels;
  }
  // Of a result [B, T, H*d]: token t of head i.
  int64_t out(int64_t i, int64_t t) const { return ((i / heads * tokens + t) * heads + i % heads) * channels; }
  Tensor result() const { return Tensor::uninitialized({samples, tokens, heads * channels}); }
};

Heads heads_of(const Tensor& qkv, int64_t H) {
  const int64_t D = qkv.dim(2) / 3;
  return {qkv.data, qkv.data + D, qkv.data + 2 * D, qkv.dim(0), qkv.dim(1), H, D / H, 3 * D};
}
Heads heads_of(const Tensor& q, const Tensor& k, const Tensor& v, int64_t H) {
  const int64_t D = q.dim(2), kv = k.dim(2), d = D / H, group = kv > 0 ? D / kv : 0;
  require(q.dim(0) == k.dim(0) && q.dim(1) == k.dim(1) && k.shape == v.shape && H * d == D && group * kv == D &&
              kv % d == 0,
          "attention: q, k, v of shapes %s, %s and %s in %d heads do not fit", to_string(q.shape), to_string(k.shape),
          to_string(v.shape), H);
  return {q.data, k.data, v.data, q.dim(0), q.dim(1), H, d, D, group, kv};
}

struct Form : AttentionForm {
  float scale;
  bool causal = false;
  std::vector<float> slopes = {};  // of ALiBi

  const float* bias_row(int64_t i, int64_t r, int64_t n) const {
    return bias.empty() ? nullptr : bias.data + (i % heads * n + r) * n;
  }
  const float* mask_row(int64_t i, int64_t r, int64_t n) const {
    return mask.empty() ? nullptr : mask.data + (i / heads % mask.dim(0) * n + r) * n;
  }
};

// ALiBi's bias of the last of n queries of head h; that of the query m before it begins m values later.
std::vector<float> alibi(const std::vector<float>& slopes, int64_t h, int64_t n) {
  std::vector<float> bias(slopes.empty() ? 0 : static_cast<size_t>(n));
  for (size_t j = 0; j < bias.size(); ++j)
    bias[j] = slopes[at(h)] * (static_cast<float>(j) - static_cast<float>(n - 1));
  return bias;
}

// The n scores of a query become weights, in place. A row is as long as whole registers: what lies beyond the scores
// counts as -inf, whose exp adds 0 to a sum, and becomes 0.
int64_t padded_row(int64_t n) { return (n + 15) / 16 * 16; }
void softmax_row(float* scores, int64_t n, const float* bias, const float* mask) {
  if (bias) kernels().add(scores, bias, scores, n);
  if (mask) kernels().add(scores, mask, scores, n);
  std::fill(scores + n, scores + padded_row(n), -std::numeric_limits<float>::infinity());
  kernels().softmax(scores, padded_row(n));
}

Tensor fused_float_attention(const Heads& x, const Form& form) {
  const int64_t T = x.tokens, d = x.channels, queries = (form.causal ? 4 : 5) * kFloatRows;  // scores stay in cache
  struct Packed {
    FloatPanels keys, values;
  };
  const auto pack = [&](int64_t i) {
    return Packed{FloatPanels(row_major(x.k + x.kv_at(i), x.kv_stride).transposed(), d, T),
                  FloatPanels(row_major(x.v + x.kv_at(i), x.kv_stride), T, d)};
  };
  std::vector<std::vector<float>> biases;  // of ALiBi
  for (int64_t h = 0; h < x.heads && !form.slopes.empty(); ++h) biases.push_back(alibi(form.slopes, h, T));
  Tensor y = x.result();
  const auto attend_to = [&](const Packed& kv, int64_t i, int64_t begin, int64_t end) {  // of queries [begin, end)
    const int64_t n = end - begin, keys = form.causal ? end : T, padded = padded_row(keys);
    const Buffer<float> scaled(n * d), scores(n * padded);
    Matrix q = row_major(x.q + x.at(i) + begin * x.stride, x.stride);
    if (form.scales_queries) {
      for (int64_t r = 0; r < n; ++r) kernels().scale(q.at(r, 0).data, form.scale, scaled.data() + r * d, d);
      q = row_major(scaled.data(), d);
    }
    gemm_float(
        {.a = q, .rows = n, .b = kv.keys.view(), .depth = d, .columns = keys, .c = scores.data(), .c_stride = padded});
    for (int64_t r = begin; r < end; ++r) {
      float* row = scores.data() + (r - begin) * padded;
      const int64_t seen = form.causal ? r + 1 : T;
      if (!form.scales_queries) kernels().scale(row, form.scale, row, seen);
      softmax_row(row, seen, biases.empty() ? form.bias_row(i, r, T) : biases[at(i % x.heads)].data() + (T - 1 - r),
                  form.mask_row(i, r, T));
      if (padded_row(seen) < keys) std::fill(row + padded_row(seen), row + keys, 0.f);  // the future
    }
    gemm_float({row_major(scores.data(), padded), n, kv.values.view(), keys, d, y.data + x.out(i, begin), x.heads * d});
  };
  if (!form.causal) {
    parallel_for(x.count(), [&](int64_t i) {
      const Packed kv = pack(i);
      for_parts(T, queries, [&](int64_t begin, int64_t end) { attend_to(kv, i, begin, end); });
    });
    return y;
  }
  std::vector<Packed> packed(static_cast<size_t>(x.kv_count()));
  parallel_for(x.kv_count(), [&](int64_t i) { packed[at(i)] = pack(i); });
  const int64_t blocks = (T + queries - 1) / queries;
  parallel_for(x.count() * blocks, [&](int64_t item) {  // the last blocks have the most keys: they come first
    const int64_t i = item % x.count(), begin = (blocks - 1 - item / x.count()) * queries;
    attend_to(packed[at(i / x.group)], i, begin, std::min(T, begin + queries));
  });
  return y;
}

Tensor fused_integer_attention(const Layer& qk, const Layer& av, const Heads& x, const Form& form) {
  const int64_t B = x.samples, N = x.tokens, H = x.heads, d = x.channels, padded = padded_row(N);
  const Grid &queries = qk.quantized->left, &weights = av.quantized->left;
  const bool renormalized = av.quantized->renormalized;
  const Broadcast qk_added(qk.added, {B, H, N, N}), av_added(av.added, {B, H, N, d});
  Tensor y = x.result();
  parallel_for(B * H, [&](int64_t i) {
    const int64_t h = i % H, unit = h * weights->units() / H;
    const PackedHead keys(qk, h, H, x.k + x.at(i), N, d, x.stride), values(av, h, H, x.v + x.at(i), N, d, x.stride);
    const Int8Rows coded(N, d, queries->planes()), a(N, padded, weights->planes());
    const Buffer<float> row(std::max(padded, d));
    for (int64_t r = 0; r < N; ++r) {
      const float* q = x.q + x.at(i) + r * x.stride;
      if (form.scales_queries) {
        kernels().scale(q, form.scale, row.data(), d);
        q = row.data();
      }
      queries->code(q, d, h * queries->units() / H, coded.row(r), coded.stride);
    }
    gemm_int8_block(coded, keys.right, keys.dequantizer.start(), 0, N, 0, keys.right.panels(),
                    [&](int64_t r, const int32_t* sum1, const int32_t* sum2) {
                      float* scores = row.data();
                      keys.dequantizer(0, N, sum1, sum2, nullptr, scores);
                      if (!qk.added.empty()) kernels().add(scores, qk_added.row(i * N + r), scores, N);
                      if (!form.scales_queries) kernels().scale(scores, form.scale, scores, N);
                      softmax_row(scores, N, form.bias_row(i, r, N), form.mask_row(i, r, N));
                      if (renormalized) scale_to_largest(scores, N);
                      weights->code(scores, padded, unit, a.row(r), a.stride);
                    });
    gemm_int8_block(a, values.right, values.dequantizer.start(), 0, N, 0, values.right.panels(),
                    [&](int64_t r, const int32_t* sum1, const int32_t* sum2) {
                      float* out = y.data + x.out(i, r);
                      values.dequantizer(0, d, sum1, sum2, nullptr, out);
                      if (renormalized)
                        kernels().scale(out, inverse_row_sum(weights, unit, a.row(r), a.stride, N), out, d);
                      if (!av.added.empty()) kernels().add(out, av_added.row(i * N + r), out, d);
                    });
  });
  return y;
}

}  // namespace

Tensor attend(const Context& ctx, const Layer& qk, const Layer& av, const Tensor& qkv, const AttentionForm& form) {
  const int64_t H = form.heads;
  const float scale_by = 1.f / std::sqrt(static_cast<float>(qkv.dim(2) / 3 / H));
  if (ctx.observer == nullptr && ctx.tape == nullptr) {
    if (ctx.precision == Precision::Float) return fused_float_attention(heads_of(qkv, H), {form, scale_by});
    if (ctx.precision == Precision::Integer && qk.int8() && av.int8())
      return fused_integer_attention(qk, av, heads_of(qkv, H), {form, scale_by});
  }
  Tape* t = ctx.tape;
  const Tensor q = split_heads(t, qkv, H, 0, 3), k = split_heads(t, qkv, H, 1, 3), v = split_heads(t, qkv, H, 2, 3);
  Tensor scores = qk.run(ctx, form.scales_queries ? scale(t, q, scale_by) : q, k);  // [B, H, N, N]
  if (!form.scales_queries) scores = scale(t, scores, scale_by);
  if (!form.bias.empty()) scores = add_window_bias(t, scores, form.bias, form.mask);
  return merge_heads(t, av.run(ctx, softmax(t, scores), v));
}

Tensor causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads, float scale,
                        const std::vector<float>& slopes) {
  require(slopes.empty() || static_cast<int64_t>(slopes.size()) == heads, "causal_attention: %d slopes for %d heads",
          slopes.size(), heads);
  return fused_float_attention(heads_of(q, k, v, heads), {{heads, true, {}, {}}, scale, true, slopes});
}

namespace {

// A block of a cache with room for `room` tokens that begins with what `held` holds.
KvCache::Block with_room(const KvCache::Block& held, const Heads& x, int64_t room) {
  const int64_t d = x.channels, heads = x.heads / x.group;
  KvCache::Block out{Tensor::uninitialized({x.samples, heads, room / KvCache::kKeys, d, KvCache::kKeys}),
                     Tensor::uninitialized({x.samples, heads, room, d})};
  const int64_t n = held.v.empty() ? 0 : held.v.dim(2) * d;
  for (int64_t i = 0; n > 0 && i < x.kv_count(); ++i) {
    std::memcpy(out.k.data + i * room * d, held.k.data + i * n, static_cast<size_t>(n) * 4);
    std::memcpy(out.v.data + i * room * d, held.v.data + i * n, static_cast<size_t>(n) * 4);
  }
  return out;
}

}  // namespace

Tensor cached_attention(KvCache& cache, int layer, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        float scale, const std::vector<float>& slopes) {
  const Heads x = heads_of(q, k, v, heads);
  const int64_t d = x.channels, first = cache.length, length = first + x.tokens;
  constexpr int64_t kKeys = KvCache::kKeys;
  require(length <= cache.capacity, "%d tokens after %d do not fit into a cache of %d", x.tokens, first,
          cache.capacity);
  cache.blocks.resize(std::max(cache.blocks.size(), static_cast<size_t>(layer) + 1));
  KvCache::Block& held = cache.blocks[at(layer)];
  require(held.k.empty() || (held.k.dim(0) == x.samples && held.k.dim(1) == heads / x.group && held.v.dim(3) == d),
          "the cache belongs to another model");
  if (held.k.empty() || held.v.dim(2) < length) {
    const int64_t tokens = std::min(cache.capacity, length + length / 2 + 4 * kKeys);
    held = with_room(held, x, (tokens + kKeys - 1) / kKeys * kKeys);
  }
  const int64_t room = held.v.dim(2);

  parallel_for(x.kv_count(), x.kv_count() * x.tokens * d, [&](int64_t i) {
    float *const keys = held.k.data + i * room * d, *const values = held.v.data + i * room * d;
    for (int64_t t = first; t < length; ++t) {
      const int64_t row = x.kv_at(i) + (t - first) * x.kv_stride;
      std::memcpy(values + t * d, x.v + row, static_cast<size_t>(d) * 4);
      for (int64_t c = 0; c < d; ++c) keys[t / kKeys * kKeys * d + c * kKeys + t % kKeys] = x.k[row + c];
    }
  });
  if (first == 0) return causal_attention(q, k, v, heads, scale, slopes);
  Tensor y = x.result();
  parallel_for(x.count(), 2 * x.count() * x.tokens * length * d, [&](int64_t i) {
    const float *const keys = held.k.data + i / x.group * room * d, *const values =
                                                                        held.v.data + i / x.group * room * d;
    const std::vector<float> bias = alibi(slopes, i % heads, length);
    std::vector<float> scaled(static_cast<size_t>(d)), scores(static_cast<size_t>(room));
    for (int64_t t = first, n = t + 1; t < length; ++t, ++n) {
      kernels().scale(x.q + x.at(i) + (t - first) * x.stride, scale, scaled.data(), d);
      for (int64_t j = 0; j < n; j += kKeys)  // in whole registers: what stands behind the keys is not looked at
        kernels().weighted_rows(scaled.data(), keys + j * d, kKeys, d, std::min(kKeys, padded_row(n - j)),
                                scores.data() + j);
      softmax_row(scores.data(), n, bias.empty() ? nullptr : bias.data() + (length - n), nullptr);
      kernels().weighted_rows(scores.data(), values, d, n, d, y.data + x.out(i, t - first));
    }
  });
  return y;
}

Tensor split_heads(Tape* tape, const Tensor& x, int64_t heads, int64_t part, int64_t parts) {
  const int64_t B = x.dim(0), N = x.dim(1), d = x.dim(2) / parts / heads;
  std::vector<int64_t> index;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t n = 0; n < N; ++n) index.push_back((n * parts + part) * heads + h);
  return gather_rows(tape, x.reshaped({B, N * parts * heads, d}), index, {B, heads, N, d});
}

Tensor merge_heads(Tape* tape, const Tensor& x) {
  const int64_t B = x.dim(0), H = x.dim(1), N = x.dim(2), d = x.dim(3);
  std::vector<int64_t> index;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t h = 0; h < H; ++h) index.push_back(h * N + n);
  return gather_rows(tape, x.reshaped({B, H * N, d}), index, {B, N, H * d});
}

Tensor add_window_bias(Tape* tape, const Tensor& scores, const Tensor& bias, const Tensor& mask) {
  const int64_t H = scores.dim(1), NN = scores.dim(2) * scores.dim(3), W = mask.empty() ? 1 : mask.dim(0);
  require(bias.size() == H * NN && scores.dim(0) % W == 0, "add_window_bias: shapes %s and %s do not fit",
          to_string(scores.shape), to_string(bias.shape));
  Tensor y = Tensor::uninitialized(scores.shape);
  parallel_for(scores.dim(0) * H, [&](int64_t i) {
    float* out = y.data + i * NN;
    kernels().add(scores.data + i * NN, bias.data + i % H * NN, out, NN);
    if (!mask.empty()) kernels().add(out, mask.data + i / H % W * NN, out, NN);
  });
  if (tape && scores.slot >= 0) tape->record(y, [=](const Tensor& dy) { tape->add_to_grad(scores, dy); });
  return y;
}

Tensor select_part(const Tensor& x, int64_t heads, int64_t part, int64_t parts) {
  const int64_t B = x.dim(0), T = x.dim(1), d = x.dim(2) / heads / parts;
  std::vector<int64_t> index;
  for (int64_t i = 0; i < T * heads; ++i) index.push_back(i * parts + part);
  return gather_rows(nullptr, x.reshaped({B, T * heads * parts, d}), index, {B, T, heads * d});
}

}  // namespace bcq
