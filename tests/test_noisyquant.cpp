// NoisyQuant against the figures of an independent program, and on a network.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/offset.h"
#include "engine/grid/uniform.h"
#include "quant/noisyquant.h"
#include "quant/refine.h"
#include "tests/golden.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// ŴᵀŴ, the upper triangle.
std::vector<double> gram_of(const Tensor& w) {
  const int64_t n = w.dim(1);
  std::vector<double> gram(static_cast<size_t>(n * n));
  for (int64_t r = 0; r < w.dim(0); ++r)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j)
        gram[static_cast<size_t>(i * n + j)] += static_cast<double>(w[r * n + i]) * w[r * n + j];
  return gram;
}

}  // namespace

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
    const std::vector<double> gram = gram_of(rounded);
    const float step = clip_step(x, gram, c.bits);
    CHECK(std::abs(step - c.step) < 1e-6);
    const Offset grid = search_offsets(x, gram, c.bits, step, noise);
    const double loss = quadratic_error(fake_quantize(grid, x), x, gram) / (12 * 5);
    CHECK(std::abs(loss - c.loss) < 1e-8);
    // At 6 bits the optimum is flat: the program's index is 146, the published code's in float32 147, as here.
    Tensor offsets({8}, grid.offset_of);
    for (int64_t k = 0; c.bits == 6 && k < 8; ++k) offsets[k] -= n[k] * step / 1000;
    CHECK(begins_with(offsets, c.offsets, 1e-6));
    const Tensor y = linear(nullptr, fake_quantize(grid, x), rounded, b);
    CHECK(begins_with(y, c.output, c.bits == 6 ? 5e-4 : 2e-6));
  }
}

TEST_CASE("grids with offsets: x + o rounded, less o; they come back from their description") {
  const Grid grid = Offset(3, 0.5f, {0.25f, -0.125f, 0});
  const Tensor x({2, 3}, {0.1f, 0.2f, 0.3f, -9, 9, 0.74f});
  const Tensor y = fake_quantize(grid, x);
  CHECK(same_bits(y, Tensor({2, 3}, {0.25f, 0.125f, 0.5f, -2.25f, 1.625f, 0.5f})));
  CHECK(same_bits(fake_quantize(read_grid("uniform+offset", grid.describe()), x), y));
  CHECK(storage_bits(grid, x.shape) == 6 * 3 + 32 * 4);
  CHECK_THROWS_AS(fake_quantize(grid, Tensor({2, 4})), Error);
  Fields wrong = grid.describe();
  wrong["interval"] = 0.f;
  CHECK_THROWS_AS(read_grid("uniform+offset", wrong), InputError);
}

TEST_CASE("NoisyQuant: all linear layers but patches and the head, no products; the same on any number of threads") {
  const auto model = load_model(kVit);
  const Batch batch = vit_batch();
  const auto run = [&] {
    NoisyQuant method({4, 4});
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
  CHECK_THROWS_AS(NoisyQuant({4, 9}), UsageError);
  NoisyQuant method({4, 4});
  CHECK_THROWS_AS(method.begin(*load_model(kOpt)), UsageError);
}
