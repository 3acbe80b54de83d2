// Layers in integers: against sums of their grids' values in double precision, against the simulated layer, and
// whole networks against both.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/grid/affine.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "engine/nn/int8_layer.h"
#include "quant/bias_comp.h"
#include "quant/ptq4vit.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const Context kFake{Precision::Fake, nullptr, nullptr}, kInteger{Precision::Integer, nullptr, nullptr};
constexpr double kUnit = 0x1p-24;  // of rounding to float

// The product of a layer from the values on its grids, in double: y and the sum of magnitudes of its terms.
struct Exact {
  std::vector<double> y, size;
};
Exact exact(const Layer& layer, const Tensor& a, const Tensor& b) {
  const bool linear = layer.is_linear(), transposed = layer.role != Role::AV;
  const Tensor left = fake_quantize(layer.left_grid(), a);
  const Tensor right = linear ? layer.weight_in(Precision::Fake).values() : fake_quantize(right_grid(layer), b);
  const int64_t heads = linear ? 1 : a.dim(0) * a.dim(1), N = a.rows() / heads, K = a.dim(-1);
  const int64_t M = right.size() / heads / K;
  const Tensor& bias = layer.bias.compensated.empty() ? layer.bias.loaded : layer.bias.compensated;
  Exact e;
  for (int64_t i = 0; i < heads * N; ++i)
    for (int64_t c = 0; c < M; ++c) {
      double y = bias.empty() ? 0 : static_cast<double>(bias[c]), size = std::abs(y);
      for (int64_t k = 0; k < K; ++k) {
        const double w = right[i / N * M * K + (transposed ? c * K + k : k * M + c)], term = left[i * K + k] * w;
        y += term;
        size += std::abs(term);
      }
      e.y.push_back(y);
      e.size.push_back(size);
    }
  return e;
}

// Both precisions within their bounds of the exact product. The values on the grids are rounded themselves, by at most
// 4 units (a twin: step, both terms and their sum). Simulated, K + 1 additions follow; in integers a term is rounded
// when its sum becomes a float and when scales and sum are multiplied, before at most three additions.
// Adds up how far both are from it.
struct Errors {
  double integer = 0, fake = 0;
};
void check_layer(Errors& errors, Layer& layer, const Tensor& a, const Tensor& b = {}) {
  const Tensor fake = layer.run(kFake, a, b);
  const Exact want = exact(layer, a, b);
  REQUIRE(layer.prepare_int8());
  const Tensor got = layer.run(kInteger, a, b);
  CHECK(got.shape == fake.shape);
  CHECK(relative_error(layer.run(kFake, a, b), fake) == 0);  // from decoded weights
  const Tensor bc = layer.added;
  Tensor added(fake.shape);
  if (!bc.empty()) add_broadcast(added, bc);
  double worst = 0, worst_fake = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const size_t at = static_cast<size_t>(i);
    const double y = want.y[at] + added[i], size = want.size[at] + std::abs(added[i]), K = a.dim(-1);
    worst = std::max(worst, std::abs(got[i] - y) / (10 * kUnit * size));
    worst_fake = std::max(worst_fake, std::abs(fake[i] - y) / ((K + 6) * kUnit * size));
    errors.integer += std::abs(got[i] - y);
    errors.fake += std::abs(fake[i] - y);
  }
  CHECK(worst <= 1);
  CHECK(worst_fake <= 1);
  CHECK(same_on_two_threads([&] { return layer.run(kInteger, a, b); }));
  for (int64_t s = 0; s < a.dim(0); ++s)
    CHECK(same_bits(layer.run(kInteger, sample(a, s), b.empty() ? b : sample(b, s)), sample(got, s)));
}

Layer linear_layer(int64_t out, int64_t in, const Grid& a, const Uniform& b) {
  Layer layer;
  layer.name = "fc";
  layer.weight = random({out, in}, 1);
  layer.bias.loaded = random({out}, 2);
  set_grids(layer, a, b);
  return layer;
}

Layer product(Role role, const Grid& a, const Grid& b) {
  Layer layer;
  layer.name = "matmul";
  layer.role = role;
  set_grids(layer, a, b);
  return layer;
}

Uniform uniform(int bits, int axis, int64_t units, float top) {
  std::vector<float> steps;
  for (int64_t u = 0; u < units; ++u)
    steps.push_back(top * (0.8f + 0.1f * static_cast<float>(u % 4)) / std::ldexp(1.f, bits - 1));
  return Uniform{bits, axis, steps};
}

Tensor probabilities(Shape shape) { return softmax(nullptr, random(std::move(shape), 7, 4)); }

}  // namespace

TEST_CASE("integer: linear layers of every grid") {
  Errors errors;
  const Tensor x = random({3, 5, 50}, 3), after_gelu = gelu_erf(nullptr, random({3, 5, 50}, 4, 4));
  for (const int bits : {8, 6, 4, 2})
    for (const int64_t units : {1, 3, 66}) {
      CAPTURE(bits);
      CAPTURE(units);
      Layer layer = linear_layer(66, 50, uniform(bits, 0, 1, 1), uniform(bits, 0, units, 1));
      check_layer(errors, layer, x);
      layer.bias.loaded = Tensor{};
      check_layer(errors, layer, x);
      layer.bias.compensated = random({66}, 5);
      layer.added = random({5, 66}, 6);
      check_layer(errors, layer, x);
      Layer twin = linear_layer(66, 50, TwinGelu{bits, 0.9f / std::ldexp(1.f, bits), 0.17f / std::ldexp(1.f, bits - 1)},
                                uniform(bits, 0, units, 1));
      check_layer(errors, twin, after_gelu);
      twin.added = random({1, 66}, 6);
      check_layer(errors, twin, after_gelu);
    }
  Layer head = linear_layer(7, 10, uniform(8, 0, 1, 1), uniform(8, 0, 1, 1));
  check_layer(errors, head, random({9, 10}, 8));  // no tokens
  CHECK(errors.integer < errors.fake);
}

TEST_CASE("integer: products of activations of every grid") {
  Errors errors;
  const Tensor q = random({2, 4, 13, 10}, 3), k = random({2, 4, 9, 10}, 4), v = random({2, 4, 9, 35}, 5);
  const Tensor a = probabilities({2, 4, 13, 9});
  for (const int bits : {8, 6, 4})
    for (const int64_t units : {1, 2, 4}) {
      CAPTURE(bits);
      CAPTURE(units);
      Layer qk = product(Role::QK, uniform(bits, 1, units, 1), uniform(bits, 1, units, 1));
      check_layer(errors, qk, q, k);
      qk.added = random({4, 13, 9}, 6);
      check_layer(errors, qk, q, k);
      const Grid grids[] = {uniform(bits, 1, units, 1), TwinSoftmax{bits, 0.125f, true},
                            TwinSoftmax{bits, 0.125f, false}};
      for (const Grid& grid : grids) {
        Layer av = product(Role::AV, grid, uniform(bits, 1, units, 1));
        check_layer(errors, av, a, v);
        av.added = random({4, 1, 35}, 6);
        check_layer(errors, av, a, v);
      }
    }
}

TEST_CASE("integer: what has no integer form is simulated") {
  const Tensor x = random({2, 5, 50}, 3);
  const Grid nine = uniform(9, 0, 1, 1), affine = Affine{4, 25, Tensor({66, 2}), Tensor({66, 2})};
  for (const Grid& grid : {Grid{Identity{}}, nine, affine}) {
    Layer left = linear_layer(66, 50, grid, uniform(8, 0, 1, 1)), right = left;
    CHECK_FALSE(left.prepare_int8());
    right.quantize({uniform(8, 0, 1, 1), grid, left.quantized->weight, nullptr, nullptr});
    CHECK_FALSE(right.prepare_int8());
    if (!grid.is<Affine>()) CHECK(same_bits(left.run(kInteger, x), left.run(kFake, x)));
  }
  Layer other_axis = linear_layer(66, 50, uniform(8, 0, 1, 1), uniform(8, 1, 2, 1));
  CHECK_FALSE(other_axis.prepare_int8());
  Layer float_weight = linear_layer(66, 50, uniform(8, 0, 1, 1), uniform(8, 0, 1, 1));
  float_weight.quantize({float_weight.left_grid(), right_grid(float_weight), {}, nullptr, nullptr});
  CHECK_FALSE(float_weight.prepare_int8());
  Layer cleared = linear_layer(66, 50, uniform(8, 0, 1, 1), uniform(8, 0, 1, 1));
  CHECK(cleared.prepare_int8());
  cleared.quantized = nullptr;
  CHECK(same_bits(cleared.run(kInteger, x), cleared.run(kFloat, x)));
}

TEST_CASE("integer: networks of every method, fused and layer by layer, against the simulated ones") {
  const Progress quiet = [](const std::string&, double, double) {};
  for (const auto& fixture : kVisions)
    for (const int bits : {8, 4})
      for (const int variant : {0, 1, 2, 3}) {
        const std::string& folder = fixture.first;
        CAPTURE(folder);
        CAPTURE(bits);
        CAPTURE(variant);
        const auto model = load_model(folder);
        const Batch batch = pixels_of(folder);
        PtqOptions options = variant == 0 ? base_ptq(bits, bits) : PtqOptions{bits, bits};
        options.eq_n = 4;
        options.rounds = options.draws = 1;
        if (variant == 2) options.softmax_twin = SoftmaxTwin::Clean;
        if (variant == 2) options.quantize_pixels = true;
        if (variant == 3) options.head_intervals = false;
        quantize_ptq(*model, batch.pixels, options, nullptr, nullptr);
        BcOptions bc;
        bc.shape = variant % 2 ? BcShape::Position : BcShape::Channel;
        bc.block = variant == 1;
        compensate(*model, {batch}, bc, quiet);
        const Tensor want = model->forward(kFake, batch);
        const std::vector<std::string> simulated = model->prepare_int8();
        CHECK(simulated == (variant == 2 ? std::vector<std::string>{} : std::vector<std::string>{"patch_embed.proj"}));
        const Tensor got = model->forward(kInteger, batch);
        CHECK(relative_error(model->forward(kFake, batch), want) == 0);
        // Sums that differ by roundings may put a later value on the other side of a tie: then one code differs.
        CHECK(relative_error(got, want) < (bits == 8 ? 1e-2 : 1e-1));
        Record seen;
        CHECK(same_bits(got, model->forward({Precision::Integer, nullptr, &seen}, batch)));
        CHECK(seen.order.size() == fixture.second);
        CHECK(same_on_two_threads([&] { return model->forward(kInteger, batch); }));
        for (int64_t s = 0; s < batch.size(); ++s) {
          Batch one;
          one.pixels = sample(batch.pixels, s);
          CHECK(same_bits(model->forward(kInteger, one), sample(got, s)));
        }
      }
}

TEST_CASE("integer: what is compensated once the codes are made is compensated, fused and layer by layer") {
  for (const std::string& fixture : {kVit, kDeit, kSwin})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
      CAPTURE(fixture);
      const auto model = load_model(fixture), other = load_model(fixture);
      const Batch batch = pixels_of(fixture);
      PtqOptions options{4, 4};
      options.eq_n = 4;
      options.rounds = options.draws = 1;
      for (Model* m : {model.get(), other.get()}) quantize_ptq(*m, batch.pixels, options, nullptr, nullptr);
      BcOptions bc;
      bc.shape = shape;
      bc.block = true;

      model->prepare_int8();
      const Tensor before = model->forward(kInteger, batch);
      compensate(*model, {batch}, bc);
      const Tensor after = model->forward(kInteger, batch);
      Observer watching;  // every product is computed for it
      CHECK(same_bits(after, model->forward({Precision::Integer, nullptr, &watching}, batch)));
      CHECK(relative_error(after, before) > 1e-3);

      compensate(*other, {batch}, bc);
      other->prepare_int8();
      CHECK(relative_error(after, other->forward(kInteger, batch)) == 0);

      model->clear_compensation();
      CHECK(same_bits(model->forward(kInteger, batch), before));
      CHECK(same_bits(model->forward({Precision::Integer, nullptr, &watching}, batch), before));
    }
}
