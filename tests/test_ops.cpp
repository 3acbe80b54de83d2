// Every op against a naive one in double, at odd sizes; the same bits for a sample
// alone and in a batch, and on one and on two threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "engine/nn/rotary.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

std::vector<double> naive_linear(const Tensor& x, const Tensor& w, const Tensor& bias) {
  const int64_t K = w.dim(1), O = w.dim(0), rows = x.size() / K;
  std::vector<double> y(static_cast<size_t>(rows * O));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < O; ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (int64_t k = 0; k < K; ++k) sum += static_cast<double>(x[r * K + k]) * w[o * K + k];
      y[static_cast<size_t>(r * O + o)] = sum;
    }
  return y;
}

std::vector<double> naive_matmul(const Tensor& a, const Tensor& b, bool transpose) {
  const int64_t heads = a.dim(0) * a.dim(1), N = a.dim(2), K = a.dim(3), M = transpose ? b.dim(2) : b.dim(3);
  std::vector<double> y;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t m = 0; m < M; ++m) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k)
          sum += static_cast<double>(a[(h * N + n) * K + k]) * b[h * M * K + (transpose ? m * K + k : k * M + m)];
        y.push_back(sum);
      }
  return y;
}

std::vector<double> naive_causal(const Tensor& q, const Tensor& k, const Tensor& v, int64_t H, double scale,
                                 const std::vector<float>& slopes = {}) {
  const int64_t B = q.dim(0), T = q.dim(1), D = q.dim(2), d = D / H;
  std::vector<double> y(static_cast<size_t>(B * T * D));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t t = 0; t < T; ++t) {
        std::vector<double> p(static_cast<size_t>(t + 1));
        double top = -INFINITY, total = 0;
        for (int64_t s = 0; s <= t; ++s) {
          double dot = 0;
          for (int64_t e = 0; e < d; ++e)
            dot += static_cast<double>(q[(b * T + t) * D + h * d + e]) * k[(b * T + s) * D + h * d + e];
          const double score = dot * scale + (slopes.empty() ? 0 : slopes[static_cast<size_t>(h)] * s);  // by position
          p[static_cast<size_t>(s)] = score;
          top = std::max(top, score);
        }
        for (double& x : p) total += x = std::exp(x - top);
        for (int64_t s = 0; s <= t; ++s)
          for (int64_t e = 0; e < d; ++e)
            y[static_cast<size_t>((b * T + t) * D + h * d + e)] +=
                p[static_cast<size_t>(s)] / total * v[(b * T + s) * D + h * d + e];
      }
  return y;
}

std::vector<double> map(const Tensor& x, double (*f)(double)) {
  std::vector<double> y;
  for (int64_t i = 0; i < x.size(); ++i) y.push_back(f(x[i]));
  return y;
}

struct Product {
  int64_t rows, depth, columns;
};
// The last two are large enough to be cut into column blocks, the very last into an uneven one.
constexpr Product kProducts[] = {{1, 1, 1}, {3, 5, 7}, {17, 33, 65}, {50, 128, 768}, {37, 151, 769}};

}  // namespace

TEST_CASE("linear is x W^T + bias for inputs of any rank") {
  for (const Product& p : kProducts) {
    const Tensor w = random({p.columns, p.depth}, 2), bias = random({p.columns}, 3);
    for (const Shape& shape :
         {Shape{p.rows, p.depth}, Shape{2, p.rows, p.depth}, Shape{1, 2, p.rows, p.depth}, Shape{1, p.depth}}) {
      const Tensor x = random(shape, 1);
      Shape out = shape;
      out.back() = p.columns;
      const Tensor y = linear(nullptr, x, w, bias);
      CHECK(y.shape == out);
      CHECK(y.slot == -1);
      CHECK(relative_error(y, naive_linear(x, w, bias)) < kTight);
      CHECK(relative_error(linear(nullptr, x, w, Tensor{}), naive_linear(x, w, Tensor{})) < kTight);
    }
  }
}

TEST_CASE("linear refuses operands that do not fit") {
  CHECK_THROWS_AS(linear(nullptr, random({2, 3}, 1), random({5, 4}, 2), Tensor{}), Error);
}

TEST_CASE("linear gives a sample the same bits alone and in a batch, and on any number of threads") {
  for (const Product& p : kProducts) {
    const Tensor x = random({7, p.rows, p.depth}, 4), w = random({p.columns, p.depth}, 5), b = random({p.columns}, 6);
    const Tensor y = linear(nullptr, x, w, b);
    for (int64_t i = 0; i < 7; ++i) CHECK(same_bits(sample(y, i), linear(nullptr, sample(x, i), w, b)));
    const Tensor rows = x.reshaped({7 * p.rows, p.depth}), z = linear(nullptr, rows, w, b);
    for (int64_t i = 0; i < 7; ++i) CHECK(same_bits(sample(z, i), linear(nullptr, sample(rows, i), w, b)));
    CHECK(same_on_two_threads([&] { return linear(nullptr, x, w, b); }));
    CHECK(same_on_two_threads([&] { return linear(nullptr, sample(x, 2), w, b); }));
  }
}

TEST_CASE("matmul multiplies per sample and head, with and without a transpose") {
  for (const auto& [N, K, M] : {Product{1, 1, 1}, Product{5, 3, 9}, Product{31, 64, 17}, Product{197, 64, 197}}) {
    const Tensor a = random({2, 3, N, K}, 7), bt = random({2, 3, M, K}, 8), b = random({2, 3, K, M}, 9);
    CHECK(matmul(nullptr, a, bt, true).shape == Shape{2, 3, N, M});
    CHECK(relative_error(matmul(nullptr, a, bt, true), naive_matmul(a, bt, true)) < kTight);
    CHECK(relative_error(matmul(nullptr, a, b, false), naive_matmul(a, b, false)) < kTight);
    CHECK_THROWS_AS(matmul(nullptr, a, random({2, 3, M, K + 1}, 1), true), Error);
    CHECK_THROWS_AS(matmul(nullptr, a, random({2, 3, K + 1, M}, 1), false), Error);
    CHECK_THROWS_AS(matmul(nullptr, a, random({2, 2, M, K}, 1), true), Error);
  }
}

TEST_CASE("matmul gives a sample the same bits alone and in a batch, and on any number of threads") {
  const Tensor a = random({7, 3, 29, 13}, 10), bt = random({7, 3, 41, 13}, 11), b = random({7, 3, 13, 41}, 12);
  const Tensor y = matmul(nullptr, a, bt, true), z = matmul(nullptr, a, b, false);
  for (int64_t i = 0; i < 7; ++i) {
    CHECK(same_bits(sample(y, i), matmul(nullptr, sample(a, i), sample(bt, i), true)));
    CHECK(same_bits(sample(z, i), matmul(nullptr, sample(a, i), sample(b, i), false)));
  }
  CHECK(same_on_two_threads([&] { return matmul(nullptr, a, bt, true); }));
  CHECK(same_on_two_threads([&] { return matmul(nullptr, a, b, false); }));
}

TEST_CASE("add and scale are those of float") {
  const Tensor a = random({3, 11, 1031}, 13, 5), b = random({3, 11, 1031}, 14, 5);
  const Tensor sum = add(nullptr, a, b), scaled = scale(nullptr, a, -0.3f);
  bool equal = sum.shape == a.shape && scaled.shape == a.shape;
  for (int64_t i = 0; i < a.size(); ++i) equal &= sum[i] == a[i] + b[i] && scaled[i] == a[i] * -0.3f;
  CHECK(equal);
  CHECK_THROWS_AS(add(nullptr, a, random({3, 1031, 11}, 1)), Error);
}

TEST_CASE("softmax is a distribution over the last dimension") {
  for (const int64_t n : {1, 2, 15, 16, 17, 197}) {
    const Tensor x = random({2, 3, n}, 15, 20), before = x.clone(), y = softmax(nullptr, x);
    std::vector<double> want;
    for (int64_t r = 0; r < 6; ++r) {
      double top = -INFINITY, total = 0;
      for (int64_t i = 0; i < n; ++i) top = std::max(top, static_cast<double>(x[r * n + i]));
      for (int64_t i = 0; i < n; ++i) total += std::exp(x[r * n + i] - top);
      for (int64_t i = 0; i < n; ++i) want.push_back(std::exp(x[r * n + i] - top) / total);
    }
    CHECK(relative_error(y, want) < 1e-6);
    CHECK(same_bits(x, before));  // the input is left alone
  }
  const Tensor large = softmax(nullptr, Tensor({1, 3}, {1e30f, 1e30f, -1e30f}));
  CHECK(large[0] == 0.5f);
  CHECK(large[2] == 0.f);
}

TEST_CASE("activations follow their formulas") {
  Tensor x = random({7, 4801}, 16, 6);  // more than one chunk of work
  x[0] = 0;
  x[1] = -0.f;
  x[2] = 40;
  x[3] = -40;
  CHECK(relative_error(gelu_erf(nullptr, x), map(x, [](double v) { return 0.5 * v * std::erfc(-v * M_SQRT1_2); })) <
        1e-6);
  CHECK(relative_error(gelu_tanh(x), map(x, [](double v) {
                         return 0.5 * v * (1 + std::tanh(0.79788456 * v * (1 + 0.044715 * v * v)));
                       })) < 1e-6);
  CHECK(relative_error(relu(x), map(x, [](double v) { return v > 0 ? v : 0; })) == 0);
}

TEST_CASE("layer_norm uses the biased variance and its epsilon") {
  for (const int64_t n : {2, 3, 17, 64, 769}) {
    for (const double offset : {0.0, 50.0}) {
      Tensor x = random({2, 5, n}, 17);
      for (int64_t i = 0; i < x.size(); ++i) x[i] += static_cast<float>(offset);
      const Tensor gamma = random({n}, 18, 2), beta = random({n}, 19);
      for (const float eps : {1e-6f, 1e-5f, 0.5f}) {
        std::vector<double> want;
        for (int64_t r = 0; r < 10; ++r) {
          double mean = 0, var = 0;
          for (int64_t i = 0; i < n; ++i) mean += x[r * n + i] / static_cast<double>(n);
          for (int64_t i = 0; i < n; ++i) var += std::pow(x[r * n + i] - mean, 2) / static_cast<double>(n);
          for (int64_t i = 0; i < n; ++i)
            want.push_back(gamma[i] * (x[r * n + i] - mean) / std::sqrt(var + eps) + beta[i]);
        }
        // float(mean) is off by up to 2e-6 at 50, and the deviations are of size 1 or less
        CHECK(relative_error(layer_norm(nullptr, x, gamma, beta, eps), want) < (offset == 0 ? 1e-6 : 1e-4));
      }
    }
  }
  CHECK_THROWS_AS(layer_norm(nullptr, random({2, 4}, 1), random({3}, 1), random({3}, 1), 1e-6f), Error);
}

TEST_CASE("split_heads takes one part of a fused projection apart, merge_heads puts heads together") {
  const int64_t B = 2, N = 5, H = 3, d = 4, D = H * d;
  const Tensor x = random({B, N, 3 * D}, 20);
  for (int64_t part = 0; part < 3; ++part) {
    const Tensor y = split_heads(nullptr, x, H, part, 3);
    REQUIRE(y.shape == Shape{B, H, N, d});
    bool equal = true;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t n = 0; n < N; ++n)
          for (int64_t e = 0; e < d; ++e)
            equal &= y[((b * H + h) * N + n) * d + e] == x[(b * N + n) * 3 * D + part * D + h * d + e];
    CHECK(equal);
    const Tensor z = merge_heads(nullptr, y);
    REQUIRE(z.shape == Shape{B, N, D});
    for (int64_t r = 0; r < B * N; ++r)
      for (int64_t c = 0; c < D; ++c) equal &= z[r * D + c] == x[r * 3 * D + part * D + c];
    CHECK(equal);
  }
}

TEST_CASE("rotate turns pairs of channels by their frequency times the position") {
  const std::vector<float> frequencies{1.f, 0.37f, 0.001f};
  const int64_t T = 5, H = 2, d = 6, first = 1000;
  const Tensor x = random({2, T, H * d}, 31), angles = rotary_angles(frequencies, first, T), y = rotate(x, angles);
  double worst = 0;
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t c = i % d % 3, t = i / (H * d) % T, low = i - i % d + c;
    const double angle = static_cast<float>(first + t) * frequencies[static_cast<size_t>(c)];
    const bool is_low = i % d < 3;
    const double want = is_low ? x[low] * std::cos(angle) - x[low + 3] * std::sin(angle)
                               : x[low + 3] * std::cos(angle) + x[low] * std::sin(angle);
    worst = std::max(worst, std::abs(y[i] - want));
  }
  CHECK(worst < 1e-6);
  CHECK(same_bits(rotary_angles(frequencies, first + 2, 1), angles.slice(2, 3)));
  CHECK_THROWS_AS(rotate(random({1, T, 8}, 1), angles), Error);
  CHECK_THROWS_AS(rotate(random({1, T + 1, d}, 1), angles), Error);
}

TEST_CASE("rotary frequencies: as trained, all slower, or those of long waves slower") {
  const int64_t d = 16;
  Rotary r{500000, Rotary::Scaling::None, 8, 1, 4, 8192};
  const std::vector<float> plain = rotary_frequencies(r, d);
  REQUIRE(plain.size() == 8);
  r.scaling = Rotary::Scaling::Linear;
  const std::vector<float> linear = rotary_frequencies(r, d);
  r.scaling = Rotary::Scaling::Llama3;
  const std::vector<float> llama3 = rotary_frequencies(r, d);
  std::string kinds;
  for (size_t c = 0; c < 8; ++c) {
    const double f = std::pow(500000.0, -static_cast<double>(c) / 8), turns = 8192 * f / (2 * M_PI);
    CHECK(plain[c] == doctest::Approx(f).epsilon(1e-6));
    CHECK(linear[c] == plain[c] / 8);
    const double share = (turns - 1) / 3;
    kinds += turns < 1 ? 's' : turns > 4 ? 'f' : 'm';
    CHECK(llama3[c] == doctest::Approx(turns < 1   ? f / 8
                                       : turns > 4 ? f
                                                   : (1 - share) * f / 8 + share * f)
                           .epsilon(1e-6));
  }
  CHECK(kinds == "ffffmsss");
}

TEST_CASE("grouped-query attention is attention with keys and values repeated, with a cache and without") {
  const int64_t B = 2, T = 70, H = 6, K = 2, d = 4;
  const Tensor q = random({B, T, H * d}, 1), k = random({B, T, K * d}, 2), v = random({B, T, K * d}, 3);
  const auto repeated = [&](const Tensor& x) {
    Tensor y({B, T, H * d});
    for (int64_t i = 0; i < y.size(); ++i) y[i] = x[i / (H * d) * K * d + i / d % H / (H / K) * d + i % d];
    return y;
  };
  const Tensor want = causal_attention(q, repeated(k), repeated(v), H, 0.5f);
  CHECK(same_bits(causal_attention(q, k, v, H, 0.5f), want));
  CHECK(same_on_two_threads([&] { return causal_attention(q, k, v, H, 0.5f); }));
  KvCache grouped(T + 3), whole(T + 3);
  const auto step = [&](KvCache& cache, const Tensor& keys, const Tensor& values, const Tensor& queries) {
    const Tensor y = cached_attention(cache, 0, queries, keys, values, H, 0.5f);
    cache.length += queries.dim(1);
    return y;
  };
  CHECK(same_bits(step(grouped, k, v, q), step(whole, repeated(k), repeated(v), q)));
  const auto row = [](const Tensor& x) {  // the first two tokens of each sample
    Tensor y({2, 2, x.dim(2)});
    for (int64_t b = 0; b < 2; ++b) std::copy_n(x.data + b * x.size() / 2, y.size() / 2, y.data + b * y.size() / 2);
    return y;
  };
  CHECK(same_bits(step(grouped, row(k), row(v), row(q)), step(whole, row(repeated(k)), row(repeated(v)), row(q))));
  CHECK_THROWS_AS(causal_attention(q, k, random({B, T, H * d}, 3), H, 0.5f), Error);
  CHECK_THROWS_AS(causal_attention(q, random({B, T, 4 * d}, 2), random({B, T, 4 * d}, 3), H, 0.5f), Error);
}

TEST_CASE("prepend_tokens and select_token address the rows of a sample") {
  const int64_t B = 3, N = 4, D = 5;
  for (const int64_t K : {1, 2}) {
    const Tensor x = random({B, N, D}, 21), tokens = random({K, D}, 22), positions = random({K + N, D}, 23);
    const Tensor y = prepend_tokens(nullptr, x, tokens, positions);
    REQUIRE(y.shape == Shape{B, K + N, D});
    bool equal = true;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t n = 0; n < K + N; ++n)
        for (int64_t c = 0; c < D; ++c)
          equal &= y[(b * (K + N) + n) * D + c] ==
                   (n < K ? tokens[n * D + c] : x[(b * N + n - K) * D + c]) + positions[n * D + c];
    CHECK(equal);
    for (int64_t n = 0; n < K + N; ++n) {
      const Tensor z = select_token(nullptr, y, n);
      REQUIRE(z.shape == Shape{B, D});
      for (int64_t b = 0; b < B; ++b)
        for (int64_t c = 0; c < D; ++c) equal &= z[b * D + c] == y[(b * (K + N) + n) * D + c];
    }
    CHECK(equal);
    CHECK_THROWS_AS(prepend_tokens(nullptr, x, tokens, random({K + N - 1, D}, 1)), Error);
  }
}

TEST_CASE("mean_tokens, gather_rows and add_window_bias compute what they say") {
  const Tensor x = random({2, 4, 3}, 71);
  const Tensor mean = mean_tokens(nullptr, x);
  REQUIRE(mean.shape == Shape{2, 3});
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t c = 0; c < 3; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < 4; ++n) sum += x[(b * 4 + n) * 3 + c];
      CHECK(mean[b * 3 + c] == doctest::Approx(sum / 4).epsilon(1e-6));
    }

  const Tensor y = gather_rows(nullptr, x, {2, 0, 3, 1}, {4, 2, 3});
  REQUIRE(y.shape == Shape{4, 2, 3});
  const int64_t from[] = {2, 0, 3, 1};
  for (int64_t i = 0; i < y.size(); ++i) CHECK(y[i] == x[(i / 12 * 4 + from[i / 3 % 4]) * 3 + i % 3]);
  const Tensor twice = gather_rows(nullptr, x, {3, 3}, {2, 6});
  for (int64_t i = 0; i < twice.size(); ++i) CHECK(twice[i] == x[(i / 6 * 4 + 3) * 3 + i % 3]);
  CHECK_THROWS_AS(gather_rows(nullptr, x, {0, 1, 2}, {2, 4, 3}), Error);
  CHECK_THROWS_AS(gather_rows(nullptr, x, {0, 4}, {2, 2, 3}), Error);
  CHECK_THROWS_AS(gather_rows(nullptr, x, {-1, 0}, {2, 2, 3}), Error);

  // two images of two windows, three heads, windows of two tokens
  const Tensor scores = random({4, 3, 2, 2}, 72), bias = random({3, 2, 2}, 73), mask = random({2, 2, 2}, 74);
  const Tensor z = add_window_bias(nullptr, scores, bias, mask), plain = add_window_bias(nullptr, scores, bias, {});
  for (int64_t i = 0; i < z.size(); ++i) {
    CHECK(plain[i] == scores[i] + bias[i % 12]);
    CHECK(z[i] == plain[i] + mask[i / 12 % 2 * 4 + i % 4]);
  }
}

TEST_CASE("unfold_patches followed by a product is a convolution of stride P") {
  const int64_t B = 2, P = 3, R = 6, S = 9, O = 4, rows = R / P, cols = S / P;
  const Tensor x = random({B, 3, R, S}, 24), w = random({O, 3, P, P}, 25);
  std::vector<double> want;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        for (int64_t o = 0; o < O; ++o) {
          double sum = 0;
          for (int64_t ch = 0; ch < 3; ++ch)
            for (int64_t i = 0; i < P; ++i)
              for (int64_t j = 0; j < P; ++j)
                sum += static_cast<double>(x[((b * 3 + ch) * R + r * P + i) * S + c * P + j]) *
                       w[((o * 3 + ch) * P + i) * P + j];
          want.push_back(sum);
        }
  const Tensor patches = unfold_patches(x, P);
  REQUIRE(patches.shape == Shape{B, rows * cols, 3 * P * P});
  CHECK(relative_error(linear(nullptr, patches, w.reshaped({O, 3 * P * P}), Tensor{}), want) < 1e-6);
}

TEST_CASE("causal_attention matches the definition at lengths around its blocks of 128") {
  for (const int64_t T : {1, 5, 127, 128, 129, 300}) {
    const Tensor q = random({2, T, 15}, 26, 3), k = random({2, T, 15}, 27, 3), v = random({2, T, 15}, 28);
    const Tensor y = causal_attention(q, k, v, 3, 0.4f);
    CHECK(y.shape == q.shape);
    CHECK(relative_error(y, naive_causal(q, k, v, 3, 0.4f)) < kTight);
    const std::vector<float> slopes = {0.5f, 0.25f, 0.00390625f};
    CHECK(relative_error(causal_attention(q, k, v, 3, 0.4f, slopes), naive_causal(q, k, v, 3, 0.4f, slopes)) < kTight);
  }
  CHECK_THROWS_AS(causal_attention(random({1, 2, 4}, 1), random({1, 2, 4}, 1), random({1, 2, 4}, 1), 2, 1, {1.f}),
                  Error);
  CHECK_THROWS_AS(causal_attention(random({1, 2, 4}, 1), random({1, 2, 4}, 1), random({1, 2, 4}, 1), 3, 1), Error);
  CHECK_THROWS_AS(causal_attention(random({1, 2, 4}, 1), random({1, 3, 4}, 1), random({1, 2, 4}, 1), 2, 1), Error);
}

TEST_CASE("causal_attention looks at nothing ahead, and depends on neither batch nor threads") {
  const int64_t T = 261, D = 12, cut = 200;
  const Tensor q = random({7, T, D}, 29), k = random({7, T, D}, 30), v = random({7, T, D}, 31);
  const Tensor y = causal_attention(q, k, v, 2, 0.7f);
  Tensor q2 = q.clone(), k2 = k.clone(), v2 = v.clone();
  for (int64_t b = 0; b < 7; ++b)
    for (int64_t i = cut * D; i < T * D; ++i)
      for (Tensor* t : {&q2, &k2, &v2}) (*t)[b * T * D + i] = 100.f + static_cast<float>(i % 17);
  const Tensor z = causal_attention(q2, k2, v2, 2, 0.7f);
  for (int64_t b = 0; b < 7; ++b) {
    CHECK(std::memcmp(y.data + b * T * D, z.data + b * T * D, sizeof(float) * cut * D) == 0);
    CHECK(same_bits(sample(y, b), causal_attention(sample(q, b), sample(k, b), sample(v, b), 2, 0.7f)));
  }
  CHECK(same_on_two_threads([&] { return causal_attention(q, k, v, 2, 0.7f); }));
}

TEST_CASE("select_part takes a projection fused head by head apart") {
  const int64_t B = 2, T = 5, H = 3, d = 4;
  const Tensor x = random({B, T, H * 3 * d}, 40);
  for (int64_t part = 0; part < 3; ++part) {
    const Tensor y = select_part(x, H, part, 3);
    REQUIRE(y.shape == Shape{B, T, H * d});
    for (int64_t i = 0; i < y.size(); ++i) {
      const int64_t row = i / (H * d), h = i % (H * d) / d, e = i % d;
      CHECK(y[i] == x[row * H * 3 * d + h * 3 * d + part * d + e]);
    }
  }
}

TEST_CASE("row ops give the same bits on one and on two threads") {
  const Tensor x = random({5, 67, 129}, 32, 3), g = random({129}, 33), b = random({129}, 34);
  const Tensor fused = random({5, 67, 3 * 42}, 35), pixels = random({3, 3, 32, 48}, 36);
  CHECK(same_on_two_threads([&] { return softmax(nullptr, x); }));
  CHECK(same_on_two_threads([&] { return layer_norm(nullptr, x, g, b, 1e-6f); }));
  CHECK(same_on_two_threads([&] { return gelu_erf(nullptr, x); }));
  CHECK(same_on_two_threads([&] { return merge_heads(nullptr, split_heads(nullptr, fused, 7, 1, 3)); }));
  CHECK(same_on_two_threads([&] { return unfold_patches(pixels, 16); }));
}

TEST_CASE("add_broadcast shares dimensions of 1 and cuts longer ones") {
  // every combination of a shared, an equal and a longer dimension
  const int64_t B = 2, H = 3, N = 5, C = 4;
  for (const int64_t h : {int64_t{1}, H, H + 2})
    for (const int64_t n : {int64_t{1}, N, N + 3}) {
      const Tensor y = random({B, H, N, C}, 37), c = random({h, n, C}, 38);
      Tensor z = y.clone();
      add_broadcast(z, c);
      bool equal = true;
      for (int64_t i = 0; i < B * H; ++i)
        for (int64_t j = 0; j < N; ++j)
          for (int64_t e = 0; e < C; ++e) {
            const int64_t at = (i * N + j) * C + e;
            equal &= z[at] == y[at] + c[((h == 1 ? 0 : i % H) * n + (n == 1 ? 0 : j)) * C + e];
          }
      CHECK(equal);
    }
  Tensor flat = random({6, 4}, 39);
  const Tensor before = flat.clone();
  add_broadcast(flat, Tensor({4}, {1, 2, 3, 4}));
  CHECK(flat[5 * 4 + 2] == before[5 * 4 + 2] + 3);
}

TEST_CASE("add_broadcast refuses a bias of fewer positions, other channels or another rank") {
  Tensor y = random({2, 5, 4}, 40);
  const Tensor before = y.clone();
  const std::string message = message_of<Error>([&] { add_broadcast(y, random({3, 4}, 1)); });
  CHECK(contains(message, "fewer positions"));
  CHECK(contains(message, "[3, 4]"));
  CHECK(contains(message, "[2, 5, 4]"));
  CHECK_THROWS_AS(add_broadcast(y, random({5, 3}, 1)), Error);
  CHECK_THROWS_AS(add_broadcast(y, random({5, 1}, 1)), Error);  // channels are never shared
  CHECK_THROWS_AS(add_broadcast(y, random({5, 6}, 1)), Error);  // nor cut
  CHECK_THROWS_AS(add_broadcast(y, random({4}, 1)), Error);
  CHECK(same_bits(y, before));
}
