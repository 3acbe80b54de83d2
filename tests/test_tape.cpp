// Gradients: every differentiable op against central finite differences of its own
// forward pass, and the rules of the tape. Whole networks are in test_models.cpp.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "engine/nn/tape.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

constexpr double kTolerance = 2e-3;

}  // namespace

TEST_CASE("gradients of products") {
  const Tensor w = random({7, 5}, 1), bias = random({7}, 2);
  for (const Shape& shape : {Shape{3, 5}, Shape{2, 3, 5}})
    CHECK(gradient_error([&](Tape* t, const Tensor& x) { return linear(t, x, w, bias); }, random(shape, 3), 4) <
          kTolerance);
  const Tensor a = random({2, 3, 4, 5}, 5), bt = random({2, 3, 6, 5}, 6), b = random({2, 3, 5, 6}, 7);
  CHECK(gradient_error([&](Tape* t, const Tensor& x) { return matmul(t, x, bt, true); }, a, 8) < kTolerance);
  CHECK(gradient_error([&](Tape* t, const Tensor& x) { return matmul(t, a, x, true); }, bt, 9) < kTolerance);
  CHECK(gradient_error([&](Tape* t, const Tensor& x) { return matmul(t, x, b, false); }, a, 10) < kTolerance);
  CHECK(gradient_error([&](Tape* t, const Tensor& x) { return matmul(t, a, x, false); }, b, 11) < kTolerance);
  // both operands at once
  CHECK(gradient_error([](Tape* t, const Tensor& x) { return matmul(t, x, x, true); }, a, 12) < kTolerance);
}

TEST_CASE("the gradient of a product large enough to be cut into columns") {
  const Tensor x = random({2, 60, 200}, 13), w = random({400, 200}, 14), g = random({2, 60, 400}, 15);
  const Tensor dx = tape_gradient([&](Tape* t, const Tensor& v) { return linear(t, v, w, Tensor{}); }, x, g);
  std::vector<double> want;
  for (int64_t r = 0; r < 120; ++r)
    for (int64_t k = 0; k < 200; ++k) {
      double sum = 0;
      for (int64_t o = 0; o < 400; ++o) sum += static_cast<double>(g[r * 400 + o]) * w[o * 200 + k];
      want.push_back(sum);
    }
  CHECK(relative_error(dx, want) < 1e-5);
}

TEST_CASE("gradients of element-wise ops") {
  const Tensor x = random({2, 3, 5}, 16, 3), other = random({2, 3, 5}, 17);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return add(t, v, other); }, x, 18) < kTolerance);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return add(t, other, v); }, x, 19) < kTolerance);
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return add(t, v, v); }, x, 20) < kTolerance);
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return scale(t, v, -1.7f); }, x, 21) < kTolerance);
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return gelu_erf(t, v); }, x, 22) < kTolerance);
}

TEST_CASE("gradients of row ops") {
  const Tensor gamma = random({9}, 23, 2), beta = random({9}, 24);
  const Tensor x = random({2, 3, 9}, 25, 2);
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return softmax(t, v); }, x, 26) < kTolerance);
  for (const float eps : {1e-6f, 0.3f})
    CHECK(gradient_error([&](Tape* t, const Tensor& v) { return layer_norm(t, v, gamma, beta, eps); }, x, 27) <
          kTolerance);
}

TEST_CASE("gradients of moves are exact") {
  const Tensor fused = random({2, 3, 24}, 28), token = random({1, 4}, 29), positions = random({6, 4}, 30);
  for (int64_t part = 0; part < 3; ++part) {
    const Tensor g = random({2, 2, 3, 4}, 31);
    const Tensor dx = tape_gradient([&](Tape* t, const Tensor& v) { return split_heads(t, v, 2, part, 3); }, fused, g);
    Tensor want({2, 3, 24});
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t n = 0; n < 3; ++n)
          for (int64_t e = 0; e < 4; ++e)
            want[(b * 3 + n) * 24 + part * 8 + h * 4 + e] = g[((b * 2 + h) * 3 + n) * 4 + e];
    CHECK(same_bits(dx, want));
  }
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return merge_heads(t, v); }, random({2, 3, 4, 5}, 32), 33) <
        kTolerance);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return prepend_tokens(t, v, token, positions); },
                       random({2, 5, 4}, 34), 35) < kTolerance);
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return mean_tokens(t, v); }, random({2, 5, 4}, 44), 45) <
        kTolerance);
  CHECK(gradient_error(
            [](Tape* t, const Tensor& v) {
              return gather_rows(t, v, {2, 0, 3, 1}, {4, 2, 3});
            },
            random({2, 4, 3}, 46), 47) < kTolerance);
  CHECK(gradient_error(
            [](Tape* t, const Tensor& v) {
              return gather_rows(t, v, {2, 0, 2}, {2, 9});
            },
            random({2, 4, 3}, 46), 47) < kTolerance);
  const Tensor bias = random({3, 2, 2}, 48), mask = random({2, 2, 2}, 49);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return add_window_bias(t, v, bias, mask); },
                       random({4, 3, 2, 2}, 50), 51) < kTolerance);
  CHECK(gradient_error([](Tape* t, const Tensor& v) { return select_token(t, v, 2); }, random({2, 5, 4}, 36), 37) <
        kTolerance);
}

TEST_CASE("gradients of a tensor used on several paths add up") {
  // softmax(x W^T) x: x is reached through three uses
  const Tensor w = random({4, 4}, 38);
  CHECK(gradient_error(
            [&](Tape* t, const Tensor& x) {
              const Tensor u = gelu_erf(t, linear(t, x, w, Tensor{}));
              return add(t, x, matmul(t, softmax(t, matmul(t, x, u, true)), x, false));
            },
            random({2, 1, 5, 4}, 39), 40) < kTolerance);
}

TEST_CASE("the gradient of softmax in the far tail and of layer_norm at a constant row stay finite") {
  Tape tape;
  Tensor x({1, 3}, {200, -200, 0}), flat({1, 3}, {2, 2, 2});
  tape.watch(x);
  tape.watch(flat);
  const Tensor y = add(&tape, softmax(&tape, x), layer_norm(&tape, flat, Tensor({3}, {1, 1, 1}), Tensor({3}), 1e-6f));
  tape.backward(y, Tensor({1, 3}, {1, 2, 3}));
  for (int64_t i = 0; i < 3; ++i) {
    CHECK(tape.grad(x)[i] == 0);
    CHECK(tape.grad(flat)[i] == doctest::Approx((static_cast<double>(i) - 1) * 1e3));  // (g - mean g) / sqrt(eps)
  }
}

TEST_CASE("a tape keeps to what is on it") {
  Tape tape;
  Tensor x = random({2, 3}, 41), constant = random({2, 3}, 42);
  tape.watch(x);
  const Tensor y = scale(&tape, x, 2);
  const Tensor aside = scale(&tape, x, 5);                 // leads nowhere
  const Tensor later = scale(&tape, y, 7);                 // comes after y
  CHECK(scale(&tape, constant, 2).slot == -1);             // no variable in, none out
  CHECK(linear(&tape, constant, x, Tensor{}).slot == -1);  // weights are constants
  CHECK(scale(nullptr, x, 2).slot == -1);
  CHECK_THROWS_AS(tape.grad(constant), Error);
  CHECK_THROWS_AS(tape.backward(y, random({3}, 1)), Error);
  const Tensor g = random({2, 3}, 43);
  tape.backward(y, g);
  CHECK(same_bits(tape.grad(y), g));
  bool doubled = true, untouched = true;
  for (int64_t i = 0; i < 6; ++i) {
    doubled &= tape.grad(x)[i] == 2 * g[i];
    untouched &= tape.grad(aside)[i] == 0 && tape.grad(later)[i] == 0;
  }
  CHECK(doubled);
  CHECK(untouched);
}

TEST_CASE("a reshaped tensor keeps its place on the tape") {
  Tape tape;
  Tensor x = random({2, 6}, 44);
  tape.watch(x);
  const Tensor y = scale(&tape, x.reshaped({3, 4}), 3);
  tape.backward(y, random({3, 4}, 45));
  CHECK(tape.grad(x)[5] == 3 * tape.grad(y)[5]);
  CHECK(x.slice(0, 1).slot == -1);
}

TEST_CASE("gradients do not depend on the batch or the number of threads") {
  const Tensor w = random({48, 16}, 46), gamma = random({16}, 47), beta = random({16}, 48);
  const Function f = [&](Tape* t, const Tensor& x) {
    const Tensor qkv = linear(t, layer_norm(t, x, gamma, beta, 1e-6f), w, Tensor{});
    const Tensor q = split_heads(t, qkv, 4, 0, 3), k = split_heads(t, qkv, 4, 1, 3), v = split_heads(t, qkv, 4, 2, 3);
    return gelu_erf(t, add(t, x, merge_heads(t, matmul(t, softmax(t, matmul(t, q, k, true)), v, false))));
  };
  const Tensor x = random({7, 33, 16}, 49, 2), g = random({7, 33, 16}, 50);
  const Tensor all = tape_gradient(f, x, g);
  for (int64_t b = 0; b < 7; ++b) CHECK(same_bits(sample(all, b), tape_gradient(f, sample(x, b), sample(g, b))));
  CHECK(same_on_two_threads([&] { return tape_gradient(f, x, g); }));
}
