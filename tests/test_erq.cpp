// ERQ against the published functions' figures, and on a network.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "quant/erq.h"
#include "quant/ranges.h"
#include "tests/golden.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// Mean square of x̂ Ŵᵀ + b less x Wᵀ, rows x [tokens, in].
double error(const Tensor& rounded, const Tensor& q, const Tensor& b, const Tensor& x, const Tensor& w) {
  double sum = 0;
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t r = 0; r < w.dim(0); ++r) {
      double e = b[r];
      for (int64_t c = 0; c < w.dim(1); ++c)
        e += static_cast<double>(rounded[t * w.dim(1) + c]) * q[r * w.dim(1) + c] -
             static_cast<double>(x[t * w.dim(1) + c]) * w[r * w.dim(1) + c];
      sum += e * e;
    }
  return sum / static_cast<double>(x.rows() * w.dim(0));
}

}  // namespace

// What the published code makes of this layer on the CPU, both of its steps with one ridge.
TEST_CASE("ERQ: grids, codes, biases and errors of the published code") {
  Tensor x = golden(1, {4, 12, 24});
  const Tensor token = golden(9001, {48}), w = golden(2001, {10, 24}), b = golden(3001, {10});
  for (int64_t i = 0; i < x.size(); ++i) x[i] += .6f * token[i / 24] + .3f;
  struct Case {
    int bits;
    double ridge, step;
    int zero;
    std::vector<double> scales, bias;
    std::vector<int> codes;
    double sum, error;
  };
  const Case cases[] = {
      {4,
       10,
       .20145077,
       6,
       {.1117643, .1017068, .1243753, .1248391},
       {.0020205, -.5623983, .3388706, .5785546, .1727746, -.7472416, -.2856602, -.4388008, .7839416, -.5644579},
       {-5, -6, 6, -4, -2, -6, 3, 6, 3, -3, 1, 0, -5, 2, 2, -2, 6, -9, 6, -2, 3, 1, -5, 1},
       -4.2598449,
       .02454948},
      {3,
       1,
       .4316802,
       3,
       {.2218983, .2182511, .2473866, .2830012},
       {-.0940888, -.5878749, .4236542, .4615743, .2693039, -.7420242, -.1905289, -.5402532, .8642101, -.4924726},
       {-2, -3, 3, -1, -1, -4, 1, 3, 2, -2, 0, 0, -3, 0, 2, -1, 3, -4, 3, -1, 2, 0, -2, 0},
       -5.9912321,
       .09019133}};
  for (const Case& c : cases) {
    CAPTURE(c.bits);
    const ScaleZero range = percentile_range(x.data, x.size(), 1, c.bits);
    CHECK(range.scale == doctest::Approx(c.step).epsilon(1e-6));
    CHECK(range.zero == c.zero);
    const Tensor rounded = fake_quantize(Asymmetric(c.bits, range.scale, range.zero), x);
    const ErqWeight q = erq(w, x, rounded, c.bits, c.ridge, c.ridge);
    const Asymmetric& grid = as<Asymmetric>(q.grid);
    CHECK(begins_with(Tensor({10}, grid.scale), c.scales));
    for (size_t i = 0; i < c.codes.size(); ++i)
      CHECK(q.values[static_cast<int64_t>(i)] / grid.scale[0] == doctest::Approx(c.codes[i]).epsilon(1e-5));
    double sum = 0;
    for (int64_t i = 0; i < q.values.size(); ++i) sum += q.values[i];
    CHECK(sum == doctest::Approx(c.sum).epsilon(1e-6));
    Tensor bias = q.bias.clone(), none({10});
    for (int64_t r = 0; r < 10; ++r) bias[r] += b[r];
    CHECK(begins_with(bias, c.bias));
    CHECK(error(rounded, q.values, q.bias, x, w) == doctest::Approx(c.error).epsilon(1e-5));
    CHECK(error(rounded, fake_quantize(percentile_grid(w, c.bits), w), none, x, w) > 1.6 * c.error);
  }
  CHECK_THROWS_AS(Erq(4, 9), UsageError);
}

TEST_CASE("ERQ: on grids of RepQ-ViT, pixels in float, the same on one and two threads") {
  for (const std::string& fixture : {kVit, kSwin}) {
    CAPTURE(fixture);
    CHECK(same_on_two_threads([&] {
      Erq method(4, 4, 10);
      const auto model = load_model(fixture);
      calibrate(*model, vision_batches(*model, pixels_of(fixture).pixels), {&method});
      for (Layer* layer : model->all_layers()) {
        CHECK(layer->is_quantized());
        if (layer->role == Role::Patch) CHECK(layer->left_grid().is_identity());
        if (layer->role == Role::Fc1) CHECK(layer->left_grid().name() == "asymmetric");
      }
      return model->forward({Precision::Fake}, pixels_of(fixture));
    }));
  }
}
