// The levels of tables: against golden vectors, against all choices of levels of small histograms, and against other
// grids.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/grid/table.h"
#include "quant/ranges.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

using Levels = std::vector<uint8_t>;

double v(int64_t k) { return 7919 * k * k % 1009 / 504.5 - 1; }

// [40, 8]: GELU of 3 v(1..) (1 + v(500..)), and softmax over the last axis of 6 v(1..).
std::vector<double> golden_gelu() {
  std::vector<double> x;
  for (int64_t i = 0; i < 320; ++i) {
    const double t = 3 * v(1 + i) * (1 + v(500 + i));
    x.push_back(0.5 * t * (1 + std::erf(t / std::sqrt(2.0))));
  }
  return x;
}
std::vector<double> golden_softmax() {
  std::vector<double> x;
  for (int64_t r = 0; r < 40; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < 8; ++c) sum += std::exp(6 * v(1 + r * 8 + c));
    for (int64_t c = 0; c < 8; ++c) x.push_back(std::exp(6 * v(1 + r * 8 + c)) / sum);
  }
  return x;
}

// The golden vectors' 8-bit grid begins at the least value: (x - lo) / step.
struct Golden {
  double lo, step;
  std::vector<double> histogram = std::vector<double>(256, 0.0);
  std::vector<int> codes;
};
Golden golden(const std::vector<double>& x) {
  Golden g;
  g.lo = *std::min_element(x.begin(), x.end());
  g.step = (*std::max_element(x.begin(), x.end()) - g.lo) / 255;
  for (const double value : x) {
    g.codes.push_back(static_cast<int>(std::nearbyint((value - g.lo) / g.step)));
    ++g.histogram[static_cast<size_t>(g.codes.back())];
  }
  return g;
}

std::vector<double> random_histogram(size_t bins, uint32_t seed, double sharpness) {
  const Tensor x = random({static_cast<int64_t>(bins)}, seed);
  std::vector<double> histogram;
  for (int64_t i = 0; i < x.size(); ++i)
    histogram.push_back(i % 3 == 1 ? 0 : std::exp(sharpness * x[i] - 0.02 * static_cast<double>(i)));
  return histogram;
}

// The least error of `count` levels out of all, by trying them.
double least_error(const std::vector<double>& histogram, size_t count, Levels chosen = {}) {
  if (chosen.size() == count) return levels_error(histogram, chosen);
  double least = INFINITY;
  for (size_t next = chosen.empty() ? 0 : chosen.back() + size_t{1}; next < histogram.size(); ++next) {
    Levels more = chosen;
    more.push_back(static_cast<uint8_t>(next));
    least = std::min(least, least_error(histogram, count, more));
  }
  return least;
}

}  // namespace

TEST_CASE("best_levels reproduces the golden vectors") {
  struct Case {
    std::vector<double> x;
    int bits;
    double lo, step;
    Levels levels;
    double error;
  };
  for (const Case& c :
       {Case{golden_gelu(),
             4,
             -.169958,
             .01954567,
             {2, 8, 15, 27, 39, 49, 66, 88, 108, 122, 135, 150, 162, 184, 199, 248},
             .00288990},
        Case{golden_gelu(), 3, -.169958, .01954567, {5, 22, 44, 70, 101, 139, 188, 248}, .01458702},
        Case{golden_softmax(),
             4,
             .000007,
             .00388653,
             {0, 7, 16, 27, 41, 57, 76, 98, 117, 134, 149, 174, 188, 208, 223, 250},
             9.027e-5},
        Case{golden_softmax(), 3, .000007, .00388653, {1, 16, 38, 66, 108, 144, 186, 236}, 4.7935e-4}}) {
    CAPTURE(c.bits);
    const Golden g = golden(c.x);
    CHECK(g.lo == doctest::Approx(c.lo).epsilon(1e-5).scale(1));
    CHECK(g.step == doctest::Approx(c.step).epsilon(1e-6));
    const Levels levels = best_levels(g.histogram, c.bits);
    CHECK(levels == c.levels);
    // A table of step 1 and zero point 0 takes codes to levels.
    const Table table{c.bits, 1, 0, levels};
    double error = 0;
    for (size_t i = 0; i < c.x.size(); ++i) {
      const Tensor level = fake_quantize(table, Tensor({1}, {static_cast<float>(g.codes[i])}));
      error += std::pow(c.x[i] - (g.lo + g.step * level[0]), 2) / 320;
    }
    CHECK(error == doctest::Approx(c.error).epsilon(1e-4));
  }
}

TEST_CASE("best_levels is the best of all choices") {
  for (uint32_t seed = 1; seed <= 12; ++seed)
    for (const size_t bins : {1, 2, 5, 12}) {
      const std::vector<double> histogram = random_histogram(bins, seed, seed % 4);
      for (const int bits : {1, 2}) {
        const Levels levels = best_levels(histogram, bits);
        CHECK(levels.size() <= size_t{1} << bits);
        CHECK(std::is_sorted(levels.begin(), levels.end()));
        const double least = least_error(histogram, std::min(bins, size_t{1} << bits));
        CHECK(levels_error(histogram, levels) <= least * (1 + 1e-12) + 1e-12);
      }
    }
}

TEST_CASE("a table is never worse than uniform, logarithmic or Lloyd's levels on the same histogram") {
  for (uint32_t seed = 1; seed <= 8; ++seed)
    for (int bits = 1; bits <= 6; ++bits) {
      const std::vector<double> histogram = random_histogram(256, seed, 1 + seed % 5);
      const double best = levels_error(histogram, best_levels(histogram, bits)) * (1 - 1e-9) - 1e-9;
      const int count = 1 << bits;
      for (int top = 8; top < 256; top += 31) {
        Levels uniform, log;
        for (int i = 0; i < count; ++i) {
          uniform.push_back(static_cast<uint8_t>(std::nearbyint(top * i / (count - 1.0))));
          log.push_back(static_cast<uint8_t>(i + 1 < count ? std::nearbyint(top * std::exp2(-i / 2.0)) : 0));
        }
        CHECK(best <= levels_error(histogram, uniform));
        CHECK(best <= levels_error(histogram, log));
        Levels lloyd = uniform;
        for (int round = 0; round < 10; ++round) {  // every level to the mean of what is nearest to it
          std::vector<double> sum(lloyd.size(), 0), n(lloyd.size(), 0);
          for (size_t u = 0; u < 256; ++u) {
            size_t nearest = 0;
            for (size_t l = 1; l < lloyd.size(); ++l)
              if (std::abs(lloyd[l] - static_cast<int>(u)) < std::abs(lloyd[nearest] - static_cast<int>(u)))
                nearest = l;
            sum[nearest] += histogram[u] * static_cast<double>(u), n[nearest] += histogram[u];
          }
          for (size_t l = 0; l < lloyd.size(); ++l)
            if (n[l] > 0) lloyd[l] = static_cast<uint8_t>(std::nearbyint(sum[l] / n[l]));
        }
        CHECK(best <= levels_error(histogram, lloyd));
      }
    }
}

TEST_CASE("best_levels of few values, of none and of weights") {
  std::vector<double> histogram(256, 0.0);
  CHECK(levels_error(histogram, best_levels(histogram, 3)) == 0);
  histogram[3] = 5, histogram[77] = 1, histogram[255] = 2;
  CHECK(levels_error(histogram, best_levels(histogram, 2)) == 0);
  CHECK(best_levels(histogram, 1) == Levels{15, 255});  // 15.33, the mean of 3, five times, and 77
  histogram[77] = 100;                                  // what weighs more pulls its level
  CHECK(best_levels(histogram, 1) == Levels{73, 255});
  for (int bits = 1; bits <= 8; ++bits) CHECK(best_levels(histogram, bits).size() <= size_t{1} << bits);
  CHECK(levels_error(random_histogram(256, 3, 2), best_levels(random_histogram(256, 3, 2), 8)) == 0);
  histogram[5] = -1;
  CHECK_THROWS_AS(best_levels(histogram, 3), Error);
  histogram[5] = NAN;
  CHECK_THROWS_AS(best_levels(histogram, 3), Error);
  CHECK_THROWS_AS(best_levels({}, 3), Error);
  CHECK_THROWS_AS(best_levels({1, 2}, 9), Error);
  CHECK_THROWS_AS(best_levels({1, 2}, 0), Error);
  CHECK_THROWS_AS(best_levels(std::vector<double>(257, 1.0), 3), Error);
}
