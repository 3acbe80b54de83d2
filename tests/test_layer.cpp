// Layers: one object, two precisions. Without grids Fake is Float bit for bit; a
// compensation changes Fake alone, folded or not.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/grid/uniform.h"
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

TEST_CASE("what quantization made of a layer is replaced whole: what holds the old one keeps it") {
  static_assert(std::is_same_v<decltype(Layer::quantized), std::shared_ptr<const Quantized>>);
  Layer layer = linear_layer();
  const Tensor x = random({2, 3, 5}, 26);
  set_grids(layer, Uniform{4, 0, {0.1f}}, Uniform{4, 0, {0.2f}});
  const auto first = layer.quantized;
  const Layer copy = layer;  // shares it
  const Tensor y = layer.run(kFake, x), weight = first->weight.values().clone();

  REQUIRE(layer.prepare_int8());
  CHECK(layer.quantized != first);
  CHECK(layer.int8() != nullptr);
  CHECK(first->int8 == nullptr);
  const auto second = layer.quantized;
  const Tensor y_int8 = layer.run({Precision::Integer}, x);

  // Another weight leaves no codes of the one before, and the grid of the input as it is.
  layer.quantize(PackedWeight(Affine{4, 5, random({7, 1}, 27), Tensor({7, 1})}, {7, 5}, std::vector<uint8_t>(35, 3)));
  CHECK(layer.packed() != nullptr);
  CHECK(layer.int8() == nullptr);
  CHECK(as<Uniform>(layer.left_grid()).scale == std::vector<float>{0.1f});
  CHECK_FALSE(same_bits(layer.run(kFake, x), y));
  CHECK(same_bits(layer.run({Precision::Integer}, x), layer.run(kFake, x)));

  set_grids(layer, Uniform{4, 0, {0.3f}}, Uniform{4, 0, {0.5f}});
  CHECK(layer.packed() == nullptr);
  CHECK(layer.int8() == nullptr);

  CHECK(same_bits(first->weight.values(), weight));
  CHECK(as<Uniform>(first->right).scale == std::vector<float>{0.2f});
  CHECK(same_bits(copy.run(kFake, x), y));
  layer.quantized = second;
  CHECK(same_bits(layer.run({Precision::Integer}, x), y_int8));
  layer.quantized = first;
  CHECK(same_bits(layer.run(kFake, x), y));
}

TEST_CASE("a point of a product takes vectors for each head, one on top of the other, and none of another shape") {
  Layer av = product(Role::AV);
  const Tensor a = random({2, 3, 4, 5}, 28), v = random({2, 3, 5, 8}, 29), b = random({3, 1, 8}, 30);
  const Tensor y = av.run(kFloat, a, v);
  const Point point = Model::point_of(av);
  CHECK(point.kind == Point::Kind::Matmul);
  CHECK(point.is_product());
  CHECK(point.layer == &av);
  CHECK(point.folds_into.empty());
  point.add(b);
  point.add(b);
  CHECK(same_bits(av.run(kFloat, a, v), y));
  const Tensor z = av.run(kFake, a, v);
  for (int64_t i = 0; i < y.size(); ++i) CHECK(z[i] == y[i] + 2 * b[i / 32 % 3 * 8 + i % 8]);
  for (const Shape& shape : {Shape{3, 4, 8}, Shape{3, 1, 7}, Shape{8}}) {
    const std::string message = message_of<Error>([&] { point.add(random(shape, 31)); });
    CHECK(contains(message, to_string(shape)));
    CHECK(contains(message, to_string(b.shape)));
  }
  point.clear();
  CHECK(same_bits(av.run(kFake, a, v), y));
}

TEST_CASE("a point of a linear layer folds a value per channel into its bias, and keeps others apart") {
  for (const bool with_bias : {true, false}) {
    Layer layer = linear_layer(with_bias);
    const Tensor x = random({2, 3, 5}, 32), y = layer.run(kFloat, x), b = random({7}, 33), rows = random({3, 7}, 34);
    const Point point = Model::point_of(layer);
    CHECK(point.kind == Point::Kind::Linear);
    CHECK(point.tensor == "blocks.0.mlp.fc1.bias");
    point.add(b);
    CHECK(layer.added.empty());
    point.add(rows);
    CHECK(same_bits(layer.added, rows));
    point.add(b);
    for (int64_t c = 0; c < 7; ++c)
      CHECK(layer.bias.compensated[c] == doctest::Approx((with_bias ? layer.bias.loaded[c] : 0.f) + 2 * b[c]));
    const Tensor z = layer.run(kFake, x);
    for (int64_t i = 0; i < y.size(); ++i) CHECK(z[i] == doctest::Approx(y[i] + 2 * b[i % 7] + rows[i % 21]));
    CHECK(same_bits(layer.run(kFloat, x), y));
    CHECK_THROWS_AS(point.add(random({6}, 35)), Error);
    CHECK_THROWS_AS(point.add(random({2, 7}, 36)), Error);
    point.clear();
    CHECK(same_bits(layer.run(kFake, x), y));
  }
}
