// The calibration loop beyond GPTQ's own order: compensation on either stream, the joint solve and its certificates,
// methods on networks of the other family, interruption.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "quant/moments.h"
#include "quant/ptq4vit.h"
#include "quant/refine.h"
#include "quant/weight_methods.h"
#include "tests/gptq_inputs.h"
#include "tests/quantize.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const std::string kOpt = "tests/fixtures/opt_tiny";
const std::string kVit = "tests/fixtures/vit_tiny", kDeit = "tests/fixtures/deit_tiny",
                  kSwin = "tests/fixtures/swin_tiny", kBloom = "tests/fixtures/bloom_tiny",
                  kLlama = "tests/fixtures/llama_tiny";
const Context kFake{Precision::Fake, nullptr, nullptr};
const Warn kIgnore = [](const std::string&) {};

std::vector<Batch> windows(int count, int64_t length, uint32_t seed = 1) {
  std::mt19937 bits(seed);
  std::vector<Batch> all(static_cast<size_t>(count));
  for (Batch& batch : all) {
    batch.windows = 1;
    batch.length = length;
    for (int64_t i = 0; i < length; ++i) batch.ids.push_back(static_cast<int32_t>(bits() % 53));
  }
  return all;
}

std::vector<Batch> images(int batches, int64_t size, uint32_t seed = 1) {
  std::vector<Batch> all(static_cast<size_t>(batches));
  for (Batch& batch : all) batch.pixels = random({size, 3, 12, 12}, seed++, 2);
  return all;
}

std::vector<Batch> data_of(const Model& model) {
  return model.info().family == Family::Vision ? images(3, 12) : windows(5, 9);
}

BcOptions bc(BcShape shape, bool block, Stream stream = Stream::Float) {
  BcOptions o;
  o.shape = shape;
  o.block = block;
  o.stream = stream;
  return o;
}

// Mean outputs of linear layers and of blocks over the batches, in double.
using Means = std::map<std::string, std::vector<double>>;
struct MeanOutputs : Observer {
  explicit MeanOutputs(BcShape s) : shape(s) {}
  void product(const Layer& s, const Tensor&, const Tensor&, const Tensor& y) override {
    if (s.is_linear()) add("layer " + s.name, y);
  }
  void add(const std::string& name, const Tensor& y) {
    std::vector<double>& mean = means[name];
    mean.resize(index(shape == BcShape::Position ? y.size() / y.dim(0) : y.dim(-1)));
    const double times = static_cast<double>(y.size()) / static_cast<double>(mean.size());
    for (int64_t i = 0; i < y.size(); ++i) mean[index(i) % mean.size()] += y[i] / times / batches;
  }
  BcShape shape;
  double batches = 0;
  Means means;
};

Means mean_outputs(Model& model, Precision precision, const std::vector<Batch>& data, BcShape shape) {
  MeanOutputs observer(shape);
  observer.batches = static_cast<double>(data.size());
  for (const Batch& batch : data) {
    Tensor x;
    for (int i = -1; i <= model.depth(); ++i) {
      x = model.run({precision, nullptr, &observer}, i, batch, x);
      if (model.kind(i) == Part::Kind::Block) observer.add("output " + std::to_string(i), x);
    }
  }
  return observer.means;
}

// The largest difference of means between the float network and the quantized one, each run on its own: of blocks'
// outputs, or of linear layers.
double mean_error(Model& model, const std::vector<Batch>& data, BcShape shape, bool of_blocks) {
  const Means want = mean_outputs(model, Precision::Float, data, shape);
  const Means got = mean_outputs(model, Precision::Fake, data, shape);
  double worst = 0;
  for (const auto& [name, mean] : want)
    if (contains(name, "output") == of_blocks) worst = std::max(worst, relative_error(got.at(name), mean));
  return worst;
}

std::unique_ptr<Model> rounded(int bits, const std::string& fixture = kOpt) {
  auto model = load_model(fixture);
  quantize_rtn(*model, {bits, -1});
  return model;
}

// Everything a calibration leaves in a model, as numbers.
Tensor left_behind(Model& model) {
  std::vector<float> all;
  const auto append = [&](const Tensor& t) {
    if (!t.empty()) all.insert(all.end(), t.data, t.data + t.size());
  };
  for (const Layer* layer : model.all_layers())
    if (layer->quantized && !layer->quantized->weight.empty()) append(layer->quantized->weight.values());
  for (const Point& point : model.all_points()) {
    for (const Bias* bias : point.folds_into) append(bias->compensated);
    for (const Tensor* added : point.added) append(*added);
  }
  return Tensor({static_cast<int64_t>(all.size())}, all);
}

GptqMethodOptions joint() {
  GptqMethodOptions o{options(3, 8)};
  o.sequential = o.centred = true;
  o.target = Target::Float;
  o.refine = 5;
  return o;
}
const BcOptions kJointBc = bc(BcShape::Channel, true);

// What compensate() does on the float stream, by its definition.
int64_t compensate_directly(Model& model, const std::vector<Batch>& data, const BcOptions& o) {
  struct Errors : Observer {
    explicit Errors(BcShape s) : shape(s) {}
    void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
      if (!layer.is_quantized()) return;
      means.try_emplace(&layer, RunningMean(shape)).first->second.update(y, layer.product(kFake, a, b));
    }
    BcShape shape;
    std::map<const Layer*, RunningMean> means;
  };
  int64_t fitted = 0;
  const auto fit = [&](const Point& point, const RunningMean& error) {
    point.add(error.mean());
    fitted += error.mean().size();
  };
  std::vector<Tensor> x(data.size()), y(data.size());
  for (int i = -1; i <= model.depth(); ++i) {
    const Part part = model.part(i);
    Errors errors(o.shape);
    for (size_t j = 0; j < data.size(); ++j) y[j] = model.run({Precision::Float, nullptr, &errors}, i, data[j], x[j]);
    for (Layer* layer : part.layers())
      if (layer->is_quantized()) fit(Model::point_of(*layer), errors.means.at(layer));
    RunningMean error(o.shape);
    if (o.block && part.kind == Part::Kind::Block) {
      for (size_t j = 0; j < data.size(); ++j) error.update(y[j], model.run(kFake, i, data[j], x[j]));
      fit(part.output, error);
    }
    x = y;
  }
  return fitted;
}

}  // namespace

TEST_CASE("of weights alone, errors by mean inputs are those of products") {
  const Threads one(1);  // thousands of passes over a handful of values
  // Blocks that are sums, whose error is had from mean inputs, too, and blocks that are not.
  for (const std::string name :
       {"opt_tiny", "opt_post_tiny", "bloom_tiny", "bloom_residual_tiny", "vit_tiny", "deit_tiny", "swin_tiny"})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position})
      for (const bool block : {false, true}) {
        CAPTURE(name);
        CAPTURE(block);
        CAPTURE((shape == BcShape::Position));
        const std::string fixture = "tests/fixtures/" + name;
        auto expected = rounded(3, fixture), model = rounded(3, fixture);
        const std::vector<Batch> data = data_of(*model);
        const Tensor uncompensated = model->forward(kFake, data[0]);
        const int64_t fitted = compensate_directly(*expected, data, bc(shape, block));
        CHECK(compensate(*model, data, bc(shape, block)).fitted() == fitted);
        CHECK(relative_error(left_behind(*model), left_behind(*expected)) < 1e-5);
        CHECK(relative_error(model->forward(kFake, data[0]), expected->forward(kFake, data[0])) < 1e-5);
        CHECK(relative_error(uncompensated, expected->forward(kFake, data[0])) > 1e-3);
      }
}

TEST_CASE("on the quantized stream no mean error is left at any layer, or at any block's end") {
  const Threads one(1);  // thousands of passes over a handful of values
  for (const std::string& fixture : {kOpt, kVit, kSwin})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position})
      for (const bool block : {false, true}) {
        CAPTURE(fixture);
        auto model = rounded(3, fixture);
        const std::vector<Batch> data = data_of(*model);
        CHECK(mean_error(*model, data, shape, block) > 0.01);
        compensate(*model, data, bc(shape, block, Stream::Quantized));
        CHECK(mean_error(*model, data, shape, block) < 1e-5);
      }
}

TEST_CASE("a quantizer that changes nothing leaves nothing to compensate; other outputs are refused") {
  auto model = load_model(kOpt);
  CHECK(compensate(*model, windows(2, 5), bc(BcShape::Channel, false, Stream::Quantized)).fitted() == 0);
  for (bool BcOptions::*output : {&BcOptions::mlp, &BcOptions::attention, &BcOptions::stage, &BcOptions::model}) {
    BcOptions o = bc(BcShape::Channel, false);
    o.*output = true;
    CHECK_THROWS_AS(compensate(*model, windows(2, 5), o), UsageError);
  }
}

TEST_CASE("a bias per position serves shorter windows and refuses longer ones") {
  auto model = rounded(3);
  compensate(*model, windows(3, 6), bc(BcShape::Position, true, Stream::Quantized));
  model->forward(kFake, windows(1, 4)[0]);
  CHECK(contains(message_of<Error>([&] { model->forward(kFake, windows(1, 7)[0]); }), "fewer positions"));
}

TEST_CASE("the joint solve: each layer's errors only fall, and are those of a plain sum") {
  for (const bool centred : {false, true}) {
    const std::vector<Batch> data = windows(12, 16);
    auto model = load_model(kOpt);
    GptqMethodOptions o = joint();
    o.centred = centred;
    o.target = Target::Own;
    const CalibrationResult result = quantize_gptq(*model, data, o, kSilent, kIgnore, nullptr, &kJointBc);
    REQUIRE(result.parts.size() == static_cast<size_t>(model->depth()) + 1);
    CHECK(result.parts[0].layers.empty());  // of the embedding
    CHECK(result.parts[1].layers.size() == 6);
    CHECK(result.fitted() > 0);
    // The inputs of the first block's query on this stream are those of the float network.
    struct First : Observer {
      void input(const Layer& s, const Tensor& x, const Tensor&) override {
        if (s.role == Role::Query && inputs.size() < 12) inputs.push_back(x);
      }
      std::vector<Tensor> inputs;
    } first;
    for (const Batch& batch : data) model->block({Precision::Fake, nullptr, &first}, 0, model->embed(kFake, batch));
    const Layer& query = *model->layers(0)[0];
    const Tensor w = query.weight.values(), q = query.weight_in(Precision::Fake).values();
    const int64_t n = w.dim(1);
    double error = 0, compensated = 0, tokens = 0;
    for (int64_t r = 0; r < w.dim(0); ++r) {
      double sum = 0, squares = 0;
      tokens = 0;
      for (const Tensor& x : first.inputs)
        for (int64_t t = 0; t < x.rows(); ++t, ++tokens) {
          double e = 0;
          for (int64_t c = 0; c < n; ++c) e += (static_cast<double>(q[r * n + c]) - w[r * n + c]) * x[t * n + c];
          sum += e;
          squares += e * e;
        }
      error += squares / tokens - (centred ? sum / tokens * sum / tokens : 0);
      compensated += squares / tokens - sum / tokens * sum / tokens;
    }
    const LayerRecord& record = result.parts[1].layers[0];
    CHECK(record.layer == query.name);
    CHECK(std::abs(record.refined / (error / static_cast<double>(w.dim(0))) - 1) < 1e-4);
    CHECK(std::abs(record.compensated / (compensated / static_cast<double>(w.dim(0))) - 1) < 1e-4);

    for (const PartRecord& part : result.parts)
      for (const LayerRecord& layer : part.layers) {
        CHECK(layer.refined <= layer.solved * (1 + 1e-12));
        CHECK(layer.compensated <= layer.refined * (1 + 1e-9));
        if (centred) CHECK(layer.compensated == doctest::Approx(layer.refined));
        CHECK(layer.signal > layer.solved);
      }
  }
}

TEST_CASE("for inputs off centre whose bias is fitted afterwards, the centred Hessian errs less than the raw one") {
  double raw = 0, centred = 0;
  for (uint32_t seed = 0; seed < 5; ++seed) {
    const Tensor w = random({32, 24}, 40 + seed), shift = random({24}, 50 + seed, 3);
    Tensor x = correlated(2, 100, 24, 60 + 3 * seed);
    for (int64_t i = 0; i < x.size(); ++i) x[i] += shift[i % 24];
    Moments moments(24);
    moments.add(x);
    const std::vector<double> covariance = moments.second(true);
    const auto error = [&](const std::vector<double>& hessian) {
      return quadratic_error(gptq(w, hessian, options(3), "site", kNoWarning).values, w, covariance);
    };
    raw += error(moments.second());
    centred += error(covariance);
  }
  CHECK(centred < raw);
}

TEST_CASE("a calibration gives the same bits on one and on two threads") {
  CHECK(same_on_two_threads([] {
    auto model = load_model(kOpt);
    quantize_gptq(*model, windows(5, 16), joint(), kSilent, kIgnore, nullptr, &kJointBc);
    return left_behind(*model);
  }));
  CHECK(same_on_two_threads([] {
    auto model = rounded(3);
    compensate(*model, windows(5, 16), bc(BcShape::Position, true));
    return left_behind(*model);
  }));
}

// ---- GPTQ of vision models, grids of language models -----------------------------------------------

namespace {

// A vision model with PTQ4ViT's grids, twin ones included, and weights of 8 bits. They are searched for once.
std::unique_ptr<Model> with_activation_grids(const std::string& fixture) {
  static std::map<std::string, std::vector<std::shared_ptr<const Quantized>>> found;
  auto model = load_model(fixture);
  std::vector<std::shared_ptr<const Quantized>>& grids = found[fixture];
  const std::vector<Layer*> layers = model->all_layers();
  if (grids.empty()) {
    PtqOptions o = ptq4vit(8, 5);
    o.metric = Metric::Cosine;
    o.eq_n = 8;
    o.rounds = 1;
    quantize_ptq(*model, images(1, 4)[0].pixels, o, kSilent, kIgnore);
    for (const Layer* layer : layers) grids.push_back(layer->quantized);
  }
  for (size_t l = 0; l < layers.size(); ++l) layers[l]->quantized = grids[l];
  return model;
}

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
    Ptq hessian(ptq4vit(4, 5), kIgnore);  // of a language model there are no gradients
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
  Ptq hessian(ptq4vit(4, 5), kIgnore);  // gradients are those of the float network, from the head back
  BiasCompensation compensation(bc(BcShape::Channel, false));
  CHECK_THROWS_AS(calibrate(*load_model(kVit), images(1, 8), {&hessian, &compensation}), UsageError);
}

// ---- Interruption ----------------------------------------------------------------------------------

namespace {

// Keeps what a part's layers and its output hold, and breaks off when `left` parts are done.
struct Memory : PartStore {
  struct Kept {
    std::vector<Layer> layers;
    std::vector<Bias> biases;
    std::vector<Tensor> added;
    PartRecord record;
  };
  bool has(const std::string& calibration, int i) const override { return kept.count({calibration, i}) != 0; }
  bool load(const std::string& calibration, Model& model, int i, PartRecord& record) override {
    const auto found = kept.find({calibration, i});
    if (found == kept.end()) return false;
    const Kept& from = found->second;
    record = from.record;
    for (size_t k = 0; k < from.layers.size(); ++k) *model.layers(i)[k] = from.layers[k];
    const Point output = model.part(i).output;
    for (size_t k = 0; k < from.biases.size(); ++k) *output.folds_into[k] = from.biases[k];
    for (size_t k = 0; k < from.added.size(); ++k) *output.added[k] = from.added[k];
    return true;
  }
  void done(const std::string& calibration, Model& model, int i, const PartRecord& record) override {
    CHECK(kept.count({calibration, i}) == 0);  // no part is calibrated twice
    Kept& part = kept[{calibration, i}];
    for (const Layer* layer : model.layers(i)) part.layers.push_back(*layer);
    for (const Bias* bias : model.part(i).output.folds_into) part.biases.push_back(*bias);
    for (const Tensor* added : model.part(i).output.added) part.added.push_back(*added);
    part.record = record;
    if (--left == 0) throw Error("interrupted");
  }
  std::map<std::pair<std::string, int>, Kept> kept;
  int left = 1000;
};

// Whether a run that is interrupted after any of its parts and started again ends in the bits of one that is not.
void check_interruptions(const std::function<std::unique_ptr<Model>()>& start,
                         const std::function<int64_t(Model&, PartStore*)>& run, int parts) {
  auto whole = start();
  const int64_t fitted = run(*whole, nullptr);
  const Tensor expected = left_behind(*whole);
  for (int after = 1; after <= parts; ++after) {
    CAPTURE(after);
    Memory memory;
    memory.left = after;
    auto first = start(), second = start();
    CHECK(message_of<Error>([&] { run(*first, &memory); }) == "interrupted");
    CHECK_FALSE((after < parts && same_bits(left_behind(*first), expected)));
    CHECK(run(*second, &memory) == fitted);
    CHECK(static_cast<int>(memory.kept.size()) == parts);
    CHECK(same_bits(left_behind(*second), expected));
  }
}

}  // namespace

TEST_CASE("a calibration interrupted after any block and started again ends in the same bits") {
  const std::vector<Batch> data = windows(4, 16);
  const auto separate = [&](Model& model, PartStore* store) {
    const CalibrationResult solved = quantize_gptq(model, data, {options(3)}, kSilent, kIgnore, store);
    return solved.fitted() + compensate(model, data, bc(BcShape::Channel, true), kSilent, store).fitted();
  };
  const auto together = [&](Model& model, PartStore* store) {
    return quantize_gptq(model, data, joint(), kSilent, kIgnore, store, &kJointBc).fitted();
  };
  const auto start = [] { return load_model(kOpt); };
  check_interruptions(start, separate, 2 * start()->depth());
  check_interruptions(start, together, start()->depth());
}

TEST_CASE("a compensation of a vision model interrupted after any part and started again ends in the same bits") {
  const Threads one(1);  // thousands of passes over a handful of values
  for (const std::string& fixture : {kVit, kDeit, kSwin})
    for (const Stream stream : {Stream::Float, Stream::Quantized})
      for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
        if (fixture == kDeit && shape == BcShape::Channel) continue;  // but for two heads it is a ViT
        CAPTURE(fixture);
        BcOptions o = bc(shape, true, stream);
        o.attention = o.mlp = o.model = true;
        o.downsample = o.stage = fixture == kSwin;
        const std::vector<Batch> data = images(2, 2);
        check_interruptions(
            [&] { return with_activation_grids(fixture); },
            [&](Model& model, PartStore* store) { return compensate(model, data, o, kSilent, store).fitted(); },
            load_model(fixture)->depth() + 2);
      }
}

TEST_CASE("GPTQ and compensation of a vision model interrupted after any part end in the same bits") {
  const Threads one(1);  // thousands of passes over a handful of values
  const std::vector<Batch> data = images(3, 4);
  const BcOptions o = bc(BcShape::Position, true);
  check_interruptions([] { return with_activation_grids(kSwin); },
                      [&](Model& model, PartStore* store) {
                        return quantize_gptq(model, data, joint(), kSilent, kIgnore, store, &o).fitted();
                      },
                      load_model(kSwin)->depth() + 2);
}

TEST_CASE("GPTQ: the error on held-out windows is that of the rounded weights about the mean input of all windows") {
  const auto model = load_model("tests/fixtures/opt_tiny");
  std::vector<Batch> data;
  for (int j = 0; j < 8; ++j) {
    Batch window;
    window.windows = 1;
    window.length = 12;
    for (int t = 0; t < 12; ++t) window.ids.push_back((7 * j + 5 * t + j * t) % 40);
    data.push_back(window);
  }
  struct First : Observer {
    void input(const Layer& layer, const Tensor& x, const Tensor&) override {
      if (inputs.empty() || &layer == of) of = &layer, inputs.push_back(x);
    }
    const Layer* of = nullptr;
    std::vector<Tensor> inputs;
  } first;
  for (const Batch& window : data) model->forward({Precision::Float, nullptr, &first}, window);
  GptqMethodOptions o{options(3, -1)};
  o.sequential = true;
  o.held_out = 0.25;
  Gptq method(o, [](const std::string&) {});
  const CalibrationResult result = calibrate(*model, data, {&method});
  const LayerRecord* record = nullptr;
  for (const PartRecord& part : result.parts)
    for (const LayerRecord& layer : part.layers) {
      CHECK(layer.held_out > 0);
      if (layer.layer == first.of->name) record = &layer;
    }
  REQUIRE(record);
  const Tensor q = first.of->weight_in(Precision::Fake).values(), w = first.of->weight.values();
  const int64_t n = w.dim(1), tokens = 12;
  double sum = 0;
  for (int64_t r = 0; r < w.dim(0); ++r) {
    std::vector<double> errors;  // of all tokens, less what the bias takes away
    double mean = 0;
    for (const Tensor& x : first.inputs)
      for (int64_t t = 0; t < tokens; ++t) {
        double e = 0;
        for (int64_t c = 0; c < n; ++c) e += (static_cast<double>(q[r * n + c]) - w[r * n + c]) * x[t * n + c];
        errors.push_back(e);
        mean += e / static_cast<double>(8 * tokens);
      }
    for (size_t i = 0; i < errors.size(); ++i)
      if (i / 12 % 4 == 1) sum += (errors[i] - mean) * (errors[i] - mean);
  }
  CHECK(record->held_out == doctest::Approx(sum / static_cast<double>(2 * tokens * w.dim(0))).epsilon(1e-4));
}
