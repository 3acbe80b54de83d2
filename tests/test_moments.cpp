// Sums over the inputs of a site against their definition in double.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "quant/moments.h"
#include "tests/gptq_inputs.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// 2 / windows Σ (a - ma)(b - mb)ᵀ; only i <= j when `upper`.  a, b [windows, T, n]
std::vector<double> product(const Tensor& a, const Tensor& b, bool upper, bool centred) {
  const int64_t n = a.dim(-1);
  std::vector<double> h(index(n * n), 0.0), ma(index(n), 0.0), mb(index(n), 0.0);
  for (int64_t t = 0; centred && t < a.rows(); ++t)
    for (int64_t c = 0; c < n; ++c) {
      ma[index(c)] += static_cast<double>(a[t * n + c]) / static_cast<double>(a.rows());
      mb[index(c)] += static_cast<double>(b[t * n + c]) / static_cast<double>(a.rows());
    }
  for (int64_t t = 0; t < a.rows(); ++t)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = upper ? i : 0; j < n; ++j)
        h[index(i * n + j)] +=
            2.0 / static_cast<double>(a.dim(0)) * (a[t * n + i] - ma[index(i)]) * (b[t * n + j] - mb[index(j)]);
  return h;
}

// Window by window, or all at once.
Moments moments_of(const Tensor& x, const Tensor& other, bool one_by_one) {
  Moments m(x.dim(-1));
  if (!one_by_one) m.add(x, other);
  for (int64_t j = 0; one_by_one && j < x.dim(0); ++j) m.add(sample(x, j), other.empty() ? other : sample(other, j));
  return m;
}

}  // namespace

TEST_CASE("moments: products and means by their definition, centred or not, of one stream and of two") {
  for (const int64_t n : {1, 7, 64}) {
    const Tensor x = correlated(3, 50, n, 1), other = correlated(3, 50, n, 9);
    for (const bool one_by_one : {false, true}) {
      const Moments one = moments_of(x, {}, one_by_one), two = moments_of(x, other, one_by_one);
      CHECK(one.tokens() == 150);
      for (const bool centred : {false, true}) {
        CHECK(relative_error(one.second(centred), product(x, x, true, centred)) < 1e-6);
        CHECK(two.second(centred) == one.second(centred));
        CHECK(relative_error(two.cross(centred), product(other, x, false, centred)) < 1e-6);
      }
    }
  }
}

TEST_CASE("moments: whole numbers are summed exactly, over tiles that do not divide the columns") {
  const int64_t n = 1601;  // three tiles a side, the last one narrower
  Tensor x({2, 5, n});
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(7919 * i % 201 - 100);
  const Moments m = moments_of(x, x, false);
  CHECK(m.second() == product(x, x, true, false));
  CHECK(m.cross() == product(x, x, false, false));
}

TEST_CASE("moments: windows of several runs of sums, the last one shorter") {
  const int64_t n = 40;
  Tensor x({2, 1100, n}), other({2, 1100, n});
  for (int64_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(7919 * i % 101 - 50);  // sums of products below 2^24 are exact
    other[i] = static_cast<float>(104729 * i % 89 - 40);
  }
  const Moments m = moments_of(x, other, false);
  CHECK(m.second() == product(x, x, true, false));
  CHECK(m.cross() == product(other, x, false, false));
}

TEST_CASE("moments: the same bits however windows are batched, and on one and on two threads") {
  const Tensor x = random({4, 96, 900}, 3);
  const std::vector<double> together = moments_of(x, {}, false).second(true);
  CHECK(moments_of(x, {}, true).second(true) == together);
  const Threads one(1);
  CHECK(moments_of(x, {}, false).second(true) == together);
}

TEST_CASE("moments refuse what they were not made for") {
  const Tensor x = random({1, 4, 3}, 4);
  CHECK_THROWS_AS(Moments(3).second(), Error);
  CHECK_THROWS_AS(moments_of(x, {}, false).cross(), Error);
  CHECK_THROWS_AS(Moments(4).add(x), Error);
  CHECK_THROWS_AS(Moments(3).add(x, random({1, 3, 4}, 5)), Error);
  Moments m = moments_of(x, x, false);
  CHECK_THROWS_AS(m.add(x), Error);
}

TEST_CASE("moments: the range and the mean magnitude of each column") {
  const Tensor x = correlated(3, 20, 7, 40), more = correlated(1, 20, 7, 41);
  Moments m = moments_of(x, {}, true), rest(7);
  rest.add(more);
  m.add(rest);
  float least = 0, largest = 0;
  for (int64_t c = 0; c < 7; ++c) {
    float lo = x[c], hi = x[c];
    double sum = 0;
    for (const Tensor* t : {&x, &more})
      for (int64_t i = c; i < t->size(); i += 7)
        lo = std::min(lo, (*t)[i]), hi = std::max(hi, (*t)[i]), sum += std::abs((*t)[i]);
    CHECK(m.column_least()[index(c)] == lo);
    CHECK(m.column_largest()[index(c)] == hi);
    CHECK(m.mean_abs()[index(c)] == doctest::Approx(sum / 80).epsilon(1e-12));
    least = std::min(least, lo), largest = std::max(largest, hi);
  }
  CHECK(m.least() == least);
  CHECK(m.largest() == largest);
}
