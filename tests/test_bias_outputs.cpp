// Bias compensation of what is larger than a layer's output: branches, blocks, stages and the network; and the errors
// of outputs that are reported.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/nn/ops.h"
#include "quant/bias_comp.h"
#include "quant/ptq4vit.h"
#include "tests/compensated.h"
#include "tests/quantize.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// Error of the chains that end in one role, fed their float inputs.
struct ChainError : Observer {
  ChainError(BcShape s, Role r) : shape(s), role(r) {}
  void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch& body) override {
    if (last.role != role) return;
    means.try_emplace(last.name, RunningMean(shape)).first->second.update(y, body(kFake, x));
    size = std::max(size, max_abs(doubles(y)));
  }
  BcShape shape;
  Role role;
  std::map<std::string, RunningMean> means;
  double size = 0;
};

// Mean error of blocks first ... last run quantized from their float input; first < 0: of the whole network.
double part_error(const Model& model, BcShape shape, const std::vector<Batch>& data, int first, int last) {
  RunningMean error(shape);
  double size = 0;
  for (const Batch& batch : data) {
    Tensor f = first < 0 ? model.forward(kFloat, batch) : model.embed(kFloat, batch);
    Tensor q = first < 0 ? model.forward(kFake, batch) : Tensor{};
    for (int i = 0; first >= 0 && i <= last; ++i) {
      if (i == first) q = f;
      f = model.block(kFloat, i, f);
      if (i >= first) q = model.block(kFake, i, q);
    }
    error.update(f, q);
    size = std::max(size, max_abs(doubles(f)));
  }
  return max_abs(doubles(error.mean())) / size;
}

}  // namespace

TEST_CASE("chains, merges, stages and the network's output: no mean error is left where a bias was fitted") {
  const std::string swin = "tests/fixtures/swin_tiny";  // blocks 0, 1, merge 2, block 3: stages 0-2 and 3
  const auto data = images(3, 4);
  const auto only = [](BcShape shape) {
    BcOptions o = options(shape);
    o.conv = o.linear = o.matmul = false;
    return o;
  };
  for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
    for (const std::string& fixture : {kVit, swin}) {
      CAPTURE(fixture);
      const auto model = quantized(fixture, data);
      BcOptions o = only(shape);
      o.attention = true;
      CHECK(compensate(*model, data, o, kSilent).fitted() > 0);
      ChainError attention(shape, Role::Proj);
      for (const Batch& batch : data) model->forward({Precision::Float, nullptr, &attention}, batch);
      CHECK(attention.means.size() == (fixture == kVit ? 2u : 3u));
      for (const auto& entry : attention.means) CHECK(max_abs(doubles(entry.second.mean())) < 2e-6 * attention.size);

      o.mlp = true;  // over what is there: attention finds nothing left
      compensate(*model, data, o, kSilent);
      ChainError mlp(shape, Role::Fc2);
      for (const Batch& batch : data) model->forward({Precision::Float, nullptr, &mlp}, batch);
      for (const auto& entry : mlp.means) CHECK(max_abs(doubles(entry.second.mean())) < 2e-6 * mlp.size);
    }
    BcOptions o = only(shape);
    o.downsample = true;
    auto model = quantized(swin, data);
    CHECK(part_error(*model, shape, data, 2, 2) > 1e-4);
    compensate(*model, data, o, kSilent);
    CHECK(part_error(*model, shape, data, 2, 2) < 2e-6);

    o = options(shape, true);
    o.stage = true;
    model = quantized(swin, data);
    compensate(*model, data, o, kSilent);
    CHECK(part_error(*model, shape, data, 0, 2) < 2e-6);
    CHECK(part_error(*model, shape, data, 3, 3) < 2e-6);
    CHECK(part_error(*model, shape, data, 0, 0) < 2e-6);  // a block before the stage's end keeps its own

    o.stream = Stream::Quantized;  // a stage is entered by what the quantized one before it makes
    model = quantized(swin, data);
    compensate(*model, data, o, kSilent);
    RunningMean error(shape);
    double size = 0;
    for (const Batch& batch : data) {
      Tensor f = model->embed(kFloat, batch), q = model->embed(kFake, batch);
      for (int i = 0; i < model->depth(); ++i) f = model->block(kFloat, i, f), q = model->block(kFake, i, q);
      error.update(f, q);
      size = std::max(size, max_abs(doubles(f)));
    }
    CHECK(max_abs(doubles(error.mean())) < 2e-6 * size);

    for (const std::string& fixture : {kVit, swin, std::string("tests/fixtures/deit_tiny")}) {
      CAPTURE(fixture);
      o = options(shape);
      o.model = true;
      model = quantized(fixture, data);
      CHECK(part_error(*model, shape, data, -1, 0) > 1e-4);
      compensate(*model, data, o, kSilent);
      CHECK(part_error(*model, shape, data, -1, 0) < 2e-6);
    }
  }
  BcOptions o = options(BcShape::Channel);
  o.stage = true;
  CHECK_THROWS_AS(compensate(*quantized(kVit, data), data, o, kSilent), UsageError);
  o.stage = false;
  o.model = true;
  CHECK_THROWS_AS(compensate(*quantized_opt(3), windows(1, 1, 5), o, kSilent), UsageError);
}

TEST_CASE("output_errors: what compensation takes off an output's error is the square of its bias") {
  const auto data = images(2, 3);
  const auto model = quantized("tests/fixtures/swin_tiny", data);
  const auto before = output_errors(*model, data, kSilent);
  compensate(*model, data, options(BcShape::Channel), kSilent);
  const auto after = output_errors(*model, data, kSilent);
  REQUIRE(before.size() == after.size());
  size_t sites = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    CAPTURE(before[i].name);
    CHECK(before[i].name == after[i].name);
    CHECK(before[i].signal == after[i].signal);
    const Layer* site = before[i].layer;
    if (site == nullptr) continue;
    CHECK(site == model->all_layers()[sites++]);
    CHECK(before[i].name == site->name);
    CHECK(before[i].signal > before[i].error);
    CHECK(before[i].error - after[i].error ==
          doctest::Approx(site->bias.loaded.empty()
                              ? mean_square(site->added.empty() ? site->bias.compensated : site->added)
                              : mean_square(bias_of(*site)))
              .epsilon(1e-3));
  }
  CHECK(sites == 21);
}

TEST_CASE("output_errors: of chains, blocks, merges, stages and the network they are those of running them") {
  const auto data = images(2, 3);
  const auto model = quantized("tests/fixtures/swin_tiny", data);
  const auto rows = output_errors(*model, data, kSilent);
  std::map<std::string, int> kinds;
  for (const OutputError& row : rows) ++kinds[row.kind];
  CHECK(kinds == std::map<std::string, int>{{"conv", 1},
                                            {"linear", 14},
                                            {"matmul", 6},
                                            {"attention", 3},
                                            {"mlp", 3},
                                            {"block", 3},
                                            {"downsample", 1},
                                            {"stage", 2},
                                            {"model", 1}});
  CHECK(rows.back().name == "model");
  double error = 0, n = 0;
  for (const Batch& batch : data) {
    const Tensor f = model->forward(kFloat, batch), q = model->forward(kFake, batch);
    for (int64_t i = 0; i < f.size(); ++i) error += (double(f[i]) - q[i]) * (double(f[i]) - q[i]);
    n += static_cast<double>(f.size());
  }
  CHECK(rows.back().error == doctest::Approx(error / n).epsilon(1e-12));
  // A compensated output of any kind loses the square of its bias, and names say where it is.
  BcOptions o = options(BcShape::Position);
  o.conv = o.linear = o.matmul = false;
  o.block = true;
  compensate(*model, data, o, kSilent);
  const auto after = output_errors(*model, data, kSilent);
  const std::vector<Tensor> added = added_to_blocks(*model);
  REQUIRE(added.size() == 3);
  for (size_t i = 0, block = 0; i < rows.size(); ++i) {
    if (rows[i].kind != "block") continue;
    CAPTURE(rows[i].name);
    CHECK(rows[i].error - after[i].error == doctest::Approx(mean_square(added[block++])).epsilon(1e-3));
    CHECK(rows[i].name.find(".blocks.") != std::string::npos);
  }
}
