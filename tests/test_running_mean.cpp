// The mean that compensations are made of: the official estimator's golden numbers, and what belongs together.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "quant/running_mean.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

TEST_CASE("RunningMean reproduces the official estimator: batches weigh the same whatever their size") {
  const Tensor f1({2, 2, 2}, {1, 2, 3, 4, 0, 1, 1, 0}), q1({2, 2, 2}, {.5f, 2, 3, 5, 0, 0, 0, 0});
  const Tensor f2({1, 2, 2}, {2, 2, 2, 2}), q2({1, 2, 2}, {1, 1, 0, 2});
  RunningMean full(BcShape::Position), small(BcShape::Channel);
  CHECK(full.mean().empty());
  for (RunningMean* e : {&full, &small}) {
    e->update(f1, q1);
    e->update(f2, q2);
  }
  CHECK(same_bits(full.mean(), Tensor({2, 2}, {0.625f, 0.75f, 1.25f, -0.25f})));
  CHECK(same_bits(small.mean(), Tensor({2}, {0.9375f, 0.25f})));
}

TEST_CASE("RunningMean: what several have averaged, added up, weighs as if it had come to one") {
  for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
    RunningMean all(shape), first(shape), rest(shape), sum(shape);
    for (uint32_t i = 0; i < 5; ++i) {
      const Tensor f = random({2, 3, 70}, 2 * i + 1), q = random({2, 3, 70}, 2 * i + 2);
      all.update(f, q);
      (i < 2 ? first : rest).update(f, q);
    }
    sum.add(first);
    sum.add(rest);
    const Tensor want = all.mean(), got = sum.mean();
    REQUIRE(got.shape == want.shape);
    for (int64_t i = 0; i < want.size(); ++i) CHECK(std::abs(got[i] - want[i]) < 1e-6);
    CHECK_THROWS_AS(sum.add(RunningMean(shape)), Error);
  }
}

TEST_CASE("RunningMean keeps heads apart and averages over what a bias is shared along") {
  const Tensor f = random({3, 2, 5, 4}, 1), q = random({3, 2, 5, 4}, 2);
  RunningMean full(BcShape::Position), small(BcShape::Channel);
  full.update(f, q);
  small.update(f, q);
  REQUIRE(full.mean().shape == Shape{2, 5, 4});
  REQUIRE(small.mean().shape == Shape{2, 1, 4});
  std::vector<double> want_full(40), want_small(8);
  for (int64_t i = 0; i < f.size(); ++i) {
    const double d = static_cast<double>(f[i]) - q[i];
    want_full[static_cast<size_t>(i % 40)] += d / 3;
    want_small[static_cast<size_t>(i / 20 % 2 * 4 + i % 4)] += d / 15;
  }
  CHECK(relative_error(full.mean(), want_full) < 1e-6);
  CHECK(relative_error(small.mean(), want_small) < 1e-6);

  RunningMean logits(BcShape::Position);  // no positions: both shapes are a vector
  logits.update(random({3, 4}, 3), random({3, 4}, 4));
  CHECK(logits.mean().shape == Shape{4});
}

TEST_CASE("RunningMean refuses outputs that do not belong together") {
  RunningMean full(BcShape::Position), small(BcShape::Channel);
  CHECK_THROWS_AS(full.update(random({2, 3, 4}, 1), random({2, 4, 3}, 1)), Error);
  full.update(random({2, 3, 4}, 1), random({2, 3, 4}, 2));
  CHECK_THROWS_AS(full.update(random({2, 5, 4}, 1), random({2, 5, 4}, 2)), Error);
  CHECK_THROWS_AS(full.update(random({2, 4, 3}, 1), random({2, 4, 3}, 2)), Error);  // as many values, another shape
  small.update(random({2, 3, 4}, 1), random({2, 3, 4}, 2));
  CHECK_NOTHROW(small.update(random({2, 5, 4}, 1), random({2, 5, 4}, 2)));  // positions are averaged anyway
}
