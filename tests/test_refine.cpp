// Coordinate descent on codes and the refit of weights, against their definitions in double.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "quant/moments.h"
#include "quant/refine.h"
#include "tests/gptq_inputs.h"

using namespace bcq;
using namespace bcq::test;

namespace {

double plain_error(const Tensor& q, const Tensor& v, const std::vector<double>& c) {
  const int64_t n = q.dim(1);
  double sum = 0;
  for (int64_t r = 0; r < q.dim(0); ++r)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        sum += (static_cast<double>(q[r * n + i]) - v[r * n + i]) * c[index(std::min(i, j) * n + std::max(i, j))] *
               (static_cast<double>(q[r * n + j]) - v[r * n + j]);
  return sum;
}

}  // namespace

TEST_CASE("refine only lowers the error, and stops where no single code can") {
  const Tensor v = random({70, 24}, 1), x = correlated(4, 40, 24, 2);
  const std::vector<double> c = hessian_of(x);
  for (const GptqOptions& o : {options(2, 8), options(3)}) {
    for (const bool solved : {false, true}) {
      QuantizedWeight q = solved ? gptq(v, c, o, "site", kNoWarning) : round_to_nearest(v, o);
      const double before = plain_error(q.values, v, c);
      CHECK(quadratic_error(q.values, v, c) == doctest::Approx(before).epsilon(1e-9));
      double last = before;
      for (int sweeps : {1, 2, 100}) {
        refine(q, v, c, sweeps);
        const double now = plain_error(q.values, v, c);
        CHECK(now <= last);
        last = now;
      }
      CHECK(last < before);
      const int64_t n = 24, groups = q.grid.scale.dim(1);
      for (int64_t i = 0; i < q.values.size(); i += 7) {
        const int64_t at = i / n * groups + q.grid.group_of(i % n);
        CHECK(q.values[i] == q.grid.scale[at] * (static_cast<float>(q.codes[index(i)]) - q.grid.zero[at]));
        for (const float step : {-q.grid.scale[at], q.grid.scale[at]}) {
          const int code = q.codes[index(i)] + (step > 0 ? 1 : -1);
          if (code < 0 || code >= 1 << o.bits) continue;
          Tensor other = q.values.clone();
          other[i] += step;
          CHECK(plain_error(other, v, c) > last * (1 - 1e-6));
        }
      }
    }
  }
}

TEST_CASE("refit_scales: the best scales there are for the codes, and never worse for any row") {
  const Tensor v = random({70, 24}, 1), x = correlated(4, 40, 24, 2);
  const std::vector<double> c = hessian_of(x);
  for (const GptqOptions& base : {options(2, 8), options(3), options(4, 6)}) {
    for (const bool act_order : {false, true}) {
      GptqOptions o = base;
      o.act_order = act_order;
      QuantizedWeight q = gptq(v, c, o, "site", kNoWarning);
      const std::vector<double> before = row_errors(q.values, v, c);
      const Tensor scales = q.grid.scale.clone();
      refit_scales(q, v, c, o);
      const std::vector<double> after = row_errors(q.values, v, c);
      double sum = 0;
      for (size_t r = 0; r < before.size(); ++r) {
        CHECK(after[r] <= before[r] * (1 + 1e-6));
        sum += before[r] - after[r];
      }
      CHECK(sum > 0);
      CHECK_FALSE(same_bits(scales, q.grid.scale));
      // No scale can be changed for the better: the error is a parabola in each, and this its lowest point.
      const int64_t groups = q.grid.scale.dim(1);
      for (int64_t r = 0; r < 70; r += 9)
        for (const float factor : {0.99f, 1.01f}) {
          Tensor other = q.values.clone();
          for (int64_t i = 0; i < 24; ++i)
            if (q.grid.group_of(i) == groups - 1) other[r * 24 + i] *= factor;
          if (scales[r * groups] == q.grid.scale[r * groups]) continue;  // kept as it was
          CHECK(row_errors(other, v, c)[static_cast<size_t>(r)] >= after[static_cast<size_t>(r)] * (1 - 1e-6));
        }
      for (int64_t i = 0; i < q.values.size(); ++i) {
        const int64_t at = i / 24 * groups + q.grid.group_of(i % 24);
        CHECK(q.values[i] == q.grid.scale[at] * (static_cast<float>(q.codes[index(i)]) - q.grid.zero[at]));
      }
    }
  }
}

TEST_CASE("weighted ranges: errors count as their inputs do, and no norm goes with them") {
  Tensor w({1, 8}, {0.1f, 0.2f, -0.1f, 0.15f, -0.2f, 0.05f, 0.12f, 3.f});  // the last hardly counts
  std::vector<double> h(64, 0.0);
  for (size_t i = 0; i < 8; ++i) h[i * 8 + i] = i == 7 ? 1e-4 : 1;
  GptqOptions plain = options(2), weighted = options(2);
  weighted.weighted = true;
  const QuantizedWeight a = gptq(w, h, plain, "site", kNoWarning), b = gptq(w, h, weighted, "site", kNoWarning);
  CHECK(quadratic_error(b.values, w, h) < 0.6 * quadratic_error(a.values, w, h));
  CHECK(b.grid.scale[0] < a.grid.scale[0]);
  weighted.mse = 2.4;
  CHECK_THROWS_AS(gptq(w, h, weighted, "site", kNoWarning), UsageError);
}

TEST_CASE("an error less that of mean inputs is the error about the mean") {
  const Tensor v = random({9, 24}, 3), x = correlated(4, 40, 24, 2);
  Moments moments(24);
  moments.add(x);
  const Tensor q = round_to_nearest(v, options(3)).values;
  const double scale = 4 / (2. * 160 * 9);  // products are 2 / windows of sums
  const double raw = scale * quadratic_error(q, v, moments.second()), mean = squared_error(q, v, moments.mean());
  CHECK(mean > 1e-3 * raw);
  CHECK(scale * quadratic_error(q, v, moments.second(true)) == doctest::Approx(raw - mean).epsilon(1e-11));
  CHECK_THROWS_AS(squared_error(q, random({9, 23}, 3), moments.mean()), Error);
  CHECK_THROWS_AS(Moments(24).mean(), Error);
}

TEST_CASE("refit solves its normal equations, and leaves weights alone without drift") {
  const int64_t n = 12, T = 50;
  const Tensor w = random({5, n}, 3), x = correlated(8, T, n, 4), noise = random({8, T, n}, 5, 0.3);
  Tensor drifted = x.clone();  // x~: shrunk in one column, mixed in the rest, and noisy
  for (int64_t i = 0; i < x.size(); ++i) drifted[i] = 0.8f * x[i] + 0.2f * x[i % n ? i - 1 : i] + noise[i] + 0.5f;
  const auto halves = [&](const Tensor& own, const Tensor& real) {
    std::pair<Moments, Moments> m{Moments(n), Moments(n)};
    for (int64_t j = 0; j < 8; ++j) (j % 2 ? m.second : m.first).add(sample(own, j), sample(real, j));
    return m;
  };
  for (const bool centred : {false, true}) {
    auto [a, b] = halves(drifted, x);
    const Refit got = refit({w}, a, b, centred);
    CHECK(a.samples() == 8);
    REQUIRE(std::isfinite(got.ridge));
    std::vector<double> c = a.second(centred), cross = a.cross(centred);
    double diagonal = 0;
    for (int64_t i = 0; i < n; ++i) diagonal += c[index(i * n + i)] / n;
    double worst = 0, size = 0;
    for (int64_t r = 0; r < 5; ++r)
      for (int64_t j = 0; j < n; ++j) {  // V (C + λ) = W (cross + λ)
        double left = 0, right = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double lambda = i == j ? got.ridge * diagonal : 0;
          left += got.weights[0][r * n + i] * (c[index(std::min(i, j) * n + std::max(i, j))] + lambda);
          right += w[r * n + i] * (cross[index(i * n + j)] + lambda);
        }
        worst = std::max(worst, std::abs(left - right));
        size = std::max(size, std::abs(right));
      }
    CHECK(worst < 1e-5 * size);
  }
  auto [a, b] = halves(x, x);
  const Refit same_inputs = refit({w, w}, a, b, true);
  CHECK(std::isinf(same_inputs.ridge));
  CHECK(same_bits(same_inputs.weights[1], w));
}
