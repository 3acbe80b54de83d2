// BasePTQ, EasyQuant and PTQ4ViT on whole networks: what their layers are calibrated on, gradients block by block,
// threads and progress.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/nn/tape.h"
#include "quant/ptq4vit.h"
#include "tests/ptq4vit.h"
#include "tests/quantize.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The calibration data of every layer from one tape over the whole network, one draw of the noise probe.
struct WholeNetwork : Observer {
  Tape tape;
  std::vector<std::pair<const Layer*, Operands>> seen;
  std::vector<Tensor> outputs;

  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
    seen.emplace_back(&layer, Operands{a, layer.is_linear() ? Tensor{} : b, y, {}});
    outputs.push_back(y);
  }
  void run(const Model& model, const Tensor& images, uint32_t seed) {
    const Tensor z = model.forward({Precision::Float, &tape, this}, Batch{images, {}, 0, 0});
    std::mt19937 random(seed);
    Tensor dz(z.shape);
    for (int64_t b = 0; b < z.dim(0); ++b) {
      double sum = 0;
      for (int64_t c = 0; c < z.dim(1); ++c) sum += std::exp(static_cast<double>(z[b * z.dim(1) + c]));
      for (int64_t c = b * z.dim(1); c < (b + 1) * z.dim(1); ++c)
        dz[c] =
            static_cast<float>(std::exp(static_cast<double>(z[c])) / sum * (2 * ((random() + 0.5) / 4294967296.0) - 1));
    }
    tape.backward(z, dz);
    for (size_t i = 0; i < seen.size(); ++i) seen[i].second.g2 = squared(tape.grad(outputs[i]).clone());
  }
};

}  // namespace

TEST_CASE("ptq4vit: gradients block by block are those of the whole network") {
  for (const char* fixture : {"vit_tiny", "deit_tiny", "swin_tiny"}) {
    CAPTURE(fixture);
    const std::string path = std::string("tests/fixtures/") + fixture;
    const auto model = load_model(path), again = load_model(path);
    const Tensor images = tiny_images(11);  // more than one batch on the tape
    PtqOptions options{4, 4};
    options.probe = Probe::Noise;
    options.draws = 1;
    options.seed = 9;
    quantize_ptq(*model, images, options, kSilent, kQuiet);
    WholeNetwork whole;
    whole.run(*again, images, options.seed);
    const std::vector<Layer*> layers = model->all_layers(), others = again->all_layers();
    REQUIRE(whole.seen.size() == layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
      CAPTURE(layers[i]->name);
      REQUIRE(whole.seen[i].first == others[i]);
      calibrate_layer(*others[i], whole.seen[i].second, options);
      CHECK(scales_of(layers[i]->left_grid()) == scales_of(others[i]->left_grid()));
      CHECK(scales_of(right_grid(*layers[i])) == scales_of(right_grid(*others[i])));
    }
  }
}

namespace {

// What one layer gets when the network runs quantized.
struct OneLayer : Observer {
  explicit OneLayer(const std::string& n) : name(n) {}
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor&) override {
    if (layer.name == name) data = {a, layer.is_linear() ? Tensor{} : b, layer.product({Precision::Float}, a, b), {}};
  }
  std::string name;
  Operands data;
};

}  // namespace

TEST_CASE("easyquant: a layer is calibrated on what the quantized layers before it produce") {
  for (const char* fixture : {"vit_tiny", "swin_tiny"}) {
    CAPTURE(fixture);
    const auto model = load_model(std::string("tests/fixtures/") + fixture);
    const Tensor images = tiny_images(11);
    PtqOptions options = easy_quant(4, 4);
    options.eq_n = 20;
    quantize_ptq(*model, images, options, kSilent, kQuiet);
    const std::vector<Layer*> layers = model->all_layers();
    for (Layer* layer : layers) {
      CAPTURE(layer->name);
      OneLayer here(layer->name);
      model->forward({Precision::Fake, nullptr, &here}, Batch{images, {}, 0, 0});
      Layer again = *layer;
      again.quantized = nullptr;
      calibrate_layer(again, here.data, options);
      CHECK(scales_of(again.left_grid()) == scales_of(layer->left_grid()));
      CHECK(scales_of(right_grid(again)) == scales_of(right_grid(*layer)));
    }
    // Deep in the network that differs from the calibration on float inputs, and at its entrance it does not.
    const auto parallel = load_model(std::string("tests/fixtures/") + fixture);
    PtqOptions float_inputs = options;
    float_inputs.sequential = false;
    quantize_ptq(*parallel, images, float_inputs, kSilent, kQuiet);
    CHECK(scales_of(right_grid(*parallel->all_layers().front())) == scales_of(right_grid(*layers.front())));
    CHECK(scales_of(parallel->all_layers().back()->left_grid()) != scales_of(layers.back()->left_grid()));
  }
  PtqOptions options = easy_quant(4, 4);
  options.metric = Metric::Hessian;
  CHECK_THROWS_AS(quantize_ptq(*tiny(), tiny_images(1), options, kSilent, kQuiet), UsageError);
}

TEST_CASE("ptq4vit: deterministic, on any number of threads, and the probe matters") {
  const Tensor images = tiny_images(10);
  const auto run = [&](int count, const PtqOptions& options) {
    const Threads t(count);
    const auto model = tiny();
    quantize_ptq(*model, images, options, kSilent, kQuiet);
    std::vector<float> all;
    for (const Layer* layer : model->all_layers())
      for (const Grid* grid : {&layer->left_grid(), &right_grid(*layer)})
        for (const float s : scales_of(*grid)) all.push_back(s);
    return all;
  };
  PtqOptions options{4, 4};
  const std::vector<float> one = run(1, options);
  CHECK(one == run(2, options));
  options.seed = 4;
  CHECK(one != run(2, options));
  options.probe = Probe::Noise;
  CHECK(one != run(2, options));
  CHECK(run(1, base_ptq(4, 4)) == run(2, base_ptq(4, 4)));
}

TEST_CASE("ptq4vit: progress goes from nothing to all, few images are reported") {
  const auto model = tiny();
  std::vector<std::string> names, warnings;
  double last = 0;
  bool ordered = true, finished = false;
  const Progress progress = [&](const std::string& what, double done, double total) {
    names.push_back(what);
    ordered = ordered && done >= last && done <= total;
    last = done;
    finished = done == total;
  };
  quantize_ptq(*model, tiny_images(2), PtqOptions{8, 8}, progress,
               [&](const std::string& w) { warnings.push_back(w); });
  CHECK(ordered);
  CHECK(finished);
  CHECK(names.size() == model->all_layers().size() + 2);
  CHECK(names[1] == "calibration");  // one name, so that the time left is of the whole
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "images"));
  warnings.clear();
  quantize_ptq(*model, tiny_images(2), base_ptq(8, 8), progress, [&](const std::string& w) { warnings.push_back(w); });
  CHECK(warnings.empty());  // no gradients, nothing to warn of
}
