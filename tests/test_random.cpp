// Generators against words, permutations and draws of NumPy and Python.
#include <doctest/doctest.h>

#include <algorithm>

#include "data/random.h"
#include "engine/core/check.h"

namespace bcq {
namespace {

using Ints = std::vector<int64_t>;

Ints first(Ints v, size_t n) {
  v.resize(n);
  return v;
}

Ints draws(int64_t seed, int64_t high, int count) {
  PythonRandom random(seed);
  Ints out;
  for (int i = 0; i < count; ++i) out.push_back(random.randint(0, high));
  return out;
}

TEST_CASE("NumPy permutation of ten") { CHECK(numpy_permutation(3, 10) == Ints{5, 4, 1, 2, 9, 6, 7, 0, 3, 8}); }

TEST_CASE("NumPy permutation of the ImageNet training set starts as the reference's samples") {
  CHECK(first(numpy_permutation(3, 1281167), 8) ==
        Ints{1196785, 17592, 414871, 928526, 1222922, 750330, 577687, 897601});
  CHECK(first(numpy_permutation(0, 1281167), 8) ==
        Ints{1223947, 1252642, 127713, 958074, 289429, 1222689, 305187, 921364});
  CHECK(first(numpy_permutation(1993, 1281167), 8) ==
        Ints{340557, 637910, 1212946, 1077230, 887074, 304392, 1195587, 918697});
}

TEST_CASE("a permutation holds every index once, and small ones exist") {
  CHECK(numpy_permutation(7, 0).empty());
  CHECK(numpy_permutation(7, 1) == Ints{0});
  Ints p = numpy_permutation(7, 1000);
  std::sort(p.begin(), p.end());
  for (int64_t i = 0; i < 1000; ++i) CHECK(p[static_cast<size_t>(i)] == i);
  CHECK_THROWS_AS(numpy_permutation(7, -1), Error);
}

TEST_CASE("Python: the first words of seed 0") {
  PythonRandom random(0);
  for (const uint32_t want : {3626764237u, 1654615998u, 3255389356u, 3823568514u}) CHECK(random.word() == want);
}

TEST_CASE("Python randint: the draws of the calibration ranges") {
  CHECK(draws(0, 356316, 8) == Ints{201979, 220500, 21225, 135746, 268055, 254766, 212302, 159023});
  CHECK(draws(0, 45575, 8) == Ints{25247, 27562, 2653, 16968, 33506, 31845, 26537, 19877});
}

TEST_CASE("Python randint: one value, negative and wide seeds, wide ranges, empty ranges") {
  CHECK(draws(5, 0, 3) == Ints{0, 0, 0});
  CHECK(draws(-12345, 1000000, 4) == draws(12345, 1000000, 4));
  // random.seed(2**40 + 7); [random.randint(0, 10**6) for _ in range(3)]
  CHECK(draws((int64_t{1} << 40) + 7, 1000000, 3) == Ints{643515, 783626, 854501});
  // random.seed(1); [random.randint(0, 10**12) for _ in range(3)]
  CHECK(draws(1, 1000000000000, 3) == Ints{623347347957, 884107995871, 71999863748});
  PythonRandom random(2);
  const int64_t r = random.randint(-5, -3);
  CHECK(r >= -5);
  CHECK(r <= -3);
  CHECK_THROWS_AS(random.randint(1, 0), Error);
}

}  // namespace
}  // namespace bcq
