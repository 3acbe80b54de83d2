// Bias compensation: the official estimator's golden numbers, and what has to hold
// exactly for any quantizer: zero mean error where it was fitted, a drop of the
// squared error by the square of the bias, and sizes.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/grid/uniform.h"
#include "engine/nn/ops.h"
#include "quant/bias_comp.h"
#include "quant/ptq4vit.h"
#include "tests/compensated.h"
#include "tests/quantize.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

TEST_CASE("after fitting, the mean error of every site is zero and its squared error fell by the bias squared") {
  for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
    const auto data = images(3, 4);
    const auto model = quantized_vit(4, data);
    SiteError before(shape), after(shape);
    before.run(*model, data);
    compensate(*model, data, options(shape), kSilent);
    after.run(*model, data);
    CHECK(after.means.size() == 14);
    for (Layer* site : model->all_layers()) {
      CAPTURE(site->name);
      const double n = static_cast<double>(after.count[site->name]);
      const double gone = (before.squared[site->name] - after.squared[site->name]) / n;
      const Tensor b = bias_of(*site);
      REQUIRE_FALSE(b.empty());
      CHECK(max_abs(doubles(after.means.at(site->name).mean())) < 2e-6 * after.size[site->name]);
      CHECK(gone > 0);
      CHECK(gone == doctest::Approx(mean_square(b)).epsilon(1e-4));
    }
  }
}

TEST_CASE("a quantizer that changes nothing needs no compensation") {
  const auto data = images(2, 3);
  const auto model = load_model(kVit);
  CHECK(compensate(*model, data, options(BcShape::Position), kSilent).fitted() == 0);  // no grids at all
  for (Layer* site : model->all_layers()) {  // a grid of 16 bits and more of resolution than the weights hold errors
    if (!site->is_linear()) continue;
    site->quantize({{}, Uniform{16, 0, {1}}, site->weight, nullptr, nullptr});
  }
  CHECK(compensate(*model, data, options(BcShape::Position, true), kSilent).fitted() > 0);
  for (Layer* site : model->all_layers())
    if (site->is_linear()) CHECK(max_abs(doubles(bias_of(*site))) == 0);
  CHECK(added_to_blocks(*model).size() == 2);
  for (const Tensor& b : added_to_blocks(*model)) CHECK(max_abs(doubles(b)) == 0);
  const Batch& batch = data[0];
  CHECK(same_bits(model->forward(kFake, batch), model->forward(kFloat, batch)));
}

TEST_CASE("options name the sites, and the number of values is that of their shapes") {
  const auto data = images(2, 3);
  const int64_t D = 24, N = 10, H = 3, mlp = 60, depth = 2, classes = 7;
  const auto count = [&](BcOptions o, bool conv, bool linear, bool matmul, bool block = false) {
    const auto model = quantized_vit(4, data);
    o.conv = conv;
    o.linear = linear;
    o.matmul = matmul;
    o.block = block;
    return compensate(*model, data, o, kSilent).fitted();
  };
  const BcOptions full = options(BcShape::Position), small = options(BcShape::Channel);
  CHECK(count(full, true, false, false) == D * (N - 1));
  CHECK(count(small, true, false, false) == D);
  CHECK(count(full, false, true, false) == depth * N * (3 * D + D + mlp + D) + classes);
  CHECK(count(small, false, true, false) == depth * (3 * D + D + mlp + D) + classes);
  CHECK(count(full, false, false, true) == depth * H * N * (N + D / H));
  CHECK(count(small, false, false, true) == depth * H * (N + D / H));
  CHECK(count(full, false, false, false, true) == depth * N * D);
  CHECK(count(small, false, false, false, true) == depth * D);

  // the same sums at the sizes of ViT-B and of OPT-125M
  const auto vit = [](int64_t d, int64_t n, int64_t h, bool per_position) {
    const int64_t tokens = per_position ? n : 1, patches = per_position ? n - 1 : 1, rows = per_position ? n : 1;
    return patches * d + 12 * (tokens * (3 * d + d + 4 * d + d) + h * rows * (n + d / h)) + 1000;
  };
  CHECK(vit(768, 197, 12, true) == 23'895'544);
  CHECK(vit(768, 197, 12, false) == 122'296);
  CHECK(vit(384, 197, 6, true) == 11'948'272);
  CHECK(vit(384, 197, 6, false) == 61'648);
  const auto text = windows(2, 1, 9);
  const auto opt = [&](BcShape shape) {
    const auto model = quantized_opt(3);
    return compensate(*model, text, options(shape, true), kSilent).fitted();
  };
  const auto opt_values = [](int64_t d, int64_t ffn, int64_t layers) { return layers * (4 * d + ffn + d + d); };
  CHECK(opt(BcShape::Channel) == opt_values(16, 40, 2));
  CHECK(opt(BcShape::Position) == 9 * opt_values(16, 40, 2));
  CHECK(opt_values(768, 3072, 12) == 92'160);
  CHECK(2048 * opt_values(768, 3072, 12) == 188'743'680);
}

TEST_CASE("a bias per channel on k alone changes no logits") {
  const auto model = quantized_opt(3);
  const Batch text = windows(1, 2, 9)[0];
  const Tensor before = model->forward(kFake, text);
  for (int i = 0; i < model->depth(); ++i)
    for (Layer* site : model->layers(i))
      if (site->role == Role::Key) Model::point_of(*site).add(random({16}, 5));
  CHECK(relative_error(model->forward(kFake, text), before) < 1e-5);
  for (Layer* site : model->layers(0))
    if (site->role == Role::Query) Model::point_of(*site).add(random({16}, 5));  // where it does not cancel
  CHECK(relative_error(model->forward(kFake, text), before) > 1e-3);
}

TEST_CASE("folded compensations give the logits of added ones") {
  const auto text = windows(3, 2, 9);
  const auto folded = quantized_opt(3), added = quantized_opt(3);
  compensate(*folded, text, options(BcShape::Channel, true), kSilent);
  for (int i = 0; i < folded->depth(); ++i) {
    const auto from = folded->layers(i), to = added->layers(i);
    for (size_t s = 0; s < from.size(); ++s) {
      CHECK(from[s]->added.empty());  // nothing is left to add at run time
      const Tensor b = bias_of(*from[s]);
      to[s]->added = b.reshaped({1, b.size()});
    }
  }
  CHECK(added_to_blocks(*folded).empty());
  const Tensor want = added->forward(kFake, text[0]), plain = quantized_opt(3)->forward(kFake, text[0]);
  CHECK(relative_error(folded->forward(kFake, text[0]), want) < 1e-5);
  CHECK(relative_error(plain, want) > 1e-3);
}

TEST_CASE("a bias per position averages to the bias per channel") {
  const auto text = windows(3, 2, 9);
  const auto full = quantized_opt(3), small = quantized_opt(3);
  compensate(*full, text, options(BcShape::Position), kSilent);
  compensate(*small, text, options(BcShape::Channel), kSilent);
  for (int i = 0; i < full->depth(); ++i)
    for (size_t s = 0; s < 6; ++s) {
      const Tensor b = bias_of(*full->layers(i)[s]), want = bias_of(*small->layers(i)[s]);
      REQUIRE(b.shape == Shape{9, want.size()});
      std::vector<double> mean(static_cast<size_t>(want.size()));
      for (int64_t j = 0; j < b.size(); ++j) mean[static_cast<size_t>(j % want.size())] += b[j] / 9.0;
      CHECK(relative_error(want, mean) < 1e-5);
    }
}

TEST_CASE("the block compensation is fitted with the sites compensated, on the float stream") {
  for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
    const auto text = windows(3, 2, 9);
    const auto model = quantized_opt(3);
    const auto count = compensate(*model, text, options(shape, true), kSilent).fitted();
    CHECK(count > 0);
    CHECK(added_to_blocks(*model).size() == (shape == BcShape::Position ? 2u : 0u));
    std::vector<RunningMean> errors(2, RunningMean(shape));
    double size[2] = {};
    for (const Batch& batch : text) {
      Tensor x = model->embed(kFloat, batch);
      for (int i = 0; i < 2; ++i) {
        const Tensor y = model->block(kFloat, i, x);
        errors[static_cast<size_t>(i)].update(y, model->block(kFake, i, x));
        size[i] = std::max(size[i], max_abs(doubles(y)));
        x = y;
      }
    }
    for (int i = 0; i < 2; ++i) CHECK(max_abs(doubles(errors[static_cast<size_t>(i)].mean())) < 2e-6 * size[i]);
  }
}

TEST_CASE("added values: a folded bias adds none, one without a bias to fold into does") {
  const auto data = images(1, 2);
  const auto model = quantized("tests/fixtures/swin_tiny", data);
  CHECK(added_values(*model) == 0);
  BcOptions o = options(BcShape::Channel);
  o.matmul = false;
  compensate(*model, data, o, kSilent);
  CHECK(added_values(*model) == 16);  // the merge's product has no bias
  o = options(BcShape::Channel);
  o.conv = o.linear = false;
  model->clear_compensation();
  compensate(*model, data, o, kSilent);
  // channels of q kT (keys of a window) and of A v, for each head: two blocks of 2 heads, one of 4
  CHECK(added_values(*model) == 2 * 2 * (9 + 4) + 4 * (9 + 4));
}

TEST_CASE("on the quantized stream the network's own mean error is gone, on the float stream it is not") {
  const auto data = images(1, 4);
  for (const char* folder : {"tests/fixtures/vit_tiny", "tests/fixtures/swin_tiny"}) {
    CAPTURE(folder);
    const auto left = [&](Stream stream) {
      const auto model = quantized(folder, data);
      BcOptions o = options(BcShape::Position);
      o.stream = stream;
      compensate(*model, data, o, kSilent);
      RunningMean error(BcShape::Position);
      error.update(model->forward(kFloat, data[0]), model->forward(kFake, data[0]));
      return mean_square(error.mean());
    };
    CHECK(left(Stream::Quantized) < 1e-9);
    CHECK(left(Stream::Float) > 1e-6);
  }
}

TEST_CASE("vit, deit, swin: neither threads nor batch size change a bit of the logits, float or compensated") {
  const auto calib = images(2, 3);
  const Tensor data = random({17, 3, 12, 12}, 9, 2);
  // Logits of all images in both precisions, of a network quantized and compensated with this many threads.
  const auto run = [&](const std::string& fixture, int count, int64_t batch_size) {
    const Threads t(count);
    const auto model = load_model(fixture);
    quantize_ptq(*model, calib[0].pixels, PtqOptions{4, 4}, kSilent, nullptr);
    BcOptions everything = options(BcShape::Position, true);
    everything.attention = everything.mlp = everything.model = true;
    compensate(*model, calib, everything, kSilent);
    std::vector<float> logits;
    for (const Context& ctx : {kFloat, kFake})
      for (int64_t i = 0; i < data.dim(0); i += batch_size) {
        Batch batch;
        batch.pixels = data.slice(i, std::min(data.dim(0), i + batch_size));
        const Tensor z = model->forward(ctx, batch);
        logits.insert(logits.end(), z.data, z.data + z.size());
      }
    return Tensor({2, data.dim(0), model->info().outputs}, logits);
  };
  for (const std::string name : {"vit_tiny", "deit_tiny", "swin_tiny"}) {
    CAPTURE(name);
    const Tensor one = run("tests/fixtures/" + name, 1, 1);
    CHECK(same_bits(one, run("tests/fixtures/" + name, 2, 16)));
    CHECK_FALSE(same_bits(sample(one, 0), sample(one, 1)));
  }
}

TEST_CASE("compensations add up, and are forgotten by clear") {
  const auto data = images(2, 3);
  const auto model = quantized_vit(4, data);
  Layer& site = *model->layers(0)[0];
  const Tensor b = random({72}, 6), c = random({72}, 7);
  const Point point = Model::point_of(site), output = model->part(1).output;
  point.add(b);
  point.add(c);
  CHECK(same_bits(site.bias.compensated, add(nullptr, add(nullptr, site.bias.loaded, b), c)));
  output.add(random({10, 24}, 8));
  CHECK_THROWS_AS(output.add(random({10, 23}, 8)), Error);
  CHECK_THROWS_AS(point.add(random({71}, 8)), Error);
  model->clear();
  CHECK(same_bits(model->forward(kFake, data[0]), model->forward(kFloat, data[0])));
}

TEST_CASE("a second fit over compensated sites finds nothing left") {
  const auto data = images(2, 3);
  const auto model = quantized_vit(4, data);
  compensate(*model, data, options(BcShape::Channel), kSilent);
  const Tensor first = bias_of(*model->layers(0)[0]).clone();
  compensate(*model, data, options(BcShape::Channel), kSilent);
  CHECK(relative_error(bias_of(*model->layers(0)[0]), first) < 1e-4);
}
