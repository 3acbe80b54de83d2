// The two random number generators of the reference experiments, bit for bit.
//
// Calibration images are drawn with NumPy's legacy RandomState, calibration text with
// Python's random module. Both run on the Mersenne Twister MT19937 (Matsumoto and
// Nishimura, 1998) and differ in how a seed fills the state and how a word becomes a number.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace bcq {

// numpy.random.RandomState(seed).permutation(n): 0..n-1 shuffled. n in [0, 2^32].
std::vector<int64_t> numpy_permutation(uint32_t seed, int64_t n);

// Python's random.seed(seed) with an integer, then random.randint and random.random.
class PythonRandom {
 public:
  explicit PythonRandom(int64_t seed);
  uint32_t word() { return static_cast<uint32_t>(core_()); }
  int64_t randint(int64_t low, int64_t high);  // both ends included; throws Error when high < low
  double random();                             // in [0, 1), 53 bits

 private:
  std::mt19937 core_;
};

}  // namespace bcq
