// Methods on networks of the other family: GPTQ of vision models, grids of activations of language models.
#include <doctest/doctest.h>

#include "tests/calibration.h"

using namespace bcq;
using namespace bcq::test;

namespace {

std::unique_ptr<Model> to_solve(const std::string& fixture, bool has_grids) {
  return has_grids ? with_activation_grids(fixture) : load_model(fixture);
}

// GPTQ in the official order by its definition: the layers of a part have the weights they were loaded with while their
// inputs are taken, which parts that are quantized already have made.
void solve_directly(Model& model, const std::vector<Batch>& data, const GptqOptions& o) {
  struct Hessians : Observer {
    void input(const Layer& layer, const Tensor& x, const Tensor&) override {
      if (!layer.is_linear()) return;
      std::vector<double> h = hessian_of(x), &sum = all[&layer];
      sum.resize(h.size());
      for (size_t k = 0; k < h.size(); ++k) sum[k] += h[k] * static_cast<double>(x.dim(0));
    }
    std::map<const Layer*, std::vector<double>> all;
  };
  std::vector<Tensor> x(data.size());
  for (int i = -1; i <= model.depth(); ++i) {
    for (Layer* layer : model.layers(i))
      if (layer->is_linear()) layer->quantize({layer->left_grid(), {}, {}, nullptr, nullptr});
    Hessians hessians;
    for (size_t j = 0; j < data.size(); ++j) model.run({Precision::Fake, nullptr, &hessians}, i, data[j], x[j]);
    for (Layer* layer : model.layers(i)) {
      if (!layer->is_linear()) continue;
      const QuantizedWeight q = gptq(layer->weight.values(), hessians.all.at(layer), o, layer->name, kIgnore);
      layer->quantize({layer->left_grid(), q.grid, q.values, nullptr, nullptr});
    }
    for (size_t j = 0; j < data.size(); ++j) x[j] = model.run(kFake, i, data[j], x[j]);
  }
}

}  // namespace

TEST_CASE("GPTQ of vision models is that of its definition, and leaves the grids of activations as they are") {
  const Threads one(1);  // thousands of passes over a handful of values
  const std::vector<Batch> data = images(3, 12);
  for (const std::string& fixture : {kVit, kDeit, kSwin})
    for (const bool has_grids : {false, true}) {
      CAPTURE(fixture);
      CAPTURE(has_grids);
      auto model = to_solve(fixture, has_grids), expected = to_solve(fixture, has_grids);
      std::map<std::string, std::shared_ptr<const Quantized>> before;
      for (const Layer* layer : model->all_layers()) before[layer->name] = layer->quantized;
      const CalibrationResult result = quantize_gptq(*model, data, {options(4, 8)}, kSilent, kIgnore);
      REQUIRE(result.parts.size() == static_cast<size_t>(model->depth()) + 2);
      solve_directly(*expected, data, options(4, 8));
      const std::vector<Layer*> layers = model->all_layers(), want = expected->all_layers();
      double solved = 0, nearest = 0;
      size_t linear = 0, records = 0, differ = 0;
      for (const PartRecord& part : result.parts)
        for (const LayerRecord& record : part.layers) solved += record.solved, nearest += record.rounded, ++records;
      CHECK(solved < nearest);
      for (size_t l = 0; l < layers.size(); ++l) {
        CAPTURE(layers[l]->name);
        if (!layers[l]->is_linear()) {
          CHECK(layers[l]->quantized == before[layers[l]->name]);
          continue;
        }
        ++linear;
        REQUIRE(layers[l]->packed());
        CHECK(layers[l]->packed()->bits() == 4);
        const Tensor w = layers[l]->weight_in(Precision::Fake).values();
        CHECK(relative_error(w, want[l]->weight_in(Precision::Fake).values()) < 1e-5);
        differ += !same_bits(w, round_to_nearest(layers[l]->weight.values(), options(4, 8)).values);
        CHECK(is_identity(layers[l]->left_grid()) == (!has_grids || layers[l]->role == Role::Patch));
        const Tensor x = random({3, w.dim(1)}, 7, 2);
        const Grid grid = has_grids ? before[layers[l]->name]->left : Grid{};
        CHECK(same_bits(fake_quantize(layers[l]->left_grid(), x), fake_quantize(grid, x)));
      }
      CHECK(records == linear);
      CHECK(differ >= linear - 1);  // pixels that have nothing to do with each other are rounded to nearest
      CHECK(relative_error(model->forward(kFake, data[0]), expected->forward(kFake, data[0])) < 1e-4);
    }
}

TEST_CASE("GPTQ of vision models, compensated on the way: no mean error is left") {
  const Threads one(1);  // thousands of passes over a handful of values
  const std::vector<Batch> data = images(3, 12);
  for (const std::string& fixture : {kVit, kDeit, kSwin})
    for (const bool has_grids : {false, true})
      for (const bool block : {false, true})
        for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
          CAPTURE(fixture);
          CAPTURE(has_grids);
          auto plain = to_solve(fixture, has_grids), model = to_solve(fixture, has_grids);
          const BcOptions o = bc(shape, block);
          CHECK(quantize_gptq(*plain, data, {options(3, 8)}, kSilent, kIgnore).fitted() == 0);
          CHECK(quantize_gptq(*model, data, {options(3, 8)}, kSilent, kIgnore, nullptr, &o).fitted() > 0);
          CHECK(mean_error(*plain, data, shape, block) > 0.01);
          CHECK(mean_error(*model, data, shape, block) < 1e-5);
          // Layers of blocks after the first are solved for the inputs that compensated ones make.
          CHECK_FALSE(same_bits(plain->layers(1)[0]->weight_in(Precision::Fake).values(),
                                model->layers(1)[0]->weight_in(Precision::Fake).values()));
        }
}

namespace {

PtqOptions few_candidates(PtqOptions o) {
  o.eq_n = 8;
  return o;
}

// Four windows in one batch, so that what a layer is shown is the operands of one pass.
std::vector<Batch> one_batch(int64_t length) {
  std::vector<Batch> all = windows(4, length);
  for (size_t j = 1; j < all.size(); ++j) all[0].ids.insert(all[0].ids.end(), all[j].ids.begin(), all[j].ids.end());
  all[0].windows = 4;
  all.resize(1);
  return all;
}

// The largest mean error of a layer fed its float inputs, as a share of its largest output.
double error_on_float_inputs(const Model& model, const std::vector<Batch>& data, BcShape shape) {
  struct Errors : Observer {
    explicit Errors(BcShape s) : shape(s) {}
    void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
      means.try_emplace(&layer, RunningMean(shape)).first->second.update(y, layer.product(kFake, a, b));
      size[&layer] = std::max(size[&layer], max_abs(doubles(y)));
    }
    BcShape shape;
    std::map<const Layer*, RunningMean> means;
    std::map<const Layer*, double> size;
  } errors(shape);
  for (const Batch& batch : data) model.forward({Precision::Float, nullptr, &errors}, batch);
  double worst = 0;
  for (const auto& [layer, error] : errors.means)
    worst = std::max(worst, max_abs(doubles(error.mean())) / errors.size[layer]);
  return worst;
}

}  // namespace

TEST_CASE("BasePTQ of language models: each layer's grids are those of the operands it has in the float network") {
  for (const std::string& fixture : {kOpt, kBloom, kLlama}) {
    CAPTURE(fixture);
    const std::vector<Batch> data = one_batch(9);
    auto model = load_model(fixture), expected = load_model(fixture);
    const PtqOptions o = few_candidates(base_ptq(4, 5));
    Ptq method(o, kIgnore);
    calibrate(*model, data, {&method});
    struct Capture : Observer {
      void product(const Layer& layer, const Tensor& a, const Tensor&, const Tensor& y) override {
        operands[&layer] = {a, {}, y, {}, {}};
      }
      std::map<const Layer*, Operands> operands;
    } capture;
    expected->forward({Precision::Float, nullptr, &capture}, data[0]);
    const std::vector<Layer*> layers = model->all_layers(), want = expected->all_layers();
    for (size_t l = 0; l < layers.size(); ++l) {
      CAPTURE(layers[l]->name);
      const Operands& operands = capture.operands.at(want[l]);
      calibrate_layer(*want[l], operands, o);
      REQUIRE_FALSE(is_identity(layers[l]->left_grid()));
      const Tensor x = fake_quantize(layers[l]->left_grid(), operands.a);
      CHECK_FALSE(same_bits(x, operands.a));
      CHECK(same_bits(x, fake_quantize(want[l]->left_grid(), operands.a)));
      CHECK_FALSE(layers[l]->quantized->weight.empty());
      CHECK(same_bits(layers[l]->weight_in(Precision::Fake).values(), want[l]->weight_in(Precision::Fake).values()));
    }
    Ptq hessian(PtqOptions{4, 5}, kIgnore);  // of a language model there are no gradients
    CHECK_THROWS_AS(calibrate(*model, data, {&hessian}), UsageError);
  }
}

TEST_CASE("BasePTQ of language models, then compensated: no mean error is left on the stream it was measured on") {
  const Threads one(1);  // thousands of passes over a handful of values
  for (const std::string& fixture : {kOpt, kBloom, kLlama})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
      CAPTURE(fixture);
      const std::vector<Batch> data = windows(5, 9);
      const auto quantized = [&] {
        auto model = load_model(fixture);
        Ptq method(few_candidates(base_ptq(4, 5)), kIgnore);
        calibrate(*model, data, {&method});
        return model;
      };
      auto model = quantized();
      CHECK(error_on_float_inputs(*model, data, shape) > 1e-3);
      CHECK(compensate(*model, data, bc(shape, false)).fitted() > 0);
      CHECK(error_on_float_inputs(*model, data, shape) < 2e-6);
      for (const bool block : {false, true}) {
        model = quantized();
        CHECK(mean_error(*model, data, shape, block) > 0.01);
        CHECK(compensate(*model, data, bc(shape, block, Stream::Quantized)).fitted() > 0);
        CHECK(mean_error(*model, data, shape, block) < 1e-5);
      }
    }
}

TEST_CASE("grids and compensations in one calibration") {
  const Threads one(1);  // thousands of passes over a handful of values
  for (const std::string& fixture : {kOpt, kBloom, kVit, kSwin})
    for (const bool block : {false, true}) {
      CAPTURE(fixture);
      CAPTURE(block);
      auto together = load_model(fixture), apart = load_model(fixture);
      const std::vector<Batch> data = together->info().family == Family::Vision ? images(2, 2) : windows(3, 9);
      // BasePTQ looks at the float network alone: compensations change nothing of what it finds.
      for (const Stream stream : {Stream::Float, Stream::Quantized}) {
        const BcOptions o = bc(BcShape::Channel, block, stream);
        Ptq first(few_candidates(base_ptq(4, 5)), kIgnore), second(few_candidates(base_ptq(4, 5)), kIgnore);
        BiasCompensation compensation(o);
        const int64_t fitted = calibrate(*together, data, {&first, &compensation}).fitted();
        calibrate(*apart, data, {&second});
        CHECK(compensate(*apart, data, o).fitted() == fitted);
        CHECK(same_bits(left_behind(*together), left_behind(*apart)));
      }
      // EasyQuant sees what quantized layers make, here compensated ones.
      Ptq easy(few_candidates(easy_quant(4, 5)), kIgnore);
      BiasCompensation compensation(bc(BcShape::Channel, block, Stream::Quantized));
      calibrate(*together, data, {&easy, &compensation});
      CHECK(mean_error(*together, data, BcShape::Channel, block) < 1e-5);
      Ptq alone(few_candidates(easy_quant(4, 5)), kIgnore);
      calibrate(*apart, data, {&alone});
      CHECK(mean_error(*apart, data, BcShape::Channel, block) > 0.01);
    }
  Ptq hessian(PtqOptions{4, 5}, kIgnore);  // gradients are those of the float network, from the head back
  BiasCompensation compensation(bc(BcShape::Channel, false));
  CHECK_THROWS_AS(calibrate(*load_model(kVit), images(1, 8), {&hessian, &compensation}), UsageError);
}

// ---- Interruption ----------------------------------------------------------------------------------
