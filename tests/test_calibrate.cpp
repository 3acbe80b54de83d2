// The walk over blocks beyond GPTQ's own order: compensation on either stream, the joint solve and its
// certificates, interruption.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "quant/moments.h"
#include "quant/refine.h"
#include "quant/weight_methods.h"
#include "tests/gptq_inputs.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const std::string kOpt = "tests/fixtures/opt_tiny";
const Context kFake{Precision::Fake, nullptr, nullptr};

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

BcOptions bc(BcShape shape, bool block) {
  BcOptions o;
  o.shape = shape;
  o.block = block;
  return o;
}

// Mean output of every site and block over the windows, in double.
using Means = std::map<std::string, std::vector<double>>;
struct MeanOutputs : Observer {
  explicit MeanOutputs(BcShape s) : shape(s) {}
  void product(const Layer& s, const Tensor&, const Tensor&, const Tensor& y) override {
    if (s.is_linear()) add(s.name, y);
  }
  void add(const std::string& name, const Tensor& y) {
    const int64_t C = y.dim(-1), T = y.rows();
    std::vector<double>& mean = means[name];
    mean.resize(index(shape == BcShape::Position ? T * C : C));
    for (int64_t i = 0; i < y.size(); ++i)
      mean[index(i) % mean.size()] += y[i] / (shape == BcShape::Position ? 1. : static_cast<double>(T)) / windows;
  }
  BcShape shape;
  double windows = 0;
  Means means;
};

Means mean_outputs(const Model& model, Precision precision, const std::vector<Batch>& data, BcShape shape) {
  MeanOutputs observer(shape);
  observer.windows = static_cast<double>(data.size());
  for (const Batch& batch : data) {
    Tensor x = model.embed({precision, nullptr, &observer}, batch);
    for (int i = 0; i < model.depth(); ++i) {
      x = model.block({precision, nullptr, &observer}, i, x);
      observer.add("block " + std::to_string(i), x);
    }
  }
  return observer.means;
}

std::unique_ptr<Model> rounded(int bits, const std::string& fixture = kOpt) {
  auto model = load_model(fixture);
  quantize_rtn(*model, {bits, -1});
  return model;
}

// Everything a walk leaves in a model, as numbers.
Tensor left_behind(Model& model) {
  std::vector<float> all;
  const auto append = [&](const Tensor& t) {
    if (!t.empty()) all.insert(all.end(), t.data, t.data + t.size());
  };
  for (const Layer* site : model.all_layers()) {
    if (!site->weight_hat.empty()) append(site->weight_in(Precision::Fake).values());
    append(site->bias.compensated);
    append(site->added);
  }
  for (const Tensor& b : model.block_bc) append(b);
  return Tensor({static_cast<int64_t>(all.size())}, all);
}

GptqMethodOptions joint() {
  GptqMethodOptions o{options(3, 8)};
  o.sequential = o.centred = o.float_target = true;
  o.refine = 5;
  o.bc = bc(BcShape::Channel, true);
  return o;
}

}  // namespace

TEST_CASE("on the float stream compensate_blocks finds the biases of compensate") {
  // Blocks that are sums, whose error the walk has from mean inputs, and blocks that are not.
  for (const char* name : {"opt_tiny", "opt_post_tiny", "bloom_tiny", "bloom_residual_tiny"})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position})
      for (const bool block : {false, true}) {
        CAPTURE(name);
        const std::string fixture = std::string("tests/fixtures/") + name;
        const std::vector<Batch> data = windows(5, 9);
        auto expected = rounded(3, fixture), model = rounded(3, fixture);
        const int64_t fitted = compensate(*expected, data, bc(shape, block), kSilent);
        CHECK(compensate_blocks(*model, data, bc(shape, block), Stream::Float, kSilent).fitted() == fitted);
        CHECK(relative_error(left_behind(*model), left_behind(*expected)) < 1e-5);
        CHECK(relative_error(model->forward(kFake, data[0]), expected->forward(kFake, data[0])) < 1e-5);
      }
}

TEST_CASE("on the quantized stream no mean error is left at any site, or at any block's end") {
  for (const BcShape shape : {BcShape::Channel, BcShape::Position})
    for (const bool block : {false, true}) {
      const std::vector<Batch> data = windows(5, 9);
      auto model = rounded(3);
      const Means want = mean_outputs(*model, Precision::Float, data, shape);
      const auto largest = [&] {
        double worst = 0;
        const Means got = mean_outputs(*model, Precision::Fake, data, shape);
        for (const auto& [name, mean] : want)
          if (contains(name, "block") == block) worst = std::max(worst, relative_error(got.at(name), mean));
        return worst;
      };
      CHECK(largest() > 0.01);
      compensate_blocks(*model, data, bc(shape, block), Stream::Quantized, kSilent);
      CHECK(largest() < 1e-5);
    }
}

TEST_CASE("a quantizer that changes nothing leaves nothing to compensate; other outputs are refused") {
  auto model = load_model(kOpt);
  CHECK(compensate_blocks(*model, windows(2, 5), bc(BcShape::Channel, false), Stream::Quantized, kSilent).fitted() ==
        0);
  BcOptions o = bc(BcShape::Channel, false);
  o.mlp = true;
  CHECK_THROWS_AS(compensate_blocks(*model, windows(2, 5), o, Stream::Float, kSilent), UsageError);
}

TEST_CASE("a bias per position serves shorter windows and refuses longer ones") {
  auto model = rounded(3);
  compensate_blocks(*model, windows(3, 6), bc(BcShape::Position, true), Stream::Quantized, kSilent);
  model->forward(kFake, windows(1, 4)[0]);
  CHECK(contains(message_of<Error>([&] { model->forward(kFake, windows(1, 7)[0]); }), "fewer positions"));
}

TEST_CASE("the joint solve: each layer's errors only fall, and are those of a plain sum") {
  for (const bool centred : {false, true}) {
    const std::vector<Batch> data = windows(12, 16);
    auto model = load_model(kOpt);
    GptqMethodOptions o = joint();
    o.centred = centred;
    o.float_target = false;
    const CalibrationResult result = quantize_gptq(*model, data, o, kSilent, [](const std::string&) {});
    REQUIRE(result.blocks.size() == static_cast<size_t>(model->depth()));
    CHECK(result.fitted() > 0);
    // The inputs of the first block's query on this stream are those of the float network.
    struct First : Observer {
      void input(const Layer& s, const Tensor& x) override {
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
    const LayerRecord& record = result.blocks[0].layers[0];
    CHECK(record.site == query.name);
    CHECK(std::abs(record.refined / (error / static_cast<double>(w.dim(0))) - 1) < 1e-4);
    CHECK(std::abs(record.compensated / (compensated / static_cast<double>(w.dim(0))) - 1) < 1e-4);

    for (const PartRecord& block : result.blocks)
      for (const LayerRecord& layer : block.layers) {
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

TEST_CASE("a walk gives the same bits on one and on two threads") {
  CHECK(same_on_two_threads([] {
    auto model = load_model(kOpt);
    quantize_gptq(*model, windows(5, 16), joint(), kSilent, [](const std::string&) {});
    return left_behind(*model);
  }));
  CHECK(same_on_two_threads([] {
    auto model = rounded(3);
    compensate_blocks(*model, windows(5, 16), bc(BcShape::Position, true), Stream::Float, kSilent);
    return left_behind(*model);
  }));
}

namespace {

// Keeps what a block's sites hold, and breaks off when `left` blocks are done.
struct Memory : PartStore {
  struct Kept {
    std::vector<Layer> sites;
    PartRecord record;
  };
  bool load(const std::string& walk, Model& model, int i, PartRecord& record) override {
    const auto found = kept.find({walk, i});
    if (found == kept.end()) return false;
    record = found->second.record;
    for (size_t s = 0; s < found->second.sites.size(); ++s) *model.layers(i)[s] = found->second.sites[s];
    return true;
  }
  void done(const std::string& walk, Model& model, int i, const PartRecord& record) override {
    Kept& block = kept[{walk, i}];
    for (const Layer* site : model.layers(i)) block.sites.push_back(*site);
    block.record = record;
    if (--left == 0) throw Error("interrupted");
  }
  std::map<std::pair<std::string, int>, Kept> kept;
  int left = 1000;
};

}  // namespace

TEST_CASE("a walk interrupted after any block and started again ends in the same bits") {
  const std::vector<Batch> data = windows(4, 16);
  const auto separate = [&](Model& model, PartStore* store) {
    const CalibrationResult solved = quantize_gptq(
        model, data, {options(3)}, kSilent, [](const std::string&) {}, store);
    return solved.fitted() +
           compensate_blocks(model, data, bc(BcShape::Channel, true), Stream::Float, kSilent, store).fitted();
  };
  const auto together = [&](Model& model, PartStore* store) {
    return quantize_gptq(
               model, data, joint(), kSilent, [](const std::string&) {}, store)
        .fitted();
  };
  const auto check = [&](const std::function<int64_t(Model&, PartStore*)>& run, int walks) {
    auto whole = load_model(kOpt);
    const int64_t fitted = run(*whole, nullptr);
    for (int after = 1; after <= walks * whole->depth(); ++after) {
      Memory memory;
      memory.left = after;
      auto first = load_model(kOpt), second = load_model(kOpt);
      CHECK(message_of<Error>([&] { run(*first, &memory); }) == "interrupted");
      CHECK(run(*second, &memory) == fitted);
      CHECK(same_bits(left_behind(*second), left_behind(*whole)));
    }
  };
  check(separate, 2);
  check(together, 1);
}
