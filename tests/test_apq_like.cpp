// APQ-like grids: chosen at the outputs of blocks.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "quant/apq_like.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const Warn kQuiet = [](const std::string&) {};

std::unique_ptr<Model> calibrated(const std::string& fixture, Method& method) {
  auto model = load_model(fixture);
  calibrate(*model, vision_batches(*model, pixels_of(fixture).pixels), {&method});
  return model;
}

}  // namespace

TEST_CASE("apq-like: what ends a block is chosen as by its own output, where all errors count") {
  for (const std::string& fixture : {kVit, kSwin}) {
    CAPTURE(fixture);
    const PtqOptions options = apq_like(4, 4);
    ApqLike method(options, 1, kQuiet);
    Ptq own(options, kQuiet);
    const auto a = calibrated(fixture, method), b = calibrated(fixture, own);
    int same = 0, layers = 0;
    for (int i = 0; i < a->depth(); ++i) {
      if (a->part(i).kind != Part::Kind::Block) continue;
      const Layer &x = *a->layers(i).back(), &y = *b->layers(i).back();
      REQUIRE(x.role == Role::Fc2);
      CHECK(as<TwinGelu>(x.left_grid()).pos == as<TwinGelu>(y.left_grid()).pos);
      CHECK(as<Uniform>(x.quantized->right).scale == as<Uniform>(y.quantized->right).scale);
      for (const Layer* layer : a->layers(i)) {
        CHECK(layer->is_quantized());
        if (layer->role != Role::AV) continue;
        const Asymmetric& grid = as<Asymmetric>(layer->left_grid());
        CHECK(grid.zero[0] == 0);
        CHECK(grid.scale[0] <= 1 / 15.f);
      }
      for (size_t k = 0; k + 1 < a->layers(i).size(); ++k) {
        if (!a->layers(i)[k]->is_linear()) continue;
        layers += 1;
        same += same_bits(a->layers(i)[k]->weight_in(Precision::Fake).values(),
                          b->layers(i)[k]->weight_in(Precision::Fake).values());
      }
    }
    CHECK(same < layers);  // others are not
  }
}

TEST_CASE("apq-like: the share of errors that counts has an effect, threads have none") {
  const auto run = [](double share) {
    ApqLike method(apq_like(4, 4), share, kQuiet);
    return calibrated(kVit, method)->forward({Precision::Fake}, pixels_of(kVit));
  };
  CHECK(same_on_two_threads([&] { return run(0.5); }));
  CHECK_FALSE(same_bits(run(1), run(0.001)));
}
