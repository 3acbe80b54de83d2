// What GPTQ does with Hessians it cannot factor and numbers that are not finite, and how
// whole networks are quantized block by block.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "quant/weight_methods.h"
#include "tests/gptq_inputs.h"
#include "tests/quantize.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// ---- Networks to walk ----

Layer linear_site(const std::string& name, int64_t out, int64_t in, uint32_t seed) {
  Layer s;
  s.name = name;
  s.weight = random({out, in}, seed);
  return s;
}

// y = c(relu(a(x)) + relu(b(x))), so that a and b are fed one tensor, and c what they make of it.
class Toy : public Model {
 public:
  Toy(int blocks, int64_t width) {
    for (int i = 0; i < blocks; ++i)
      for (const char* which : {"a", "b", "c"})
        sites_.push_back(
            linear_site(std::to_string(i) + "." + which, width, width, static_cast<uint32_t>(sites_.size()) + 100));
  }
  int depth() const override { return static_cast<int>(sites_.size()) / 3; }
  Tensor embed(const Context&, const Batch& batch) const override { return batch.pixels; }
  Tensor block_body(const Context& ctx, int i, const Tensor& x) const override {
    const Layer* s = &sites_[index(3 * i)];
    return s[2].run(ctx, middle(ctx, i, x));
  }
  Tensor middle(const Context& ctx, int i, const Tensor& x) const {
    const Layer* s = &sites_[index(3 * i)];
    const Tensor a = relu(s[0].run(ctx, x)), b = relu(s[1].run(ctx, x));
    return add(nullptr, a, b);
  }
  Tensor head(const Context&, const Tensor& x) const override { return x; }
  Part part(int i) override {
    if (i < 0 || i >= depth()) return {i < 0 ? Part::Kind::Embedding : Part::Kind::Head};
    Layer* s = &sites_[index(3 * i)];
    return {Part::Kind::Block, std::to_string(i), {{{s, s + 1}}, {{s + 2}}}};
  }

 private:
  std::vector<Layer> sites_;
};

Tensor rounded(const Layer& layer) { return layer.quantized->weight.values(); }

std::vector<Batch> windows_of(const Tensor& x) {
  std::vector<Batch> windows(index(x.dim(0)));
  for (int64_t j = 0; j < x.dim(0); ++j) windows[index(j)].pixels = sample(x, j);
  return windows;
}

}  // namespace

// ---- Hessians that cannot be factored -----------------------------------------------------------

namespace {

struct Warnings {
  std::vector<std::string> all;
  Warn sink() {
    return [this](const std::string& message) { all.push_back(message); };
  }
};

}  // namespace

TEST_CASE("gptq: fewer tokens than columns need damping only") {
  const Tensor w = random({4, 32}, 14), x = random({1, 10, 32}, 15);
  Warnings warnings;
  CHECK(gptq(w, hessian_of(x), options(4), "layers.0.fc1", warnings.sink()).damp == 0.01);
  CHECK(warnings.all.empty());

  GptqOptions none = options(4);
  none.percdamp = 0;
  const QuantizedWeight q = gptq(w, hessian_of(x), none, "layers.0.fc1", warnings.sink());
  CHECK(q.damp == 0.01);
  REQUIRE(warnings.all.size() == 1);
  CHECK(contains(warnings.all[0], "layers.0.fc1"));
  CHECK(contains(warnings.all[0], "0.01"));
  CHECK(same(q, gptq(w, hessian_of(x), options(4), "site", kNoWarning)));
}

TEST_CASE("gptq: damping rises tenfold up to 1, then a floor under the diagonal, then rounding") {
  const Tensor w = random({3, 2}, 16);
  struct Case {
    std::vector<double> h;
    double damp;
    bool rounded;
    const char* message;
  };
  const Case cases[] = {{{1, 1.05, 1.05, 1}, 0.1, false, "damping 0.1 was used"},
                        {{1, 1.5, 1.5, 1}, 1, false, "damping 1 was used"},
                        {{10, 0, 0, -5.5}, 1, false, "damping 1 and a floor under its diagonal was used"},
                        {{1, 3, 3, 1}, 0, true, "rounded to nearest instead of GPTQ"},
                        {{-1, 0, 0, -1}, 0, true, "rounded to nearest instead of GPTQ"}};
  for (const Case& c : cases) {
    Warnings warnings;
    const QuantizedWeight q = gptq(w, c.h, options(4), "layers.7.fc2", warnings.sink());
    CHECK(q.damp == c.damp);
    REQUIRE(warnings.all.size() == 1);
    CHECK(contains(warnings.all[0], "layers.7.fc2"));
    CHECK_MESSAGE(contains(warnings.all[0], c.message), warnings.all[0]);
    if (c.rounded) CHECK(same(q, round_to_nearest(w, {4, -1})));
  }
}

TEST_CASE("gptq: an input that is always zero quantizes to zeros") {
  const Tensor w = random({3, 8}, 17);
  const QuantizedWeight q = gptq(w, std::vector<double>(64, 0.0), options(4), "site", kNoWarning);
  check_values(q.values, std::vector<double>(24, 0.0));
}

TEST_CASE("gptq names the site whose numbers are not finite") {
  const Tensor w = random({3, 4}, 18);
  std::vector<double> h = hessian_of(correlated(1, 16, 4, 19));
  Tensor bad = w.clone();
  bad[5] = INFINITY;
  CHECK(contains(message_of<Error>([&] { gptq(bad, h, options(4), "layers.3.fc1", kNoWarning); }), "layers.3.fc1"));
  h[2] = NAN;
  CHECK(contains(message_of<Error>([&] { gptq(w, h, options(4), "layers.3.fc1", kNoWarning); }), "layers.3.fc1"));

  Toy toy(1, 4);
  Tensor x = random({2, 8, 4}, 20);
  x[40] = NAN;
  CHECK(message_of<Error>([&] { quantize_gptq(toy, windows_of(x), {options(4)}, kSilent, kNoWarning); }) ==
        "0.a: its input is not finite (NaN or infinity)");

  toy.layers(0)[1]->weight.values()[3] = NAN;  // shared memory
  CHECK(message_of<Error>([&] { quantize_rtn(toy, {4, -1}); }) == "0.b: its weight is not finite (NaN or infinity)");
}

// ---- Walks --------------------------------------------------------------------------------------

TEST_CASE("quantize_rtn rounds every linear site of every block") {
  Toy toy(2, 6);
  quantize_rtn(toy, {3, 4});
  for (Layer* site : toy.all_layers()) {
    const QuantizedWeight q = round_to_nearest(site->weight.values(), {3, 4});
    CHECK(same_bits(site->weight_in(Precision::Fake).values(), q.values));
    CHECK(same_bits(site->packed()->grid().scale, q.grid.scale));
    CHECK(is_identity(site->left_grid()));
  }
}

TEST_CASE("quantize_gptq: a block sees quantized blocks before it and its own layers float") {
  const Tensor x = random({3, 20, 6}, 21);
  Toy toy(2, 6), expected(2, 6);
  std::vector<double> reported;
  quantize_gptq(
      toy, windows_of(x), {options(3, 4)},
      [&](const std::string& what, double done, double total) {
        CHECK(what == "GPTQ");
        CHECK(total == 3);  // parts: the embedding and two blocks
        reported.push_back(done);
      },
      kNoWarning);
  CHECK(reported == std::vector<double>{0, 1, 2, 3});

  Tensor stream = x;
  for (int i = 0; i < 2; ++i) {
    const Tensor middle = expected.middle({Precision::Float}, i, stream);
    for (Layer* site : expected.layers(i)) {
      const Tensor& input = site == expected.layers(i)[2] ? middle : stream;
      const QuantizedWeight q = gptq(site->weight.values(), hessian_of(input), options(3, 4), site->name, kNoWarning);
      site->quantize({{}, q.grid, q.values, nullptr, nullptr});
    }
    stream = expected.block({Precision::Fake}, i, stream);
    for (size_t s = 0; s < 3; ++s) {
      CHECK(relative_error(rounded(*toy.layers(i)[s]), rounded(*expected.layers(i)[s])) < 1e-4);
      CHECK(toy.layers(i)[s]->packed()->group() == 4);
    }
  }
  CHECK(relative_error(toy.forward({Precision::Fake}, windows_of(x)[1]), sample(stream, 1)) < 1e-4);
}

TEST_CASE("quantize_rtn and quantize_gptq give layers bits of their own, or leave them") {
  Toy rtn(1, 6), gptq(1, 6);
  const auto bits = [](Toy& toy) { return LayerBits{{toy.layers(0)[0], 8}, {toy.layers(0)[1], 0}}; };
  quantize_rtn(rtn, {3, 4}, bits(rtn));
  quantize_gptq(gptq, windows_of(random({2, 20, 6}, 25)), {options(3, 4), bits(gptq)}, kSilent, kNoWarning);
  for (Toy* toy : {&rtn, &gptq}) {
    CHECK(toy->layers(0)[0]->packed()->bits() == 8);
    CHECK_FALSE(toy->layers(0)[1]->is_quantized());
    CHECK((!toy->layers(0)[1]->quantized || toy->layers(0)[1]->quantized->weight.empty()));
    CHECK(toy->layers(0)[2]->packed()->bits() == 3);
  }
}

TEST_CASE("quantize_gptq warns once when there are fewer tokens than columns, and needs a window") {
  Toy toy(2, 32);
  Warnings warnings;
  quantize_gptq(toy, windows_of(random({2, 10, 32}, 22)), {options(4)}, kSilent, warnings.sink());
  REQUIRE(warnings.all.size() == 1);
  CHECK(contains(warnings.all[0], "20 calibration tokens"));
  CHECK(contains(warnings.all[0], "32 columns"));
  CHECK_THROWS_AS(quantize_gptq(toy, {}, {options(4)}, kSilent, kNoWarning), Error);
}

TEST_CASE("quantize_gptq gives the same bits on one and on two threads") {
  CHECK(same_on_two_threads([&] {  // several tiles, several samples a batch
    Toy toy(1, 300);
    Batch batch;
    batch.pixels = random({3, 64, 300}, 13);
    quantize_gptq(toy, {batch, batch}, {options(4)}, kSilent, [](const std::string&) {});
    return rounded(*toy.layers(0)[2]);
  }));
}
