// NoisyQuant against the figures of an independent program, and on a network.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/offset.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "quant/noisyquant.h"
#include "tests/golden.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

// Where the published searches are given the same noise, weights and steps agree exactly and outputs to 5e-7.
TEST_CASE("NoisyQuant: steps, offsets and outputs of the golden layer") {
  Tensor x = golden(1, {12, 8});
  const Tensor more = golden(500, {12, 8}), w = golden(2001, {5, 8}), b = golden(3001, {5}), n = golden(4001, {8});
  for (int64_t i = 0; i < x.size(); ++i) {
    const float z = 3 * x[i] * (1 + more[i]);
    x[i] = static_cast<float>(0.5 * z * (1 + std::erf(z / std::sqrt(2.0))));
  }
  const std::vector<float> noise(n.data, n.data + 8);
  struct Case {
    int bits;
    double step, loss;
    std::vector<double> offsets, output;
  };
  for (const Case& c : {Case{6,
                             .1532776,
                             .00186710,
                             {.0039943, .0247094, .031851, .0254192, .0054138, .016592, .0141966, -.0017722},
                             {-.2115643, .1509572, .5826175, 1.1100662, .662142}},
                        Case{4,
                             .6141530,
                             .02429114,
                             {-.0177684, .0203212, .0334528, .0216262, -.0151584, .0053953, .0009909, -.0283716},
                             {-.0068669, .00879, .7752225, 1.133826, .3184593}}}) {
    CAPTURE(c.bits);
    std::vector<float> steps;
    for (int64_t r = 0; r < 5; ++r) {
      float largest = 0;
      for (int64_t k = 0; k < 8; ++k) largest = std::max(largest, std::abs(w[r * 8 + k]));
      steps.push_back(largest / (std::ldexp(1.f, c.bits - 1) - 1));
    }
    const Tensor rounded = fake_quantize(Uniform{c.bits, 0, steps}, w);
    const ProductError error(rounded);
    const float step = clip_step(x, error, c.bits);
    CHECK(std::abs(step - c.step) < 1e-6);
    const Offset grid = search_offsets(x, rounded, Uniform{c.bits, 0, {step}}, step, noise);
    const double loss = error(fake_quantize(grid, x), x) / (12 * 5);
    CHECK(std::abs(loss - c.loss) < 1e-8);
    // At 6 bits the optimum is flat: the program's index is 146, as here; the published code's in float32 147.
    CHECK(begins_with(Tensor({8}, grid.offset_of), c.offsets, 1e-6));
    const Tensor y = linear(nullptr, fake_quantize(grid, x), rounded, b);
    CHECK(begins_with(y, c.output, 2e-6));
  }
}

TEST_CASE("NoisyQuant: the error of a product, whichever of w and wᵀw is smaller") {
  const Tensor x = golden(1, {6, 7}), q = golden(2, {6, 7});
  for (const int64_t out : {3, 11}) {
    const Tensor w = golden(3, {out, 7});
    double sum = 0;
    for (int64_t t = 0; t < 6; ++t)
      for (int64_t r = 0; r < out; ++r) {
        double y = 0;
        for (int64_t c = 0; c < 7; ++c) y += (static_cast<double>(q[t * 7 + c]) - x[t * 7 + c]) * w[r * 7 + c];
        sum += y * y;
      }
    CHECK(ProductError(w)(q, x) == doctest::Approx(sum).epsilon(1e-6));
  }
}

TEST_CASE("NoisyQuant: errors of one offset after another are those of each alone") {
  const Tensor x = golden(1, {6, 7}), w = golden(3, {4, 7});
  const ProductError alone(w);
  OffsetErrors errors(x, w);
  const Uniform grid{4, 0, {0.3f}};
  for (int i = 0; i < 40; ++i) {
    std::vector<float> o;
    for (int c = 0; c < 7; ++c) o.push_back(static_cast<float>((i * 37 + c * 11) % 50 - 25) / 20);
    Tensor moved = x.clone();
    for (int64_t k = 0; k < x.size(); ++k) moved[k] += o[static_cast<size_t>(k % 7)];
    const double expected = alone(fake_quantize(Grid(Offset(grid, o)), x), x);
    CHECK(errors(fake_quantize(grid, moved), o) == doctest::Approx(expected).epsilon(1e-5));
  }
}

TEST_CASE("grids with offsets: x + o rounded, less o; they come back from their description") {
  const Grid grid = Offset(Uniform{3, 0, {0.5f}}, {0.25f, -0.125f, 0});
  const Tensor x({2, 3}, {0.1f, 0.2f, 0.3f, -9, 9, 0.74f});
  const Tensor y = fake_quantize(grid, x);
  CHECK(same_bits(y, Tensor({2, 3}, {0.25f, 0.125f, 0.5f, -2.25f, 1.625f, 0.5f})));
  CHECK(same_bits(fake_quantize(read_grid("uniform+offset", grid.describe()), x), y));
  CHECK(storage_bits(grid, x.shape) == 6 * 3 + 32 * 4);
  CHECK_THROWS_AS(fake_quantize(grid, Tensor({2, 4})), Error);
  Fields wrong = grid.describe();
  wrong["intervals"] = std::vector<float>{0.f};
  CHECK_THROWS_AS(read_grid("uniform+offset", wrong), InputError);
}

TEST_CASE("NoisyQuant: all linear layers but patches and the head, no products; the same on any number of threads") {
  const auto model = load_model(kVit);
  const Batch batch = vit_batch();
  const auto run = [&] {
    NoisyQuant method(4, 4);
    calibrate(*model, vision_batches(*model, batch.pixels), {&method});
    return model->forward({Precision::Fake}, batch);
  };
  CHECK(same_on_two_threads(run));
  for (const Layer* layer : model->all_layers()) {
    CAPTURE(layer->name);
    const bool is_wanted = layer->is_linear() && layer->role != Role::Patch && layer->role != Role::Head;
    CHECK(layer->is_quantized() == is_wanted);
    if (is_wanted) CHECK(layer->left_grid().is<Offset>());
  }
  CHECK_THROWS_AS(NoisyQuant(4, 9), UsageError);
  NoisyQuant method(4, 4);
  CHECK_THROWS_AS(method.begin(*load_model(kOpt)), UsageError);
}

TEST_CASE("NoisyQuant in front of PTQ4ViT's grids: those grids with offsets that lower the error of the outputs") {
  const auto plain = load_model(kVit), model = load_model(kVit);
  const Batch batch = vit_batch();
  PtqOptions options{4, 4};
  options.eq_n = 10;
  Ptq without(options, {});
  calibrate(*plain, vision_batches(*plain, batch.pixels), {&without});
  const auto run = [&] {
    NoisyPtq4vit method(options, {});
    calibrate(*model, vision_batches(*model, batch.pixels), {&method});
    return model->forward({Precision::Fake}, batch);
  };
  CHECK(same_on_two_threads(run));
  int twins = 0, moved = 0;
  const std::vector<Layer*> layers = model->all_layers(), others = plain->all_layers();
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer &layer = *layers[i], &other = *others[i];
    CAPTURE(layer.name);
    const auto* offset = layer.left_grid().as<Offset>();
    CHECK((offset != nullptr) == takes_noise(layer));
    const Grid& grid = offset ? offset->moved : layer.left_grid();
    CHECK(grid.name() == other.left_grid().name());
    CHECK(grid.describe() == other.left_grid().describe());
    if (!offset) continue;
    twins += grid.is<TwinGelu>();
    for (const float o : offset->offset_of) moved += o != 0;
    const Tensor x = golden(7, {3, layer.weight.dim(1)});
    const Grid back = read_grid(layer.left_grid().name(), layer.left_grid().describe());
    CHECK(same_bits(fake_quantize(back, x), fake_quantize(layer.left_grid(), x)));
  }
  CHECK(twins == model->depth());
  CHECK(moved > 0);

  // Of one layer, on the inputs it was fitted to.
  const Tensor x = golden(1, {40, 16}), w = golden(2, {8, 16});
  const ProductError error(w);
  const Grid twin = TwinGelu{4, 0.05f, 0.02f};
  const Offset found = search_offsets(x, w, twin, 0.05f, std::vector<float>(16, 1.f));
  CHECK(error(fake_quantize(Grid(found), x), x) < 0.999 * error(fake_quantize(twin, x), x));
}
