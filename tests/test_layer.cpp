// Layers: one object, two precisions. Without grids Fake is Float bit for bit; a
// compensation changes Fake alone, folded or not.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/nn/layer.h"
#include "engine/nn/ops.h"
#include "models/model.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

Layer linear_layer(bool with_bias = true) {
  Layer layer;
  layer.name = "blocks.0.mlp.fc1";
  layer.role = Role::Fc1;
  layer.weight = random({7, 5}, 1);
  if (with_bias) layer.bias.loaded = random({7}, 2);
  return layer;
}

Layer product(Role role) {
  Layer layer;
  layer.name = "blocks.0.attn.matmul";
  layer.role = role;
  return layer;
}

const Context kFloat{Precision::Float, nullptr, nullptr};
const Context kFake{Precision::Fake, nullptr, nullptr};

struct Seen : Observer {
  void product(const Layer& s, const Tensor& left, const Tensor& right, const Tensor& out) override {
    name = s.name;
    a = left;
    b = right;
    y = out;
    ++calls;
  }
  std::string name;
  Tensor a, b, y;
  int calls = 0;
};

}  // namespace

TEST_CASE("a fresh layer gives the same bits in both precisions") {
  const Tensor x = random({2, 3, 5}, 3);
  for (const bool with_bias : {true, false}) {
    const Layer layer = linear_layer(with_bias);
    CHECK(same_bits(layer.run(kFloat, x), layer.run(kFake, x)));
    CHECK(same_bits(layer.run(kFloat, x), linear(nullptr, x, layer.weight, layer.bias.loaded)));
  }
  const Tensor q = random({2, 3, 4, 5}, 4), k = random({2, 3, 6, 5}, 5), v = random({2, 3, 5, 8}, 6);
  const Layer qk = product(Role::QK), av = product(Role::AV);
  CHECK(same_bits(qk.run(kFloat, q, k), qk.run(kFake, q, k)));
  CHECK(same_bits(qk.run(kFloat, q, k), matmul(nullptr, q, k, true)));
  CHECK(same_bits(av.run(kFloat, q, v), av.run(kFake, q, v)));
  CHECK(same_bits(av.run(kFloat, q, v), matmul(nullptr, q, v, false)));
  CHECK(linear_layer().is_linear());
  CHECK_FALSE(qk.is_linear());
}

TEST_CASE("grids act on their operands in Fake, and never in Float") {
  const Tensor x = random({2, 3, 5}, 7);
  Layer layer = linear_layer();
  const Tensor before = layer.run(kFloat, x);
  const Grid left = Uniform{4, 0, {0.1f}}, right = Uniform{3, 0, {0.3f}};
  set_grids(layer, left, right);
  CHECK(same_bits(layer.run(kFloat, x), before));
  const Tensor rounded = fake_quantize(right, layer.weight.values());
  CHECK(same_bits(layer.weight_in(Precision::Fake).values(), rounded));
  CHECK(same_bits(layer.run(kFake, x), linear(nullptr, fake_quantize(left, x), rounded, layer.bias.loaded)));
  CHECK_FALSE(same_bits(layer.run(kFake, x), before));

  Layer qk = product(Role::QK);
  const Tensor q = random({2, 3, 4, 5}, 8), k = random({2, 3, 6, 5}, 9);
  const Grid queries = Uniform{4, 1, {0.1f, 0.2f, 0.3f}}, keys = Uniform{4, 1, {0.3f, 0.2f, 0.1f}};
  set_grids(qk, queries, keys);
  CHECK(same_bits(qk.run(kFake, q, k), matmul(nullptr, fake_quantize(queries, q), fake_quantize(keys, k), true)));
  CHECK(same_bits(qk.run(kFloat, q, k), matmul(nullptr, q, k, true)));
}

TEST_CASE("a compensation per channel is the same folded into the bias and added to the output") {
  const Tensor x = random({2, 3, 5}, 10), c = random({7}, 11);
  for (const bool with_bias : {true, false}) {
    Layer folded = linear_layer(with_bias), added = linear_layer(with_bias);
    folded.bias.compensated = with_bias ? add(nullptr, folded.bias.loaded, c) : c;
    added.added = c.reshaped({1, 7});
    const Tensor y = added.run(kFake, x);
    CHECK(relative_error(folded.run(kFake, x), y) < 1e-6);
    CHECK(relative_error(y, folded.run(kFloat, x)) > 0.1);
    CHECK(same_bits(folded.run(kFloat, x), added.run(kFloat, x)));
  }
}

TEST_CASE("a compensation per position is added row by row, and cut to a shorter text") {
  Layer layer = linear_layer();
  layer.added = random({4, 7}, 12);
  const Tensor x = random({2, 3, 5}, 13), y = layer.run(kFloat, x), z = layer.run(kFake, x);
  for (int64_t i = 0; i < y.size(); ++i) CHECK(z[i] == y[i] + layer.added[i % 21]);
  CHECK_THROWS_AS(layer.run(kFake, random({2, 5, 5}, 14)), Error);  // more positions than were fitted
  CHECK_NOTHROW(layer.run(kFloat, random({2, 5, 5}, 14)));

  Layer av = product(Role::AV);  // one value for each head and channel
  av.added = random({3, 1, 8}, 15);
  const Tensor a = random({2, 3, 4, 5}, 16), v = random({2, 3, 5, 8}, 17);
  const Tensor f = av.run(kFloat, a, v), q = av.run(kFake, a, v);
  for (int64_t i = 0; i < f.size(); ++i) CHECK(q[i] == f[i] + av.added[i / 32 % 3 * 8 + i % 8]);
}

TEST_CASE("an observer sees the operands and the output of every product once") {
  Seen seen;
  Layer layer = linear_layer();
  const Tensor x = random({2, 3, 5}, 18);
  const Tensor y = layer.run({Precision::Float, nullptr, &seen}, x);
  CHECK(seen.calls == 1);
  CHECK(seen.name == layer.name);
  CHECK(seen.a.data == x.data);
  CHECK(seen.b.empty());
  CHECK(seen.y.data == y.data);
  layer.product({Precision::Fake}, x, Tensor{});
  CHECK(seen.calls == 1);
  const Tensor q = random({1, 3, 4, 5}, 19), k = random({1, 3, 6, 5}, 20);
  product(Role::QK).run({Precision::Fake, nullptr, &seen}, q, k);
  CHECK(seen.calls == 2);
  CHECK(seen.b.data == k.data);
}

TEST_CASE("gradients are those of the float network, and reach the output of the first layer") {
  Tape tape;
  const Layer layer = linear_layer();
  const Tensor x = random({2, 3, 5}, 21);  // data: not on the tape
  const Tensor y = layer.run({Precision::Float, &tape, nullptr}, x);
  REQUIRE(y.slot >= 0);
  const Tensor z = scale(&tape, y, 3);
  tape.backward(z, random({2, 3, 7}, 22));
  CHECK(tape.grad(y)[4] == 3 * tape.grad(z)[4]);
  const std::string message = message_of<Error>([&] { layer.run({Precision::Fake, &tape, nullptr}, x); });
  CHECK(contains(message, layer.name));
}

TEST_CASE("without what quantization made of it, and cleared of compensation, a layer is as loaded") {
  Layer layer = linear_layer();
  const Tensor x = random({2, 3, 5}, 23), before = layer.run(kFake, x);
  set_grids(layer, Uniform{4, 0, {0.1f}}, Uniform{3, 0, {0.3f}});
  layer.bias.compensated = random({7}, 24);
  layer.added = random({3, 7}, 25);
  CHECK_FALSE(same_bits(layer.run(kFake, x), before));
  layer.quantized = nullptr;
  Model::point_of(layer).clear();
  CHECK(same_bits(layer.run(kFake, x), before));
}
