// Grids against the formulas of their papers, value for value, at ties, range ends
// and shared axes.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/affine.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "tests/grid_codes.h"

using namespace bcq;
using namespace bcq::test;

namespace {

double clamp(double x, double lo, double hi) { return x < lo ? lo : x > hi ? hi : x; }
double half_to_even(double x) { return std::nearbyint(x); }  // the default rounding mode

// The step is divided by and multiplied with in float, as in the reference implementations.
double uniform(float x, float delta, int bits) {
  const double m = std::ldexp(1, bits - 1);
  return static_cast<float>(clamp(half_to_even(x / delta), -m, m - 1)) * delta;
}

}  // namespace

TEST_CASE("Identity hands the tensor back") {
  const Tensor x = random({3, 4}, 1);
  CHECK(is_identity(Grid{}));
  CHECK(fake_quantize(Grid{}, x).data == x.data);
  CHECK_FALSE(is_identity(Grid{Uniform{4, 0, {1.f}}}));
}

TEST_CASE("Uniform rounds ties to even and clamps to -m and m-1") {
  const Tensor x({1, 12}, {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 3.4f, 3.6f, 100, -4.4f, -4.6f, -100});
  const Tensor y = fake_quantize(Uniform{3, 0, {1.f}}, x);  // m = 4
  const float want[] = {0, 2, 2, 0, -2, -2, 3, 3, 3, -4, -4, -4};
  CHECK(all_equal(y, [&](int64_t i) { return want[i]; }));
  const Tensor z = fake_quantize(Uniform{8, 0, {0.25f}}, Tensor({2}, {0.375f, 0.625f}));  // 1.5 and 2.5 steps
  CHECK(z[0] == 0.5f);
  CHECK(z[1] == 0.5f);
}

TEST_CASE("Uniform follows its formula at every width, leaves its input alone, and is idempotent") {
  for (int bits = 2; bits <= 8; ++bits) {
    const Tensor x = random({5, 7001}, 2, 3), before = x.clone();
    const float delta = static_cast<float>(2.9 / (std::ldexp(1, bits - 1) - 0.5));
    const Grid grid = Uniform{bits, 0, {delta}};
    const Tensor y = fake_quantize(grid, x);
    CHECK(y.shape == x.shape);
    CHECK(all_equal(y, [&](int64_t i) { return uniform(x[i], delta, bits); }));
    CHECK(same_bits(x, before));
    CHECK(same_bits(fake_quantize(grid, y), y));
    CHECK(same_on_two_threads([&] { return fake_quantize(grid, x); }));
  }
}

TEST_CASE("Uniform has one step for each part of its axis") {
  const Tensor w = random({6, 5}, 3);  // row blocks of a weight
  const std::vector<float> steps = {0.1f, 0.02f, 0.3f};
  CHECK(all_equal(fake_quantize(Uniform{4, 0, steps}, w),
                  [&](int64_t i) { return uniform(w[i], steps[static_cast<size_t>(i / 10)], 4); }));
  const std::vector<float> rows = {0.1f, 0.2f, 0.05f, 0.4f, 0.01f, 0.3f};
  CHECK(all_equal(fake_quantize(Uniform{4, 0, rows}, w),
                  [&](int64_t i) { return uniform(w[i], rows[static_cast<size_t>(i / 5)], 4); }));
  const Tensor heads = random({2, 3, 4, 5}, 4);  // one step a head
  const Grid grid = Uniform{6, 1, steps};
  CHECK(all_equal(fake_quantize(grid, heads),
                  [&](int64_t i) { return uniform(heads[i], steps[static_cast<size_t>(i / 20 % 3)], 6); }));
  CHECK(same_on_two_threads([&] { return fake_quantize(grid, heads); }));
  CHECK(same_bits(sample(fake_quantize(grid, heads), 1), fake_quantize(grid, sample(heads, 1))));
  // one step for everything, whatever the axis says
  CHECK(all_equal(fake_quantize(Uniform{6, 1, {0.1f}}, heads), [&](int64_t i) { return uniform(heads[i], 0.1f, 6); }));
}

TEST_CASE("Uniform refuses steps that do not fit") {
  CHECK_THROWS_AS(fake_quantize(Uniform{4, 0, {1, 1, 1, 1}}, random({6, 5}, 1)), Error);
  CHECK_THROWS_AS(fake_quantize(Uniform{4, 2, {1, 1}}, random({6, 5}, 1)), Error);
  CHECK_THROWS_AS(fake_quantize(Uniform{4, 0, {}}, random({6, 5}, 1)), Error);
}

TEST_CASE("TwinGelu has one step a sign") {
  for (const int bits : {3, 4, 6, 8}) {
    const double m = std::ldexp(1, bits - 1);
    const auto neg = static_cast<float>(0.16997124254703522 / m), pos = static_cast<float>(2.9 / (m - 0.5));
    const Tensor x = random({3, 6007}, 5, 3);
    const Grid grid = TwinGelu{bits, pos, neg};
    CHECK(all_equal(fake_quantize(grid, x), [&](int64_t i) {
      return x[i] > 0 ? static_cast<float>(clamp(half_to_even(x[i] / pos), 0, m - 1)) * pos
                      : static_cast<float>(clamp(half_to_even(x[i] / neg), -m, 0)) * neg;
    }));
    CHECK(same_on_two_threads([&] { return fake_quantize(grid, x); }));
  }
  const Tensor y = fake_quantize(TwinGelu{4, 1, 0.125f}, Tensor({6}, {0.5f, 1.5f, 9, -0.0625f, -0.1875f, -9}));
  const float want[] = {0, 2, 7, 0, -0.25f, -1};
  CHECK(all_equal(y, [&](int64_t i) { return want[i]; }));
}

TEST_CASE("TwinSoftmax reproduces the official quantizer") {
  // a row of 4 bits and split 2^-19, as the official class quantizes it
  const Tensor row({4}, {.5155051f, .2696560f, .1410546f, .0737844f});
  const double want[] = {.5714305, .2857162, .1428591, .1428591};
  const Tensor y = fake_quantize(TwinSoftmax{4, std::ldexp(1.f, -19), true}, row);
  for (int64_t i = 0; i < 4; ++i) CHECK(std::abs(y[i] - want[i]) < 1e-7);
}

TEST_CASE("TwinSoftmax follows both formulas at every split") {
  Tensor x = random({3, 6007}, 6, 0.5);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = std::pow(x[i] + 0.5f, 6.f);  // in [0, 1), mostly small
  x[0] = 0;
  x[1] = 1;
  for (const int bits : {4, 6, 8})
    for (int power = 0; power < 20; ++power) {
      const double M = std::ldexp(1, bits - 1) - 1;
      const float t = std::ldexp(1.f, -power), step = t / static_cast<float>(M);
      // The split itself is the first value of the coarse range.
      x[2] = t;
      const Tensor official = fake_quantize(TwinSoftmax{bits, t, true}, x);
      const Tensor clean = fake_quantize(TwinSoftmax{bits, t, false}, x);
      const auto low = [&](double v) { return half_to_even(static_cast<float>(v) / step) * step; };
      const auto high = [&](double v) { return half_to_even(static_cast<float>(v * M)) / M; };
      double worst_official = 0, worst_clean = 0;
      for (int64_t i = 0; i < x.size(); ++i) {
        worst_official =
            std::max(worst_official, std::abs(official[i] - (high(clamp(x[i], t, 1)) + low(clamp(x[i], 0, t)))));
        const double disjoint = x[i] < t ? std::min(M, half_to_even(x[i] / step)) * step : high(x[i]);
        worst_clean = std::max(worst_clean, std::abs(clean[i] - disjoint));
      }
      CHECK(worst_official < 2e-7);  // the additions and divisions of float; a wrong code is off by t / 127 or more
      CHECK(worst_clean < 2e-7);
    }
}

TEST_CASE("the ranges of the two TwinSoftmax forms are told apart by a large value") {
  const Tensor x({2}, {0.9f, 0.01f});
  const float t = 0.25f;  // 4 bits: M = 7, t M = 1.75 rounds to 2
  const Tensor official = fake_quantize(TwinSoftmax{4, t, true}, x), clean = fake_quantize(TwinSoftmax{4, t, false}, x);
  CHECK(official[0] == doctest::Approx(6. / 7 + 0.25));
  CHECK(clean[0] == doctest::Approx(6. / 7));
  CHECK(official[1] == doctest::Approx(2. / 7));
  CHECK(clean[1] == 0);
}

TEST_CASE("Affine reproduces the worked example of the official Quantizer") {
  const Tensor x({1, 5}, {-0.9f, -0.2f, 0.05f, 0.4f, 1.3f});
  struct Case {
    int bits;
    double scale;
    float zero;
    int codes[5];
  };
  for (const Case& c : {Case{2, 2.2 / 3, 1, {0, 1, 1, 2, 3}}, Case{3, 2.2 / 7, 3, {0, 2, 3, 4, 7}},
                        Case{4, 2.2 / 15, 6, {0, 5, 6, 9, 15}}}) {
    const auto s = static_cast<float>(c.scale);
    const Tensor y = fake_quantize(Affine{c.bits, 5, Tensor({1, 1}, {s}), Tensor({1, 1}, {c.zero})}, x);
    CHECK(all_equal(y, [&](int64_t i) { return s * (static_cast<float>(c.codes[i]) - c.zero); }));
  }
}

TEST_CASE("Affine rounds before it adds the zero point, and groups columns") {
  // x / s = 0.5 and z = 1: 0 + 1, where rounding the sum 1.5 would give 2
  const Tensor tie = fake_quantize(Affine{3, 1, Tensor({1, 1}, {2.f}), Tensor({1, 1}, {1.f})}, Tensor({1, 1}, {1.f}));
  CHECK(tie[0] == 0);

  const Tensor x = random({3, 7}, 7, 2);  // groups of 3, 3 and 1 columns
  const Tensor scale({3, 3}, {.1f, .2f, .3f, .4f, .5f, .6f, .15f, .25f, .35f});
  const Tensor zero({3, 3}, {0, 1, 2, 3, 4, 5, 6, 7, 15});
  const Grid grid = Affine{4, 3, scale, zero};
  CHECK(all_equal(fake_quantize(grid, x), [&](int64_t i) {
    const int64_t g = i / 7 * 3 + i % 7 / 3;
    return scale[g] * static_cast<float>(clamp(half_to_even(x[i] / scale[g]) + zero[g], 0, 15) - zero[g]);
  }));
  CHECK(same_on_two_threads([&] { return fake_quantize(grid, x); }));

  const std::vector<int32_t> group_of{2, 0, 1, 0, 1, 0, 1};  // groups that are not of neighbours
  CHECK(all_equal(fake_quantize(Affine{4, 3, scale, zero, group_of}, x), [&](int64_t i) {
    const int64_t g = i / 7 * 3 + group_of[static_cast<size_t>(i % 7)];
    return scale[g] * static_cast<float>(clamp(half_to_even(x[i] / scale[g]) + zero[g], 0, 15) - zero[g]);
  }));
}

TEST_CASE("an Affine grid is symmetric when all its zero points are the middle code") {
  Affine grid{3, 4, Tensor({2, 2}, {1, 1, 1, 1}), Tensor({2, 2}, {4, 4, 4, 4})};
  CHECK(is_symmetric(grid));
  for (const float other : {3.f, 5.f}) {
    grid.zero[3] = other;
    CHECK_FALSE(is_symmetric(grid));
  }
}

TEST_CASE("storage_bits counts codes, steps and zero points") {
  CHECK(storage_bits(Identity{}, {10, 20}) == 6400);
  CHECK(storage_bits(Uniform{4, 0, {1, 1, 1}}, {10, 20}) == 200 * 4 + 3 * 32);
  CHECK(storage_bits(Affine{3, 20, Tensor({10, 1}), Tensor({10, 1})}, {10, 20}) == 200 * 3 + 10 * (16 + 3));
  CHECK(storage_bits(Affine{2, 8, Tensor({10, 3}), Tensor({10, 3})}, {10, 20}) == 200 * 2 + 30 * (16 + 2));
  Tensor scale({10, 1});
  scale[7] = 0.1f;  // no number of 16 bits
  CHECK(storage_bits(Affine{3, 20, scale, Tensor({10, 1})}, {10, 20}) == 200 * 3 + 10 * (32 + 3));
  const Affine ordered{2, 8, Tensor({10, 3}), Tensor({10, 3}), std::vector<int32_t>(20, 0)};
  CHECK(storage_bits(ordered, {10, 20}) == 200 * 2 + 30 * (16 + 2) + 20 * 32);
}

TEST_CASE("codes stand for the rounded values: uniform and twin grids") {
  const Tensor x = spread({3, 701}, 11, 4), gelu = spread({1, 2103}, 12, 4);
  Tensor a = spread({1, 2103}, 13);
  for (int64_t i = 0; i < a.size(); ++i) a[i] = std::min(std::abs(a[i]), 1.f);
  for (int bits = 2; bits <= 8; ++bits) {
    CAPTURE(bits);
    const Grid uniforms[] = {Uniform{bits, 0, {0.1f}}, Uniform{bits, 0, {0.1f, 0.02f, 0.3f}}};
    for (const Grid& grid : uniforms) {
      const Tensor want = fake_quantize(grid, x), got = decoded(grid, x), of_signed = decoded_signed(grid, x);
      CHECK(all_equal(want, got));
      CHECK(all_equal(want, of_signed));
    }
    const Grid twin = TwinGelu{bits, 0.11f, 0.013f};
    CHECK(all_equal(fake_quantize(twin, gelu), decoded(twin, gelu)));
    CHECK_FALSE(twin.has_signed_codes());
    for (const bool official : {true, false}) {  // scales of codes are rounded quotients: not to the last bit
      const Grid grid = TwinSoftmax{bits, 0.125f, official};
      CHECK(relative_error(decoded(grid, a), fake_quantize(grid, a)) < 2e-7);
    }
  }
  for (const Grid& wide : {Grid{Uniform{9, 0, {1.f}}}, Grid{TwinGelu{9, 1, 1}}, Grid{TwinSoftmax{9, 1.f}}}) {
    CHECK_FALSE(wide.has_codes());
    CHECK_FALSE(wide.has_signed_codes());
  }
}

TEST_CASE("a grid is read back from its name and description") {
  const Tensor x = random({2, 4, 3, 5}, 14);
  for (const Grid& grid :
       {Grid{}, Grid{Uniform{4, 0, {0.1f}}}, Grid{Uniform{6, 1, {0.1f, 0.2f, 0.3f, 0.4f}}},
        Grid{TwinGelu{3, 0.1f, 0.02f}}, Grid{TwinSoftmax{5, 0.25f, true}}, Grid{TwinSoftmax{5, 0.25f, false}}}) {
    CAPTURE(grid.name());
    const Grid again = read_grid(grid.name(), grid.describe());
    CHECK(again.name() == grid.name());
    CHECK(again.describe() == grid.describe());
    CHECK(same_bits(fake_quantize(again, x), fake_quantize(grid, x)));
  }
  const Tensor w = random({2, 8}, 15);
  const Grid rows = Affine{3, 8, Tensor({2, 1}, {0.2f, 0.3f}), Tensor({2, 1}, {3, 4})};
  const Grid again = read_grid("affine", rows.describe());
  CHECK(again.describe() == rows.describe());
  CHECK(same_bits(fake_quantize(again, w), fake_quantize(rows, w)));
  CHECK_THROWS_AS(Grid{Affine(4, 4, Tensor({2, 2}), Tensor({2, 2}))}.describe(), Error);  // groups
}

TEST_CASE("read_grid refuses what is no description") {
  const Fields good = {{"bits", int64_t{4}}, {"intervals", std::vector<float>{0.1f}}};
  CHECK_NOTHROW(read_grid("uniform", good));
  CHECK_THROWS_AS(read_grid("unifrom", good), InputError);
  CHECK_THROWS_AS(read_grid("twin-gelu", good), InputError);  // without its steps
  Fields bad = good;
  bad["intervals"] = 0.1f;  // a number, not an array
  CHECK_THROWS_AS(read_grid("uniform", bad), InputError);
  bad = good, bad["bits"] = 4.f;
  CHECK_THROWS_AS(read_grid("uniform", bad), InputError);
  for (const int64_t bits : {int64_t{0}, int64_t{-3}, int64_t{17}, int64_t{1} << 32}) {
    bad = good, bad["bits"] = bits;
    CHECK_THROWS_AS(read_grid("uniform", bad), InputError);
  }
  bad = good, bad["intervals"] = std::vector<float>{0.1f, 0.2f};  // along no axis
  CHECK_THROWS_AS(read_grid("uniform", bad), InputError);
}

TEST_CASE("the grid of one unit rounds as its part does") {
  const Tensor x = random({1, 3, 4, 5}, 15);
  const Grid heads = Uniform{4, 1, {0.1f, 0.02f, 0.3f}};
  for (int64_t h = 0; h < 3; ++h) {
    const Tensor part = Tensor::borrow({4, 5}, x.data + h * 20, x.owner), whole = fake_quantize(heads, x);
    CHECK(same_bits(fake_quantize(heads.unit(h), part), Tensor::borrow({4, 5}, whole.data + h * 20, whole.owner)));
  }
  CHECK(heads.is_along(1));
  CHECK_FALSE(heads.is_along(0));
  const Grid one = TwinGelu{4, 0.1f, 0.2f};
  CHECK(one.is_along(0));
  CHECK(one.is_along(1));
  CHECK(one.unit(0).is<TwinGelu>());
  CHECK(Grid{}.unit(0).is_identity());
}
