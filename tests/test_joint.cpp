// Folding of channels, RepQ-ViT, renormalized softmax, ranges and the joint method, against their definitions.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <tuple>

#include "engine/grid/uniform.h"
#include "models/layers.h"
#include "quant/bias_comp.h"
#include "quant/calibrate.h"
#include "quant/joint.h"
#include "quant/qwt.h"
#include "quant/ranges.h"
#include "quant/repq.h"
#include "quant/tokens.h"
#include "quant/weight_methods.h"
#include "tests/model_fixtures.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The input of the golden vectors of RepQ-ViT, made by an independent program.
Tensor u(int64_t start, Shape shape) {
  Tensor t(std::move(shape));
  for (int64_t i = 0; i < t.size(); ++i)
    t[i] = static_cast<float>(static_cast<double>(7919 * (start + i) % 1000) / 500.0 - 1);
  return t;
}
Batch data_of(const std::string& fixture) {
  return load_model(fixture)->info().family == Family::Vision ? pixels_of(fixture) : ids_of(fixture);
}

const Context kFake{Precision::Fake, nullptr, nullptr};
const Warn kQuiet = [](const std::string&) {};

// A calibrated copy of a fixture.
std::unique_ptr<Model> calibrated(const std::string& fixture, Method& method) {
  auto model = load_model(fixture);
  calibrate(*model, vision_batches(*model, pixels_of(fixture).pixels), {&method});
  return model;
}

// What a layer is fed.
Tensor input_of(const Layer& layer, const Model& model, Precision precision, const Batch& batch) {
  struct Input : Observer {
    const Layer* layer;
    Tensor x;
    void input(const Layer& l, const Tensor& a, const Tensor&) override {
      if (&l == layer) x = a;
    }
  } seen;
  seen.layer = &layer;
  model.forward({precision, nullptr, &seen}, batch);
  return seen.x;
}

double energy(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.size(); ++i) sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return sum;
}

}  // namespace

TEST_CASE("fold: scales and shifts move between a source and its group, in every family, and clear() takes them back") {
  for (const std::string& fixture :
       {kVit, kDeit, kSwin, kOpt, kOptPost, kOptPlain, kBloom, kBloomResidual, kLlama, kQwen2}) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    const Batch batch = data_of(fixture);
    const Tensor before = model->forward(kFloat, batch);
    int folded = 0;
    for (int i = -1; i <= model->depth(); ++i)
      for (const LayerGroup& group : model->part(i).groups) {
        if (!group.source.norm && !group.source.layer) continue;
        const bool keys = group.layers[0]->role == Role::QK;
        // A ReLU, or SwiGLU, between them leaves scales alone, and no shifts.
        const bool relu = group.layers[0]->role == Role::Fc2;
        const int64_t n = keys ? static_cast<int64_t>(group.source.rows.size()) : group.layers[0]->weight.dim(1);
        const Tensor a = random({n}, 7), b = random({n}, 8);
        std::vector<float> scale, shift;
        for (int64_t c = 0; c < n; ++c) {
          scale.push_back(keys ? 1 : std::exp2(a[c]));
          shift.push_back(relu ? 0 : b[c]);
        }
        model->fold(group, scale, shift);
        ++folded;
        CHECK_THROWS_AS(model->fold(group, {1}, {1, 2}), Error);
      }
    CHECK(folded >= (fixture == kBloomResidual ? 1 : 2));
    const Tensor after = model->forward(kFloat, batch);
    CHECK_FALSE(same_bits(after, before));
    CHECK(relative_error(after, before) < 1e-5);
    model->clear();
    CHECK(same_bits(model->forward(kFloat, batch), before));
  }
}

TEST_CASE("fold: rows that are rounded already stay on their grid") {
  const auto model = load_model(kVit);
  const Batch batch = pixels_of(kVit);
  const Part part = model->part(0);
  Layer& qkv = *part.groups[0].layers[0];
  const Tensor w = qkv.weight.values();
  Tensor scale({w.dim(0), 1}), zero({w.dim(0), 1});
  for (int64_t r = 0; r < w.dim(0); ++r) scale[r] = 0.02f, zero[r] = 7;
  const Affine grid(4, w.dim(1), scale, zero);
  set_grids(qkv, {}, grid);
  const Tensor before = model->forward(kFake, batch);
  const LayerGroup* proj = nullptr;
  for (const LayerGroup& group : part.groups)
    if (group.layers[0]->role == Role::Proj) proj = &group;
  REQUIRE(proj);
  const Tensor by = random({proj->layers[0]->weight.dim(1)}, 3);
  std::vector<float> scales, shifts;
  for (int64_t c = 0; c < by.size(); ++c) scales.push_back(std::exp(by[c])), shifts.push_back(by[c] / 2);
  model->fold(*proj, scales, shifts);
  CHECK(relative_error(model->forward(kFake, batch), before) < 1e-5);
  const Tensor rounded = qkv.weight_in(Precision::Fake).values();
  CHECK(relative_error(fake_quantize(right_grid(qkv), rounded), rounded) < 1e-6);
}

TEST_CASE("repq: ranges of channels and of folded weights as an independent program finds them") {
  const Tensor h = u(1001, {10, 8}), gamma({8}, {1, .5f, 3, .25f, 1, 8, .7f, 2}), beta = u(1501, {8});
  const Tensor x = layer_norm(nullptr, h, gamma, beta, 1e-6f);
  const double scales[] = {.2474076, .0977033, .4507586, .0371616, .1685399, 1.1343948, .1085730, .3368182};
  const int zeros[] = {9, 12, 8, 26, 12, 5, -1, 7};
  double mean = 0;
  std::vector<ScaleZero> ranges;
  for (int64_t c = 0; c < 8; ++c) {
    ranges.push_back(percentile_range(x.data + c, 10, 8, 4));
    CHECK(ranges.back().scale == doctest::Approx(scales[c]).epsilon(1e-6));
    CHECK(ranges.back().zero == zeros[c]);
    mean += ranges.back().scale / 8;
  }
  CHECK(mean == doctest::Approx(.3226696).epsilon(1e-6));
  Tensor w = u(2001, {6, 8});
  for (int64_t i = 0; i < w.size(); ++i) w[i] *= static_cast<float>(ranges[static_cast<size_t>(i % 8)].scale / mean);
  const double rows[] = {.0684664, .2430635, .1441944, .0711031, .2601987, .1237742};
  const int row_zeros[] = {5, 4, 14, 3, 4, 13};
  for (int64_t r = 0; r < 6; ++r) {
    const ScaleZero range = percentile_range(w.data + 8 * r, 8, 1, 4);
    CHECK(range.scale == doctest::Approx(rows[r]).epsilon(2e-6));
    CHECK(range.zero == row_zeros[r]);
  }
  CHECK(percentile_range(gamma.data, 1, 1, 4).scale == 0);  // nothing to tell apart
}

TEST_CASE("repq: a folded input has the codes that its channels have on grids of their own") {
  RepqVit method(6, 4);
  const auto plain = load_model(kVit);
  Record seen;
  plain->forward({Precision::Float, nullptr, &seen}, pixels_of(kVit));
  const auto model = calibrated(kVit, method);
  // The first layer behind a norm sees what the rounded patch embedding makes; the float network is the same folded.
  CHECK(relative_error(model->forward(kFloat, pixels_of(kVit)), plain->forward(kFloat, pixels_of(kVit))) < 1e-5);
  const Layer& qkv = *model->part(0).groups[0].layers[0];
  const Asymmetric& grid = as<Asymmetric>(qkv.left_grid());
  CHECK(grid.bits == 4);
  CHECK(grid.units() == 1);
  // Folded, all channels have the range of the grid: of each the ends are about its first and last code.
  const Tensor input = input_of(qkv, *model, Precision::Fake, pixels_of(kVit));
  const int64_t n = input.dim(-1);
  for (int64_t c = 0; c < n; ++c) {
    const ScaleZero range = percentile_range(input.data + c, input.rows(), n, 4);
    CHECK(range.scale == doctest::Approx(grid.scale[0]).epsilon(0.01));  // another percentile may be as good
    CHECK(range.zero == grid.zero[0]);
  }
  for (Layer* layer : model->all_layers()) CHECK(layer->is_quantized());
  CHECK(model->part(0).groups[2].layers[0]->left_grid().name() == "log-sqrt2+zero");
  CHECK_THROWS_AS(RepqVit(1, 4), UsageError);
  CHECK_THROWS_AS(calibrate(*load_model(kOpt), {ids_of(kOpt)}, {&method}), UsageError);
}

TEST_CASE("renormalized softmax: constant values come out, and integers are the simulation") {
  const int64_t B = 2, H = 3, N = 9, d = 8;
  Tensor scores = random({B, H, N, N}, 1, 3), constant({B, H, N, d}), values = random({B, H, N, d}, 2);
  for (int64_t i = 0; i < constant.size(); ++i) constant[i] = 0.25f * static_cast<float>(i % d);
  const Tensor a = softmax(nullptr, scores);
  Layer layer = make_layer(Role::AV, "matmul2");
  const Table levels(2, 1.f / 255, 0, {0, 20, 90, 255});
  std::vector<uint8_t> all(256);
  for (int i = 0; i < 256; ++i) all[static_cast<size_t>(i)] = static_cast<uint8_t>(i);
  const Table right(8, 1.f / 64, 128, all);
  Quantized q{levels, right, {}, nullptr, nullptr};
  q.renormalized = true;
  layer.quantize(q);
  CHECK(relative_error(layer.product(kFake, a, constant), constant) < 1e-6);
  // Against the definition, row by row.
  const Tensor y = layer.product(kFake, a, values);
  const Tensor rounded = fake_quantize(right, values);
  double worst = 0;
  for (int64_t r = 0; r < B * H * N; ++r) {
    const double largest = *std::max_element(a.data + r * N, a.data + (r + 1) * N);
    std::vector<double> w;
    double sum = 0;
    for (int64_t j = 0; j < N; ++j) {
      const double code = std::nearbyint(static_cast<float>(a[r * N + j] / largest) * 255);
      double best = 0;
      for (const double level : {0., 20., 90., 255.})
        if (std::abs(level - code) < std::abs(best - code)) best = level;
      w.push_back(best);
      sum += best;
    }
    for (int64_t c = 0; c < d; ++c) {
      double want = 0;
      for (int64_t j = 0; j < N; ++j) want += w[static_cast<size_t>(j)] * rounded[(r / N * N + j) * d + c] / sum;
      worst = std::max(worst, std::abs(want - y[r * d + c]));
    }
  }
  CHECK(worst < 1e-6);
  REQUIRE(layer.prepare_int8());
  CHECK(relative_error(layer.product({Precision::Integer}, a, values), y) < 1e-6);
  CHECK(relative_error(layer.product({Precision::Integer}, a, constant), constant) < 1e-6);
}

TEST_CASE("ranges: a table errs no more than the uniform grid of as many codes, and keeps to s8 where it has to") {
  Tensor x = random({50, 40}, 5);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = x[i] * x[i] * x[i] * 4 + 0.3f;
  for (const int bits : {2, 3, 4, 6}) {
    CAPTURE(bits);
    const Histogram values(x);
    const Table table = fit_table(values, bits, false), right = fit_table(values, bits, true);
    const Asymmetric uniform = fit_asymmetric(values, bits);
    CHECK(energy(fake_quantize(table, x), x) < 1.001 * energy(fake_quantize(uniform, x), x));
    CHECK(right.is_signed());
    CHECK(energy(fake_quantize(right, x), x) < 1.2 * energy(fake_quantize(table, x), x));
    CHECK(static_cast<int>(table.parts[0].of.size()) <= 1 << bits);
  }
  // Weights of rows and columns count: a value that is all the weight is kept.
  std::vector<float> rows(50, 1e-6f), columns(40, 1.f);
  rows[3] = 1;
  Tensor one = x.clone();
  for (int64_t c = 0; c < 40; ++c) one[3 * 40 + c] = c % 2 ? -0.7f : 1.1f;
  const Tensor rounded = fake_quantize(fit_table(Histogram(one, rows, columns), 2, false), one).slice(0, 50);
  for (int64_t c = 0; c < 40; ++c) CHECK(rounded[3 * 40 + c] == doctest::Approx(one[3 * 40 + c]).epsilon(0.02));
  CHECK_THROWS_AS(Histogram(x, {1, 2}), Error);
}

TEST_CASE("joint: errs less than RepQ-ViT, in integers as simulated, the same on one and two threads") {
  for (const std::string& fixture : {kVit, kDeit, kSwin}) {
    CAPTURE(fixture);
    const Batch batch = pixels_of(fixture);
    const Tensor want = load_model(fixture)->forward(kFloat, batch);
    RepqVit repq(4, 4);
    const double of_repq = energy(calibrated(fixture, repq)->forward(kFake, batch), want);
    Joint joint({4, 4}, kQuiet);
    const auto model = calibrated(fixture, joint);
    const Tensor y = model->forward(kFake, batch);
    CHECK(energy(y, want) < of_repq);
    CHECK(relative_error(model->forward(kFloat, batch), want) < 1e-5);
    const std::vector<std::string> simulated = model->prepare_int8();
    CHECK(simulated == std::vector<std::string>{"patch_embed.proj"});  // its pixels stay float
    CHECK(relative_error(model->forward({Precision::Integer}, batch), y) < 2e-2);
    CHECK(same_on_two_threads([&] {
      Joint again({4, 4}, kQuiet);
      return calibrated(fixture, again)->forward(kFake, batch);
    }));
    model->clear();
    CHECK(same_bits(model->forward(kFake, batch), want));
  }
}

TEST_CASE("joint: what a layer's certificate says falls from step to step, at every width, and weights go alone") {
  for (const int bits : {2, 3, 4, 8, 32}) {
    CAPTURE(bits);
    Joint joint({bits == 32 ? 4 : bits, bits}, kQuiet);
    const auto model = load_model(kVit);
    const CalibrationResult result = calibrate(*model, vision_batches(*model, pixels_of(kVit).pixels), {&joint});
    int layers = 0;
    for (const PartRecord& part : result.parts)
      for (const LayerRecord& layer : part.layers) {
        CAPTURE(layer.layer);
        CHECK(layer.refined <= layer.solved + 1e-12 * layer.signal);
        CHECK(layer.compensated <= layer.refined + 1e-6 * layer.signal);
        CHECK(layer.bits == (bits == 32 ? 4 : bits));
        ++layers;
      }
    CHECK(layers == 4 * model->depth() + 2);
    for (Layer* layer : model->all_layers())
      CHECK(layer->left_grid().is_identity() == (bits == 32 || layer->role == Role::Patch));
  }
  CHECK_THROWS_AS(Joint({9, 4}, kQuiet), UsageError);
}

TEST_CASE("tokens: those that are read weigh as much as all others, and the mean is 1") {
  for (const auto& [read, tokens] : {std::pair{1, 5}, std::pair{2, 10}, std::pair{0, 4}, std::pair{4, 4}}) {
    double all = 0, of_read = 0;
    for (int t = 0; t < tokens; ++t) {
      all += token_weight(t, tokens, read);
      if (t < read) of_read += token_weight(t, tokens, read);
    }
    CHECK(all == doctest::Approx(tokens));
    if (read > 0 && read < tokens) CHECK(of_read == doctest::Approx(tokens / 2.));
  }
  CHECK(load_model(kVit)->info().read_tokens == 1);
  CHECK(load_model(kDeit)->info().read_tokens == 2);
  CHECK(load_model(kSwin)->info().read_tokens == 0);
  const Tensor x({1, 3, 1}, {4, 1, 3});
  CHECK(weighted_mean(x, 1)[0] == doctest::Approx(0.5 * 4 + 0.25 * (1 + 3)));
}

TEST_CASE("qwt: a linear layer beside a block takes up a linear error, and clear() forgets it") {
  const auto model = load_model(kVit);
  const Batch batch = pixels_of(kVit);
  const Tensor real = model->forward(kFloat, batch);
  RepqVit repq(4, 4);
  Qwt qwt;
  calibrate(*model, vision_batches(*model, batch.pixels), {&repq});
  const double without = energy(model->forward(kFake, batch), real);
  model->clear();
  const CalibrationResult result = calibrate(*model, vision_batches(*model, batch.pixels), {&repq, &qwt});
  CHECK(energy(model->forward(kFake, batch), real) < 0.7 * without);
  const int64_t D = model->embed(kFloat, batch).dim(2);
  CHECK(result.fitted() == model->depth() * (D * D + D));
  CHECK(added_values(*model) == result.fitted());
  model->clear();
  CHECK(same_bits(model->forward(kFake, batch), real));
  // By itself: the exact linear map is found where the error is one.
  model->set_block_linear(0, random({D, D}, 4), random({D}, 5));
  CHECK_FALSE(same_bits(model->forward(kFake, batch), real));
  CHECK(same_bits(model->forward(kFloat, batch), real));
}

TEST_CASE("activations of language models: a grid a token or a tensor, which weights are calibrated with") {
  for (const std::string& fixture : {kOpt, kBloom, kLlama}) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    const Batch batch = ids_of(fixture);
    const Tensor want = model->forward(kFloat, batch);
    std::vector<double> errors;
    for (const int bits : {32, 8, 4})
      for (const bool fixed : {false, true}) {
        model->clear();
        GptqMethodOptions o{{}};
        o.gptq.bits = 8;
        o.activations = {bits, fixed};
        Gptq method(o, kQuiet);
        calibrate(*model, {batch, batch}, {&method});
        errors.push_back(energy(model->forward(kFake, batch), want));
        const Grid& left = model->layers(0)[0]->left_grid();
        CHECK(left.name() == (bits == 32 ? "float" : fixed ? "asymmetric" : "dynamic"));
      }
    CHECK(errors[0] == errors[1]);
    CHECK(errors[2] > errors[0]);
    CHECK(errors[4] > 10 * errors[2]);
    CHECK(errors[5] > 10 * errors[3]);
  }
  RoundToNearest fixed({4}, {}, {8, true});
  CHECK_THROWS_AS(calibrate(*load_model(kOpt), {}, {&fixed}), Error);  // it has to see inputs
  const Grid dynamic = Dynamic(4);
  const Tensor x({2, 3}, {7, -3.4f, 0.5f, 0.07f, 0.02f, 0}), y = fake_quantize(dynamic, x);
  CHECK(relative_error(y, Tensor({2, 3}, {7, -3, 0, 0.07f, 0.02f, 0})) < 1e-6);  // half to even
  CHECK(same_bits(fake_quantize(read_grid("dynamic", dynamic.describe()), x), y));
}

TEST_CASE("held out: a compensation is kept where the error falls on samples it was not taken from") {
  // Against errors themselves: |e - b|² less |e|² on the held-out ones, for shares that do not divide the samples.
  for (const int64_t n : {2, 5, 8, 9}) {
    CAPTURE(n);
    for (uint32_t seed = 0; seed < 20; ++seed) {
      const Tensor e = random({n, 3, 4}, seed);
      HeldOutMean mean(BcShape::Channel, 0.25);
      double b[4] = {}, change = 0, fitted = 0;
      for (int64_t j = 0; j < n; ++j) {
        RunningMean one;
        one.update(e.slice(j, j + 1));
        mean.add(static_cast<size_t>(j), one);
        if (j % 4 == 1) continue;
        for (int64_t i = 0; i < 12; ++i) b[i % 4] += e[j * 12 + i] / 3;
        ++fitted;
      }
      for (int64_t j = 1; j < n; j += 4)
        for (int64_t i = 0; i < 12; ++i) {
          const double to = b[i % 4] / fitted, d = e[j * 12 + i];
          change += (d - to) * (d - to) - d * d;
        }
      CHECK(helps_held_out(mean.all.mean(), mean.held_out.mean(), mean.actual_share()) == (change < 0));
    }
  }
  CHECK(helps_held_out(Tensor({1}, {1}), {}, 0));
}

TEST_CASE("joint: biases take the mean error with the weights that tokens have") {
  JointOptions o{32, 3};
  o.held_out = 0;
  Joint joint(o, kQuiet);
  const auto model = calibrated(kVit, joint);
  const Batch batch = pixels_of(kVit);
  // Of qkv, and of proj, whose input was folded after the float network had been seen.
  for (const Layer* layer : model->part(0).layers()) {
    if (layer->role != Role::QKV && layer->role != Role::Proj) continue;
    CAPTURE(layer->name);
    const Tensor real = layer->product(kFloat, input_of(*layer, *model, Precision::Float, batch), {});
    const Tensor own = layer->product(kFake, input_of(*layer, *model, Precision::Fake, batch), {});
    const Tensor error = add(nullptr, real, scale(nullptr, own, -1));
    double size = 0;
    for (int64_t i = 0; i < error.size(); ++i) size = std::max(size, std::abs(static_cast<double>(error[i])));
    CHECK(max_abs(weighted_mean(error, 1)) < 1e-4 * size);
    CHECK(max_abs(weighted_mean(error, 0)) > 1e-2 * size);  // all tokens alike
  }
}

TEST_CASE("joint: a channel that is far larger than the others is folded away") {
  // The same network twice, in one of which a channel behind each first norm is 60 times as large.
  Variant skewed(kVit);
  for (int i = 0; i < load_model(kVit)->depth(); ++i) {
    const std::string block = "blocks." + std::to_string(i);
    for (const char* part : {".weight", ".bias"}) skewed.tensors[block + ".norm1" + part][3] *= 60;
    Tensor& w = skewed.tensors[block + ".attn.qkv.weight"];
    for (int64_t r = 0; r < w.dim(0); ++r) w[r * w.dim(1) + 3] /= 60;
  }
  const Batch batch = pixels_of(kVit);
  const Tensor want = load_model(kVit)->forward(kFloat, batch);
  const auto error_of = [&](Model& model) {
    Joint method({32, 4}, kQuiet);
    calibrate(model, vision_batches(model, batch.pixels), {&method});
    return energy(model.forward(kFake, batch), want);
  };
  const auto plain = load_model(kVit), other = skewed.load();
  const Tensor norm = other->part(0).groups[0].source.norm->weight.clone();
  CHECK(relative_error(other->forward(kFloat, batch), want) < 1e-5);
  CHECK(error_of(*other) < 2 * error_of(*plain));
  CHECK(other->part(0).groups[0].source.norm->weight[3] < norm[3] / 10);
  other->clear();
  CHECK(same_bits(other->part(0).groups[0].source.norm->weight, norm));
}

TEST_CASE("joint: grids of activations by choice, in integers as simulated") {
  const Batch batch = pixels_of(kSwin);  // with masks
  const Tensor want = load_model(kSwin)->forward(kFloat, batch);
  for (const auto& [grid, norm, softmax, gelu] : {std::tuple{ActGrid::Table, "table", "table", "table"},
                                                  {ActGrid::Uniform, "asymmetric", "table", "asymmetric"},
                                                  {ActGrid::AdaLog, "table", "adalog+zero", "adalog+zero"}}) {
    JointOptions options{4, 4};
    options.grid = grid;
    CAPTURE(static_cast<int>(options.grid));
    Joint method(options, kQuiet);
    const auto model = calibrated(kSwin, method);
    for (const Layer* layer : model->all_layers()) {
      CAPTURE(layer->name);
      if (layer->role == Role::QKV) CHECK(layer->left_grid().name() == std::string(norm));
      if (layer->role == Role::AV) CHECK(layer->left_grid().name() == std::string(softmax));
      if (layer->role == Role::Fc2) CHECK(layer->left_grid().name() == std::string(gelu));
    }
    const Tensor y = model->forward(kFake, batch);
    CHECK(energy(y, want) < 0.05 * energy(want, Tensor(want.shape)));
    model->prepare_int8();
    CHECK(relative_error(model->forward({Precision::Integer}, batch), y) < 2e-2);
  }
}

TEST_CASE("ranges: AdaLog's base and scale are found again") {
  const AdaLog grid(4, 0.8f, 20, 0, true);
  Tensor x({1, 4000});
  for (int64_t i = 0; i < x.size(); ++i) x[i] = 0.8f * static_cast<float>(i) / 4000;
  x = fake_quantize(grid, x);
  const Histogram values(x);
  const AdaLog found = fit_adalog(values, 4, 0);
  CHECK(found.planes() > 0);
  CHECK(values.error(found) <= values.error(grid));
  CHECK(found.base == doctest::Approx(20).epsilon(0.11));
  CHECK(found.scale == doctest::Approx(0.8).epsilon(0.001));
  double sum = 0;
  for (int64_t i = 0; i < x.size(); ++i) sum += std::pow(fake_quantize(found, x)[i] - x[i], 2);
  CHECK(sum / 4000 < 1e-4);
  // Zero is a level, and what is below the shift's is, too.
  const AdaLog gelu = fit_adalog(Histogram(random({20, 50}, 3)), 3, AdaLog::kGeluShift);
  CHECK(gelu.shift == AdaLog::kGeluShift);
  CHECK(fake_quantize(found, Tensor({1}))[0] == 0);
}
