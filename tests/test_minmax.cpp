// Grids by ranges, against their definition.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/uniform.h"
#include "models/model.h"
#include "quant/calibrate.h"
#include "quant/minmax.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The largest magnitudes of each layer's operands in the float network.
struct Ranges : Observer {
  std::map<const Layer*, std::pair<float, float>> of;
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor&) override {
    const auto most = [](const Tensor& x) {
      float top = 0;
      for (int64_t i = 0; i < x.size(); ++i) top = std::max(top, std::abs(x[i]));
      return top;
    };
    auto& [left, right] = of[&layer];
    left = std::max(left, most(a));
    right = std::max(right, most(layer.is_linear() ? layer.weight.values() : b));
  }
};

}  // namespace

TEST_CASE("min-max: steps are the largest magnitudes over all batches, in the middle of the last code") {
  const auto model = load_model("data/mini/vit");
  const std::vector<Batch> data = vision_batches(*model, random({9, 3, 28, 28}, 3));
  MinMax method(6, 4);
  calibrate(*model, data, {&method});
  Ranges ranges;
  for (const Batch& batch : data) model->forward({Precision::Float, nullptr, &ranges}, batch);
  for (const Layer* layer : model->all_layers()) {
    CAPTURE(layer->name);
    const auto [left, right] = ranges.of.at(layer);
    const int bits = layer->is_linear() ? 6 : 4;
    const auto* grid = layer->quantized->right.as<Uniform>();
    REQUIRE(grid);
    CHECK(grid->bits == bits);
    CHECK(grid->scale == std::vector<float>{right / (std::ldexp(1.f, bits - 1) - 0.5f)});
    if (layer->role == Role::Patch) {
      CHECK(layer->left_grid().is_identity());
      continue;
    }
    CHECK(layer->left_grid().as<Uniform>()->scale == std::vector<float>{left / 7.5f});
  }
  CHECK_THROWS_AS(MinMax(1, 4), UsageError);
}
