// Grids against the formulas of their papers, value for value, at ties, range ends
// and shared axes.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/affine.h"
#include "engine/grid/twin_gelu.h"
#include "engine/grid/twin_softmax.h"
#include "engine/grid/uniform.h"
#include "tests/support.h"

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

// Are all values of f(i) equal to y[i]? -0 counts as 0.
template <class F>
bool all_equal(const Tensor& y, F f) {
  for (int64_t i = 0; i < y.size(); ++i)
    if (static_cast<double>(y[i]) != static_cast<double>(f(i))) return false;
  return true;
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
