// Round to nearest and GPTQ on one weight: the numbers of the official code, and what GPTQ promises.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "quant/gptq.h"
#include "quant/linalg.h"
#include "quant/moments.h"
#include "tests/golden.h"
#include "tests/gptq_inputs.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// ---- The small case of 3 x 8 with column 5 dead ----

double u(int64_t k) { return static_cast<double>(7919 * k % 1000) / 500 - 1; }

Tensor small_weight() {
  Tensor w({3, 8});
  for (int64_t i = 0; i < 24; ++i) w[i] = static_cast<float>(u(i + 1));
  return w;
}

Tensor small_input() {
  Tensor x({2, 16, 8});
  for (int64_t t = 0; t < 32; ++t)
    for (int64_t c = 0; c < 8; ++c)
      x[t * 8 + c] = c == 5 ? 0 : static_cast<float>(u(1000 + t * 8 + c)) + 0.5f * static_cast<float>(u(5000 + t));
  return x;
}

}  // namespace

// ---- Grids and rounding -------------------------------------------------------------------------

TEST_CASE("rtn: the worked example at 2, 3 and 4 bits") {
  const Tensor w({1, 5}, {-0.9f, -0.2f, 0.05f, 0.4f, 1.3f});
  struct Case {
    int bits;
    double scale, zero;
    Codes codes;
  };
  for (const Case& c : {Case{2, 0.733333, 1, {0, 1, 1, 2, 3}}, Case{3, 0.314286, 3, {0, 2, 3, 4, 7}},
                        Case{4, 0.146667, 6, {0, 5, 6, 9, 15}}}) {
    const QuantizedWeight q = round_to_nearest(w, {c.bits, -1});
    CHECK(q.codes == c.codes);
    CHECK(q.grid.scale[0] == doctest::Approx(c.scale).epsilon(1e-5));
    CHECK(q.grid.zero[0] == c.zero);
    CHECK(q.grid.bits == c.bits);
    CHECK(q.grid.group == 5);
    CHECK(q.damp == 0);
    CHECK(same_bits(fake_quantize(q.grid, w), q.values));
  }
}

TEST_CASE("rtn rounds half to even, before it adds the zero point") {
  const Tensor w({2, 6}, {0, 0.5f, 1.5f, 2.5f, 3.5f, 15, -1, 0.5f, 1.5f, 2.5f, -0.5f, 14});
  const QuantizedWeight q = round_to_nearest(w, {4, -1});
  CHECK(q.codes == Codes{0, 0, 2, 2, 4, 15, 0, 1, 3, 3, 1, 15});
}

TEST_CASE("rtn: rows without negative, without positive and without any values") {
  const Tensor w({4, 3}, {1, 2, 3, -1, -2, -3, 0, 0, 0, 1e-42f, -3e-43f, 0});
  const QuantizedWeight q = round_to_nearest(w, {4, -1});
  check_values(q.values, {1, 2, 3, -1, -2, -3, 0, 0, 0, 0, 0, 0});
  CHECK(q.grid.zero[0] == 0);
  CHECK(q.grid.zero[1] == 15);
}

TEST_CASE("rtn in groups: consecutive columns, a short last group, a group wider than the row") {
  const Tensor w = random({5, 10}, 1);
  const QuantizedWeight q = round_to_nearest(w, {3, 4});
  CHECK(q.grid.scale.shape == Shape{5, 3});
  CHECK(same_bits(fake_quantize(q.grid, w), q.values));
  for (int64_t r = 0; r < 5; ++r) {
    const QuantizedWeight last = round_to_nearest(Tensor({1, 2}, {w[r * 10 + 8], w[r * 10 + 9]}), {3});
    CHECK(q.grid.scale[r * 3 + 2] == last.grid.scale[0]);
    CHECK(q.grid.zero[r * 3 + 2] == last.grid.zero[0]);
  }
  CHECK(round_to_nearest(w, {3, 64}).codes == round_to_nearest(w, {3, -1}).codes);
}

TEST_CASE("rtn, symmetric: the zero point is the middle code; a row without negative values gets the upper half") {
  const QuantizedWeight q =
      round_to_nearest(Tensor({3, 4}, {-2, 1, 0.5f, 1.5f, 1, 2, 3, 7, 0, 0, 0, 0}), {3, -1, true});
  check_values(q.grid.scale, {4. / 7, 1, 2. / 7});
  check_values(q.grid.zero, {4, 4, 4});
  CHECK(q.codes == Codes{1, 6, 5, 7, 5, 6, 7, 7, 4, 4, 4, 4});
}

TEST_CASE("rtn: a range shrunk for the least error has less of it") {
  Tensor w = random({6, 40}, 23, 0.3);
  for (int64_t r = 0; r < 6; ++r) w[r * 40 + 7] = 1;
  const auto error = [&](const QuantizedWeight& q, double norm) {
    double sum = 0;
    for (int64_t i = 0; i < w.size(); ++i) sum += std::pow(std::abs(q.values[i] - w[i]), norm);
    return sum;
  };
  for (const bool sym : {false, true})
    for (const double norm : {2.0, 2.4}) {
      const WeightGrid whole{3, -1, sym}, shrunk{3, -1, sym, norm};
      CHECK(error(round_to_nearest(w, shrunk), norm) < error(round_to_nearest(w, whole), norm));
    }
}

TEST_CASE("gptq and rtn refuse options that mean nothing") {
  const Tensor w = random({2, 4}, 2), x = correlated(1, 16, 4, 3);
  CHECK_THROWS_AS(round_to_nearest(w, {1, -1}), UsageError);
  CHECK_THROWS_AS(round_to_nearest(w, {9, -1}), UsageError);
  CHECK_THROWS_AS(round_to_nearest(w, {4, 0}), UsageError);
  CHECK_THROWS_AS(round_to_nearest(w, {4, -2}), UsageError);
  CHECK_THROWS_AS(round_to_nearest(w, {4, -1, false, -1}), UsageError);
  CHECK_THROWS_AS(round_to_nearest(w, {4, -1, false, NAN}), UsageError);
  CHECK_THROWS_AS(gptq(w, hessian_of(x), options(9), "site", kNoWarning), UsageError);
  CHECK_THROWS_AS(gptq(w, hessian_of(x), options(4, 0), "site", kNoWarning), UsageError);
  CHECK_THROWS_AS(gptq(w, hessian_of(x), options(4, -1, 0), "site", kNoWarning), UsageError);
  GptqOptions o;
  o.percdamp = -0.1;
  CHECK_THROWS_AS(gptq(w, hessian_of(x), o, "site", kNoWarning), UsageError);
  o.percdamp = NAN;
  CHECK_THROWS_AS(gptq(w, hessian_of(x), o, "site", kNoWarning), UsageError);
  CHECK_THROWS_AS(gptq(w, {1, 2, 3}, GptqOptions{}, "site", kNoWarning), Error);
}

// ---- GPTAQ ---------------------------------------------------------------------------------------

TEST_CASE("gptq and gptaq: codes and errors of the golden layer") {
  const int64_t tokens = 64, n = 8, out = 4;
  Tensor x = golden(1, {tokens, n}), xq = x.clone();
  const Tensor common = golden(9001, {tokens}), w = golden(2001, {out, n});
  float most = 0;
  for (int64_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(x[i] += .5f * common[i / n] + .2f));
  for (int64_t i = 0; i < x.size(); ++i)
    xq[i] = std::min(3.f, std::max(-4.f, std::nearbyint(x[i] / (most / 3.5f)))) * (most / 3.5f);
  Moments moments(n);
  moments.add(xq, x);
  // Mean squares of what is wrong with the outputs, and what is left of it less its mean.
  const auto errors = [&](const Tensor& q) {
    double raw = 0, left = 0;
    for (int64_t r = 0; r < out; ++r) {
      double sum = 0, squares = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        double e = 0;
        for (int64_t c = 0; c < n; ++c)
          e += static_cast<double>(x[t * n + c]) * w[r * n + c] - static_cast<double>(xq[t * n + c]) * q[r * n + c];
        sum += e;
        squares += e * e;
      }
      raw += squares / tokens / out;
      left += (squares / tokens - sum / tokens * sum / tokens) / out;
    }
    return std::pair{raw, left};
  };
  struct Case {
    bool centred;
    double share;  // 0: GPTQ
    double error, left;
    Codes row;  // the first one's, less the zero point 4
  };
  for (const Case& c : {Case{false, 0, .047649, .046898, {1, 1, 7, 2, 3, 1, 6, 7}},
                        Case{false, 1, .041719, .041224, {1, 1, 7, 2, 3, 1, 5, 7}},
                        Case{false, .25, .048344, .047624, {1, 1, 7, 2, 3, 1, 6, 7}},
                        Case{true, 0, .048242, .047534, {1, 1, 7, 2, 3, 1, 6, 7}}}) {
    std::vector<double> drift;
    if (c.share > 0) {
      std::vector<double> own = moments.second(c.centred);
      fill_lower(own, n);
      drift = moments.cross(c.centred);
      for (size_t i = 0; i < drift.size(); ++i) drift[i] -= own[i];
    }
    for (const int64_t blocksize : {128, 3}) {  // carried on inside a block, and to the blocks after it
      GptqOptions o = options(3, -1, blocksize);
      o.sym = true;
      if (c.share > 0) o.drift_share = c.share;
      const QuantizedWeight q = gptq(w, moments.second(c.centred), o, "layer", kNoWarning, drift);
      CHECK(Codes(q.codes.begin(), q.codes.begin() + n) == c.row);
      const auto [error, left] = errors(q.values);
      CHECK(error == doctest::Approx(c.error).epsilon(2e-5));
      CHECK(left == doctest::Approx(c.left).epsilon(2e-5));
    }
  }
  // Rounded to nearest, the least weights of rows 1 and 2 lie half-way between two codes.
  const Codes codes = round_to_nearest(w, {3, -1, true}).codes;
  CHECK(Codes(codes.begin(), codes.begin() + n) == Codes{1, 1, 7, 2, 3, 1, 5, 7});
}

TEST_CASE("gptaq: without a drift it is gptq, with act-order the order of its drift follows") {
  const Tensor w = random({6, 40}, 1), x = correlated(1, 96, 40, 2);
  const std::vector<double> h = hessian_of(x);
  GptqOptions o = options(3, -1, 16);
  CHECK(gptq(w, h, o, "layer", kNoWarning, std::vector<double>(h.size())).codes ==
        gptq(w, h, o, "layer", kNoWarning).codes);
  // Columns that are in the order of the Hessian's diagonal already, and the same shuffled.
  std::vector<int64_t> order(40), place(40);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return h[at(a * 41)] > h[at(b * 41)]; });
  const Tensor noise = random({40, 40}, 3);
  Tensor sorted = w.clone();
  std::vector<double> h_sorted(1600), drift(1600), drift_sorted(1600);
  for (int64_t i = 0; i < 1600; ++i)
    drift[at(i)] = .3 * h[at(std::min(i / 40, i % 40) * 40 + std::max(i / 40, i % 40))] * noise[i];
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t j = 0; j < 40; ++j) {
      const int64_t a = order[at(i)], b = order[at(j)];
      h_sorted[at(i * 40 + j)] = h[at(std::min(a, b) * 40 + std::max(a, b))];
      drift_sorted[at(i * 40 + j)] = drift[at(a * 40 + b)];
    }
  for (int64_t i = 0; i < w.size(); ++i) sorted[i] = w[i / 40 * 40 + order[at(i % 40)]];
  const QuantizedWeight plain = gptq(sorted, h_sorted, o, "layer", kNoWarning, drift_sorted);
  o.act_order = true;
  const QuantizedWeight ordered = gptq(w, h, o, "layer", kNoWarning, drift);
  for (int64_t i = 0; i < w.size(); ++i)
    CHECK(ordered.codes[at(i / 40 * 40 + order[at(i % 40)])] == plain.codes[at(i)]);
  CHECK(ordered.codes != gptq(w, h, o, "layer", kNoWarning).codes);
}

// ---- Numbers of the official code ---------------------------------------------------------------

TEST_CASE("gptq: the small case, without groups") {
  const Tensor w = small_weight(), x = small_input();
  const std::vector<double> h = hessian_of(x);
  const double diagonal[] = {16.05166, 14.26088, 14.00571, 11.08216, 11.91422, 0, 11.31720, 11.22011};
  for (int64_t c = 0; c < 8; ++c) CHECK(h[index(c * 9)] == doctest::Approx(diagonal[c]).epsilon(1e-6));

  const QuantizedWeight rtn = round_to_nearest(w, {3, -1});
  check_values(rtn.grid.scale, {.162, .262571, .162});
  check_values(rtn.grid.zero, {2, 4, 5});
  check_values(rtn.values, {.81,      .648,     .486,     .324,      .162,    0,       -.162,   -.324,  //
                            -.525143, -.525143, -.787714, -1.050286, .787714, .787714, .525143, .525143,
                            .324,     .162,     0,        -.162,     -.324,   -.486,   -.648,   -.81});
  const QuantizedWeight q = gptq(w, h, options(3), "site", kNoWarning);
  check_values(q.values, {.81,      .648,     .486,     .324,      .162,    0, -.162,   -.324,  //
                          -.525143, -.525143, -.787714, -1.050286, .787714, 0, .525143, .525143,
                          .324,     0,        0,        -.324,     -.324,   0, -.81,    -.81});
  CHECK(same_bits(q.grid.scale, rtn.grid.scale));
  CHECK(same_bits(q.grid.zero, rtn.grid.zero));
  CHECK(q.damp == 0.01);
  CHECK(output_error(x, w, rtn.values) == doctest::Approx(1.86241).epsilon(1e-5));
  CHECK(output_error(x, w, q.values) == doctest::Approx(0.99215).epsilon(1e-5));
}

TEST_CASE("gptq: a group's grid knows the corrections of the blocks before its own only") {
  const Tensor w = small_weight();
  const std::vector<double> h = hessian_of(small_input());
  const QuantizedWeight stale = gptq(w, h, options(3, 4, 8), "site", kNoWarning);
  check_values(stale.values, {.838,     .718286,  .478857,  .359143,  .208286,  0, -.138857, -.277714,  //
                              -.404571, -.674286, -.809143, -.944,    .894,     0, .510857,  .383143,   //
                              .277714,  .069429,  -.069429, -.208286, -.380571, 0, -.761143, -.888});
  const QuantizedWeight fresh = gptq(w, h, options(3, 4, 4), "site", kNoWarning);
  check_values(fresh.values, {.838,     .718286,  .478857,  .359143,  .208435,  0, -.138957, -.277913,  //
                              -.404571, -.674286, -.809143, -.944,    .915044,  0, .522882,  .392162,   //
                              .277714,  .069429,  -.069429, -.208286, -.378872, 0, -.757744, -.884035});
}

namespace {

// The inputs of tests/fixtures/gptq_official.json, which describes them.
double v(int64_t k) { return static_cast<double>(104729 * k % 10007) / 5003.5 - 1; }

Tensor fixture_weight() {
  Tensor w({64, 256});
  for (int64_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(0.05 * (v(i + 1) + v(11 * (i + 1) + 3) + u(i + 1)));
  return w;
}

Tensor fixture_input() {
  Tensor x({8, 96, 256});
  for (int64_t j = 0; j < 768; ++j)
    for (int64_t c = 0; c < 256; ++c)
      x[j * 256 + c] = c == 5 || c == 100 ? 0
                                          : static_cast<float>(v(256 * j + c + 5000) * (c % 37 == 0 ? 4.0 : 1.0) +
                                                               0.8 * u(8 * j + c % 8) + 0.5 * v(c));
  return x;
}

uint32_t fnv1a(const uint8_t* bytes, int64_t n) {
  uint32_t h = 2166136261u;
  for (int64_t i = 0; i < n; ++i) h = (h ^ bytes[i]) * 16777619u;
  return h;
}

}  // namespace

TEST_CASE("gptq and rtn: codes, scales and zero points of the official code at 64 x 256, with every option") {
  const Tensor w = fixture_weight();
  const std::vector<double> h = hessian_of(fixture_input());
  const json fixture = read_json("tests/fixtures/gptq_official.json");
  for (const json& c : fixture.at("cases")) {
    GptqOptions o = options(c.at("bits").get<int>(), c.at("groupsize").get<int64_t>());
    o.act_order = c.at("act_order").get<bool>();
    o.static_groups = c.at("static_groups").get<bool>();
    o.sym = c.at("sym").get<bool>();
    o.mse = c.at("mse").get<double>();
    std::string options_of_case;
    for (const auto& [key, value] : c.items())
      if (!value.is_array()) options_of_case += key + " " + value.dump() + " ";
    CAPTURE(options_of_case);
    const QuantizedWeight q = c.at("method") == "rtn" ? round_to_nearest(w, o) : gptq(w, h, o, "site", kNoWarning);
    const int64_t groups = q.grid.scale.dim(1);
    // All codes are equal where this was written. Where a value falls between two codes another machine's
    // BLAS may decide otherwise, and the rest of that row may differ: one row of 64 is allowed for that.
    int64_t differ = 0, sums = 0;
    for (int64_t r = 0; r < 64; ++r) {
      const uint8_t* codes = q.codes.data() + r * 256;
      const int64_t sum = std::accumulate(codes, codes + 256, int64_t{0});
      sums += std::abs(sum - c.at("sums")[index(r)].get<int64_t>());
      if (fnv1a(codes, 256) != c.at("codes")[index(r)].get<uint32_t>()) {
        ++differ;
        continue;
      }
      double scale = 0, zero = 0;
      for (int64_t column = 0; column < 256; ++column) {
        const int64_t i = r * groups + q.grid.group_of(column);
        scale += q.grid.scale[i];
        zero += q.grid.zero[i];
        REQUIRE(q.values[r * 256 + column] == q.grid.scale[i] * (codes[column] - q.grid.zero[i]));
      }
      CHECK(scale == doctest::Approx(c.at("scale")[index(r)].get<double>()).epsilon(1e-5));
      CHECK(zero == c.at("zero")[index(r)].get<double>());
    }
    CHECK(differ <= (c.at("method") == "rtn" ? 0 : 1));
    CHECK(sums <= 8);
  }
}

// ---- What GPTQ promises -------------------------------------------------------------------------

TEST_CASE("gptq is never worse than rtn on its calibration data") {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    const Tensor w = random({7, 40}, seed), x = correlated(2, 60, 40, seed + 50);
    for (const int bits : {2, 3, 4, 8}) {
      const double rtn = output_error(x, w, round_to_nearest(w, {bits, -1}).values);
      const double best = output_error(x, w, gptq(w, hessian_of(x), options(bits), "site", kNoWarning).values);
      CHECK(best < rtn);
    }
  }
}

TEST_CASE("gptq with an identity Hessian is rtn") {
  const Tensor w = random({9, 30}, 4);
  std::vector<double> h(900, 0.0);
  for (size_t i = 0; i < 30; ++i) h[i * 31] = 2;
  for (const int64_t groupsize : {-1, 8})
    CHECK(same(gptq(w, h, options(3, groupsize, 16), "site", kNoWarning), round_to_nearest(w, {3, groupsize})));
}

TEST_CASE("gptq: codes and grid decode to the values, with a short last group and a short last block") {
  const Tensor w = random({70, 50}, 5), x = correlated(2, 80, 50, 6);
  for (const int64_t groupsize : {-1, 7, 16, 50, 64}) {
    const QuantizedWeight q = gptq(w, hessian_of(x), options(4, groupsize, 16), "site", kNoWarning);
    const int64_t group = groupsize < 0 ? 50 : groupsize, groups = (50 + group - 1) / group;
    CHECK(q.grid.group == group);
    REQUIRE(q.grid.scale.shape == Shape{70, groups});
    for (int64_t i = 0; i < w.size(); ++i) {
      const int64_t g = i / 50 * groups + i % 50 / group;
      REQUIRE(q.codes[index(i)] < 16);
      REQUIRE(q.values[i] == q.grid.scale[g] * (static_cast<float>(q.codes[index(i)]) - q.grid.zero[g]));
    }
    CHECK(output_error(x, w, q.values) < output_error(x, w, round_to_nearest(w, {4, groupsize}).values));
  }
}

TEST_CASE("gptq: the block size alone changes nothing but the last bits") {
  const Tensor w = random({16, 48}, 7), x = correlated(2, 90, 48, 8);
  const QuantizedWeight a = gptq(w, hessian_of(x), options(4, -1, 5), "site", kNoWarning);
  const QuantizedWeight b = gptq(w, hessian_of(x), options(4, -1, 128), "site", kNoWarning);
  int64_t differ = 0;
  for (size_t i = 0; i < a.codes.size(); ++i) differ += a.codes[i] != b.codes[i];
  CHECK(differ <= 16 * 48 / 100);
}

TEST_CASE("gptq empties dead columns, after a row's grid is chosen and before a group's is") {
  Tensor w = random({6, 12}, 9), x = correlated(2, 40, 12, 10);
  for (int64_t r = 0; r < 6; ++r) w[r * 12 + 4] = 100;
  for (int64_t t = 0; t < x.rows(); ++t) x[t * 12 + 4] = 0;
  const QuantizedWeight rows = gptq(w, hessian_of(x), options(4), "site", kNoWarning);
  const QuantizedWeight groups = gptq(w, hessian_of(x), options(4, 12), "site", kNoWarning);
  for (int64_t r = 0; r < 6; ++r) {
    CHECK(rows.values[r * 12 + 4] == 0);
    CHECK(groups.values[r * 12 + 4] == 0);
    CHECK(rows.grid.scale[r] > 6);
    CHECK(groups.grid.scale[r] < 1);
  }
}

TEST_CASE("gptq gives the same bits on one and on two threads") {
  const Tensor w = random({200, 150}, 11), x = correlated(3, 100, 150, 12);
  const std::vector<double> h = hessian_of(x);
  GptqOptions o = options(3, 32);
  CHECK(same_on_two_threads([&] { return gptq(w, h, o, "site", kNoWarning).values; }));
  o.act_order = true;
  o.mse = 2.4;
  CHECK(same_on_two_threads([&] { return gptq(w, h, o, "site", kNoWarning).values; }));
}

TEST_CASE("gptq with act-order: groups follow the order of the Hessian's diagonal, static ones the columns") {
  const int64_t n = 12;
  const Tensor w = random({5, n}, 21);
  std::vector<double> h(index(n * n), 0.0);  // diagonal: nothing is corrected, so only grids can differ
  const int64_t rank[] = {3, 9, 0, 11, 7, 1, 5, 10, 2, 8, 4, 6};  // of each column, 0 the largest
  for (int64_t c = 0; c < n; ++c) h[index(c * n + c)] = 1.0 / static_cast<double>(1 + rank[c]);
  GptqOptions o = options(3, 5);
  o.act_order = true;
  const QuantizedWeight q = gptq(w, h, o, "site", kNoWarning);
  Tensor sorted({5, n});
  for (int64_t i = 0; i < w.size(); ++i) sorted[i / n * n + rank[i % n]] = w[i];
  const QuantizedWeight want = round_to_nearest(sorted, o);
  REQUIRE(q.grid.column_group.size() == index(n));
  for (int64_t c = 0; c < n; ++c) {
    CHECK(q.grid.group_of(c) == rank[c] / 5);
    for (int64_t r = 0; r < 5; ++r) CHECK(q.codes[index(r * n + c)] == want.codes[index(r * n + rank[c])]);
  }
  CHECK(same_bits(q.grid.scale, want.grid.scale));
  CHECK(same_bits(fake_quantize(q.grid, w), q.values));

  o.static_groups = true;
  const QuantizedWeight fixed = gptq(w, h, o, "site", kNoWarning);
  CHECK(fixed.grid.column_group.empty());
  CHECK(same(fixed, round_to_nearest(w, o)));
}
