// The calibration loop beyond GPTQ's own order: compensation on either stream, the joint solve and its certificates.
#include <doctest/doctest.h>

#include "tests/calibration.h"

using namespace bcq;
using namespace bcq::test;

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
