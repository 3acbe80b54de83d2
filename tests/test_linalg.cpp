// The factor of an inverse against its definition, and the matrices it must refuse.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "quant/linalg.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

size_t index(int64_t i) { return static_cast<size_t>(i); }

// Σ x xᵀ of `rows` random vectors, with `damp` added to the diagonal.
std::vector<double> gram(int64_t n, int64_t rows, double damp, uint32_t seed) {
  const Tensor x = random({rows, n}, seed);
  std::vector<double> h(index(n * n), 0.0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t r = 0; r < rows; ++r)
        h[index(i * n + j)] += static_cast<double>(x[r * n + i]) * static_cast<double>(x[r * n + j]);
    h[index(i * n + i)] += damp;
  }
  return h;
}

// Largest entry of |UᵀU h - I|.
double residual(const std::vector<double>& u, const std::vector<double>& h, int64_t n) {
  std::vector<double> inverse(index(n * n), 0.0);
  for (int64_t k = 0; k < n; ++k)
    for (int64_t i = k; i < n; ++i)
      for (int64_t j = k; j < n; ++j) inverse[index(i * n + j)] += u[index(k * n + i)] * u[index(k * n + j)];
  double worst = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = i == j ? -1 : 0;
      for (int64_t k = 0; k < n; ++k) sum += inverse[index(i * n + k)] * h[index(k * n + j)];
      worst = std::max(worst, std::abs(sum));
    }
  return worst;
}

}  // namespace

TEST_CASE("factor_inverse: U is upper triangular, has a positive diagonal, and UᵀU h = I") {
  for (const int64_t n : {1, 2, 7, 64, 129}) {
    const std::vector<double> h = gram(n, 2 * n + 3, 0.1, 5);
    std::vector<double> u = h;
    REQUIRE(factor_inverse(u, n));
    for (int64_t i = 0; i < n; ++i) {
      CHECK(u[index(i * n + i)] > 0);
      for (int64_t j = 0; j < i; ++j) REQUIRE(u[index(i * n + j)] == 0);
    }
    CHECK(residual(u, h, n) < 1e-11);
  }
}

TEST_CASE("factor_inverse: a 2 x 2 case by hand") {
  // h⁻¹ = [[0.6, -0.2], [-0.2, 0.4]] = UᵀU, solved from the first row on.
  std::vector<double> u = {2, 1, 1, 3};
  REQUIRE(factor_inverse(u, 2));
  const double u00 = std::sqrt(0.6), u01 = -0.2 / u00;
  CHECK(u[0] == doctest::Approx(u00));
  CHECK(u[1] == doctest::Approx(u01));
  CHECK(u[2] == 0);
  CHECK(u[3] == doctest::Approx(std::sqrt(0.4 - u01 * u01)));
}

TEST_CASE("factor_inverse reads the upper triangle only") {
  const int64_t n = 9;
  std::vector<double> u = gram(n, 30, 0, 6), v = u;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) v[index(i * n + j)] = NAN;
  REQUIRE(factor_inverse(u, n));
  REQUIRE(factor_inverse(v, n));
  CHECK(u == v);
}

TEST_CASE("factor_inverse refuses what is not positive definite") {
  std::vector<double> zero = {0}, negative = {-1}, indefinite = {1, 3, 3, 1}, nan = {NAN};
  CHECK_FALSE(factor_inverse(zero, 1));
  CHECK_FALSE(factor_inverse(negative, 1));
  CHECK_FALSE(factor_inverse(indefinite, 2));
  CHECK_FALSE(factor_inverse(nan, 1));
  // Rank 10 of 24: rounding may leave positive pivots, but they say nothing.
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::vector<double> singular = gram(24, 10, 0, seed);
    CHECK_FALSE(factor_inverse(singular, 24));
  }
  std::vector<double> empty;
  CHECK(factor_inverse(empty, 0));
  CHECK_THROWS_AS(factor_inverse(empty, 1), Error);
}

TEST_CASE("factor_inverse does not depend on the scale of h") {
  const int64_t n = 16;
  std::vector<double> h = gram(n, 40, 0, 7), tiny = h;
  for (double& v : tiny) v *= std::ldexp(1.0, -200);
  REQUIRE(factor_inverse(h, n));
  REQUIRE(factor_inverse(tiny, n));
  for (size_t i = 0; i < h.size(); ++i) REQUIRE(tiny[i] == std::ldexp(h[i], 100));
}

TEST_CASE("factor_inverse gives the same bits on one and on two threads") {
  const int64_t n = 300;
  const std::vector<double> h = gram(n, 400, 0, 8);
  std::vector<double> one = h, two = h;
  {
    const Threads t(1);
    REQUIRE(factor_inverse(one, n));
  }
  {
    const Threads t(2);
    REQUIRE(factor_inverse(two, n));
  }
  CHECK(one == two);
}
