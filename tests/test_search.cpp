// The scale search against a direct one: every candidate's output in double, scored by the
// definition of the metric; ties, vanishing weights, independent units, threads.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "engine/nn/ops.h"
#include "quant/search.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

constexpr int kBits = 4;

Layer linear_site(Role role, int64_t out, int64_t in, uint32_t seed) {
  Layer site;
  site.name = "site";
  site.role = role;
  site.weight = random({out, in}, seed);
  site.bias.loaded = random({out}, seed + 1);
  return site;
}

Layer product_site(Role role) {
  Layer site;
  site.name = "product";
  site.role = role;
  return site;
}

Operands data_of(const Layer& site, const Tensor& a, const Tensor& b, uint32_t seed) {
  Operands data{a, b, site.product({Precision::Float}, a, b), {}};
  data.g2 = random(data.y.shape, seed);
  for (int64_t i = 0; i < data.g2.size(); ++i) data.g2[i] *= data.g2[i];
  return data;
}

// Steps of `delta` times 0.05, 0.1, ... 2 for each of `units` parts of dimension `axis`.
Candidates steps(int64_t units, int axis, float delta) {
  Candidates c;
  for (int i = 1; i <= 40; ++i) c.multipliers.push_back(0.05f * static_cast<float>(i));
  c.units = units;
  c.grid = [=](const std::vector<float>& m) {
    Uniform grid{kBits, axis, m};
    for (float& step : grid.scale) step *= delta;
    return Grid{grid};
  };
  return c;
}

// Similarity of values at `index`, the positions a unit owns cut into vectors.
double similarity(Metric metric, const Operands& data, const Tensor& q, const std::vector<std::vector<int64_t>>& own) {
  double sum = 0;
  for (const auto& vector : own) {
    double dot = 0, yy = 0, qq = 0, error = 0;
    for (const int64_t i : vector) {
      const double y = data.y[i], v = q[i], w = metric == Metric::Hessian ? data.g2[i] : 1;
      dot += y * v, yy += y * y, qq += v * v, error += w * (y - v) * (y - v);
    }
    sum += metric == Metric::Cosine ? dot / (std::sqrt(yy) * std::sqrt(qq)) : -error;
  }
  return sum;
}

// The vectors of features that unit `unit` owns in an output [S, H, R, C].
std::vector<std::vector<int64_t>> owned(const Shape& shape, int64_t units, int64_t unit, bool along_rows) {
  const int64_t S = shape[0], H = shape[1], R = shape[2], C = shape[3], width = C / (H > 1 ? 1 : units);
  std::vector<std::vector<int64_t>> own;
  for (int64_t s = 0; s < S; ++s)
    for (int64_t h = 0; h < H; ++h) {
      if (H > 1 && units > 1 && h != unit) continue;
      const int64_t begin = H > 1 ? 0 : unit * width;
      if (along_rows) own.emplace_back();
      for (int64_t r = 0; r < R; ++r) {
        if (!along_rows) own.emplace_back();
        for (int64_t c = begin; c < begin + width; ++c) own.back().push_back(((s * H + h) * R + r) * C + c);
      }
    }
  return own;
}

std::vector<int> direct(const Layer& site, const Operands& data, Metric metric, Side side, const Grid& other_grid,
                        const Candidates& c, const Shape& seen, bool along_rows = false) {
  const Tensor right = site.is_linear() ? site.weight.values() : data.b;
  const Tensor other = fake_quantize(other_grid, side == Side::Left ? right : data.a);
  std::vector<int> best;
  for (int64_t unit = 0; unit < c.units; ++unit) {
    const auto own = owned(seen, c.units, unit, along_rows);
    int at = -1;
    double top = -INFINITY;
    for (size_t i = 0; i < c.multipliers.size(); ++i) {
      const Grid grid = c.grid(std::vector<float>(static_cast<size_t>(c.units), c.multipliers[i]));
      Layer copy = site;
      const Tensor searched = fake_quantize(grid, side == Side::Left ? data.a : right);
      if (site.is_linear()) copy.weight = side == Side::Left ? other : searched;
      const Tensor q = copy.product({Precision::Float}, side == Side::Left ? searched : other,
                                    side == Side::Left ? other : searched);
      const double score = similarity(metric, data, q, own);
      if (score > top) top = score, at = static_cast<int>(i);
    }
    best.push_back(at);
  }
  return best;
}

constexpr Metric kMetrics[] = {Metric::Hessian, Metric::Cosine, Metric::L2};

}  // namespace

TEST_CASE("search: a linear site, input and row blocks of the weight") {
  for (uint32_t seed = 1; seed <= 4; ++seed)
    for (const Metric metric : kMetrics) {
      const Layer site = linear_site(Role::QKV, 12, 10, seed);
      const Operands data = data_of(site, random({19, 7, 10}, seed + 50, 3), {}, seed + 90);
      const Shape seen = {19, 1, 7, 12};  // more samples than slices
      const Candidates x = steps(1, 0, 3.f / 7.5f), w = steps(3, 0, 1.f / 7.5f);
      CHECK(search(site, data, metric, Side::Left, Identity{}, x) ==
            direct(site, data, metric, Side::Left, Identity{}, x, seen));
      CHECK(search(site, data, metric, Side::Right, Identity{}, w) ==
            direct(site, data, metric, Side::Right, Identity{}, w, seen));
    }
}

TEST_CASE("search: one step per output channel compares along the positions") {
  for (const Metric metric : kMetrics) {
    const Layer site = linear_site(Role::Patch, 6, 8, 11);
    const Operands data = data_of(site, random({4, 9, 8}, 12), {}, 13);
    const Candidates w = steps(6, 0, 1.f / 7.5f);
    CHECK(search(site, data, metric, Side::Right, Identity{}, w) ==
          direct(site, data, metric, Side::Right, Identity{}, w, {4, 1, 9, 6}, true));
  }
}

TEST_CASE("search: products of activations, one unit a head and one for all") {
  for (const Metric metric : kMetrics) {
    const Layer qk = product_site(Role::QK), av = product_site(Role::AV);
    const Operands scores = data_of(qk, random({3, 2, 5, 4}, 21, 2), random({3, 2, 6, 4}, 22), 23);
    const Operands context = data_of(av, random({3, 2, 5, 6}, 24), random({3, 2, 6, 4}, 25), 26);
    for (const int64_t units : {1, 2}) {
      const Candidates c = steps(units, 1, 2.f / 7.5f);
      CHECK(search(qk, scores, metric, Side::Left, Identity{}, c) ==
            direct(qk, scores, metric, Side::Left, Identity{}, c, {3, 2, 5, 6}));
      CHECK(search(qk, scores, metric, Side::Right, Identity{}, c) ==
            direct(qk, scores, metric, Side::Right, Identity{}, c, {3, 2, 5, 6}));
      CHECK(search(av, context, metric, Side::Left, Identity{}, c) ==
            direct(av, context, metric, Side::Left, Identity{}, c, {3, 2, 5, 4}));
      CHECK(search(av, context, metric, Side::Right, Identity{}, c) ==
            direct(av, context, metric, Side::Right, Identity{}, c, {3, 2, 5, 4}));
    }
  }
}

TEST_CASE("search: the output of a classifier has no positions") {
  const Layer site = linear_site(Role::Head, 5, 8, 31);
  const Operands data = data_of(site, random({6, 8}, 32), {}, 33);
  const Candidates w = steps(1, 0, 1.f / 7.5f);
  for (const Metric metric : kMetrics)
    CHECK(search(site, data, metric, Side::Right, Identity{}, w) ==
          direct(site, data, metric, Side::Right, Identity{}, w, {6, 1, 1, 5}));
}

TEST_CASE("search: ties go to the first, an all-tie to the multiplier closest to 1") {
  const Layer site = linear_site(Role::Proj, 4, 6, 41);
  Operands data = data_of(site, random({2, 3, 6}, 42), {}, 43);
  Candidates x = steps(1, 0, 1.f / 7.5f);
  x.multipliers = {0.1f, 0.9f, 0.9f, 0.1f};
  CHECK(search(site, data, Metric::L2, Side::Left, Identity{}, x) == std::vector<int>{1});
  data.a = Tensor({2, 3, 6});  // zeros: all candidates alike
  data.y = site.product({Precision::Float}, data.a, {});
  x.multipliers = {0.25f, 0.5f, 1.25f, 0.875f, 3.f};
  for (const Metric metric : kMetrics)
    CHECK(search(site, data, metric, Side::Left, Identity{}, x) == std::vector<int>{3});
}

TEST_CASE("search: a unit whose weights vanish or are not finite is scored without them") {
  const Layer site = linear_site(Role::QKV, 6, 8, 51);
  Operands data = data_of(site, random({4, 5, 8}, 52, 3), {}, 53);
  const Candidates w = steps(3, 0, 1.f / 7.5f);
  const std::vector<int> weighted = search(site, data, Metric::Hessian, Side::Right, Identity{}, w);
  const std::vector<int> plain = search(site, data, Metric::L2, Side::Right, Identity{}, w);
  for (const float bad : {0.f, NAN, INFINITY}) {
    Operands broken = data;
    broken.g2 = data.g2.clone();
    for (int64_t r = 0; r < 20; ++r) broken.g2[r * 6 + 2] = broken.g2[r * 6 + 3] = bad;  // the middle unit
    CHECK(search(site, broken, Metric::Hessian, Side::Right, Identity{}, w) ==
          std::vector<int>{weighted[0], plain[1], weighted[2]});
  }
  data.g2 = Tensor(data.y.shape);
  CHECK(search(site, data, Metric::Hessian, Side::Right, Identity{}, w) == plain);
  data.g2 = {};
  CHECK(search(site, data, Metric::Hessian, Side::Right, Identity{}, w) == plain);
}

TEST_CASE("search: units do not see one another") {
  Layer site = linear_site(Role::QKV, 9, 8, 61);
  Operands data = data_of(site, random({4, 5, 8}, 62), {}, 63);
  const Candidates w = steps(3, 0, 1.f / 7.5f);
  const std::vector<int> before = search(site, data, Metric::Hessian, Side::Right, Identity{}, w);
  Tensor weight = site.weight.values();  // shared memory
  for (int64_t i = 0; i < 3 * 8; ++i) weight[i] *= 0.2f;
  data.y = site.product({Precision::Float}, data.a, {});
  const std::vector<int> after = search(site, data, Metric::Hessian, Side::Right, Identity{}, w);
  CHECK(after[0] != before[0]);
  CHECK(after[1] == before[1]);
  CHECK(after[2] == before[2]);
}

// Of 8 bits and less: products in integers. Of 9: in float.
TEST_CASE("search: beside an operand that is on a grid, of any kind") {
  const auto uniform = [](int bits, int axis, std::vector<float> steps) { return Grid{Uniform{bits, axis, steps}}; };
  for (const int bits : {4, 8, 9}) {
    const float top = std::ldexp(1.f, bits - 1);
    for (const Metric metric : kMetrics) {
      CAPTURE(bits);
      const Layer qkv = linear_site(Role::QKV, 12, 10, 101), fc2 = linear_site(Role::Fc2, 7, 9, 102);
      const Operands in = data_of(qkv, random({5, 7, 10}, 103, 3), {}, 104),
                     mid = data_of(fc2, random({3, 4, 9}, 105), {}, 106);
      const Candidates x = steps(1, 0, 3.f / 7.5f), w = steps(3, 0, 1.f / 7.5f), all = steps(1, 0, 1.f / 7.5f);
      const Grid of_weight = uniform(bits, 0, {1.f / top, 0.9f / top, 0.8f / top}),
                 of_input = uniform(bits, 0, {3 / top});
      const Grid gelu = TwinGelu{bits, 1.f / top, 0.17f / top};
      CHECK(search(qkv, in, metric, Side::Left, of_weight, x) ==
            direct(qkv, in, metric, Side::Left, of_weight, x, {5, 1, 7, 12}));
      CHECK(search(qkv, in, metric, Side::Right, of_input, w) ==
            direct(qkv, in, metric, Side::Right, of_input, w, {5, 1, 7, 12}));
      CHECK(search(fc2, mid, metric, Side::Right, gelu, all) ==
            direct(fc2, mid, metric, Side::Right, gelu, all, {3, 1, 4, 7}));

      const Layer qk = product_site(Role::QK), av = product_site(Role::AV);
      const Operands scores = data_of(qk, random({3, 2, 5, 4}, 107, 2), random({3, 2, 6, 4}, 108), 109);
      const Operands context = data_of(av, softmax(nullptr, random({3, 2, 5, 6}, 110)), random({3, 2, 6, 4}, 111), 112);
      const Candidates heads = steps(2, 1, 2.f / 7.5f);
      const Grid of_heads = uniform(bits, 1, {2 / top, 1.5f / top}), twin = TwinSoftmax{bits, 0.25f};
      CHECK(search(qk, scores, metric, Side::Left, of_heads, heads) ==
            direct(qk, scores, metric, Side::Left, of_heads, heads, {3, 2, 5, 6}));
      CHECK(search(qk, scores, metric, Side::Right, of_heads, heads) ==
            direct(qk, scores, metric, Side::Right, of_heads, heads, {3, 2, 5, 6}));
      CHECK(search(av, context, metric, Side::Right, twin, heads) ==
            direct(av, context, metric, Side::Right, twin, heads, {3, 2, 5, 4}));
    }
  }
}

TEST_CASE("search: rows without weight do not count") {
  const Layer site = linear_site(Role::Fc1, 6, 8, 71), qk = product_site(Role::QK);
  Operands data = data_of(site, random({4, 5, 8}, 72), {}, 73);
  Operands scores = data_of(qk, random({3, 2, 5, 4}, 74), random({3, 2, 6, 4}, 75), 76);
  for (int64_t i = 0; i < data.g2.size(); ++i) data.g2[i] *= static_cast<float>(i / 6 % 5 == 2);
  for (int64_t i = 0; i < scores.g2.size(); ++i) scores.g2[i] *= static_cast<float>(i / 6 % 5 == 0);
  const Candidates x = steps(1, 0, 1.f / 7.5f), heads = steps(2, 1, 1.f / 7.5f);
  CHECK(search(site, data, Metric::Hessian, Side::Left, Identity{}, x) ==
        direct(site, data, Metric::Hessian, Side::Left, Identity{}, x, {4, 1, 5, 6}));
  CHECK(search(site, data, Metric::Hessian, Side::Right, Identity{}, x) ==
        direct(site, data, Metric::Hessian, Side::Right, Identity{}, x, {4, 1, 5, 6}));
  CHECK(search(qk, scores, Metric::Hessian, Side::Left, Identity{}, heads) ==
        direct(qk, scores, Metric::Hessian, Side::Left, Identity{}, heads, {3, 2, 5, 6}));
  CHECK(search(qk, scores, Metric::Hessian, Side::Right, Identity{}, heads) ==
        direct(qk, scores, Metric::Hessian, Side::Right, Identity{}, heads, {3, 2, 5, 6}));
}

TEST_CASE("search: the same on one and on two threads") {
  const Layer site = linear_site(Role::Fc1, 64, 48, 81);
  const Operands data = data_of(site, random({9, 50, 48}, 82), {}, 83);
  const auto run = [&](int count) {
    const Threads t(count);
    return search(site, data, Metric::Hessian, Side::Left, Identity{}, steps(1, 0, 1.f / 7.5f));
  };
  CHECK(run(1) == run(2));
}

TEST_CASE("search: units must divide the output") {
  const Layer site = linear_site(Role::QKV, 8, 4, 91);
  const Operands data = data_of(site, random({2, 3, 4}, 92), {}, 93);
  CHECK_THROWS_AS(search(site, data, Metric::L2, Side::Right, Identity{}, steps(3, 0, 1.f)), Error);
  CHECK_THROWS_AS(search(site, data, Metric::L2, Side::Right, Identity{}, Candidates{}), Error);
}
