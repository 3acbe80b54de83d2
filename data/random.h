// The two random number generators of the reference experiments, bit for bit.
//
// Calibration images are drawn with NumPy's legacy RandomState, calibration text with
// Python's random module. Both run on the Mersenne Twister MT19937 (Matsumoto and
// Nishimura, 1998) and differ in how a seed fills the state and how a word becomes a number.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bcq {

// 32-bit words of MT19937.
class Mt19937 {
 public:
  explicit Mt19937(uint32_t seed);                     // numpy.random.RandomState(seed)
  explicit Mt19937(const std::vector<uint32_t>& key);  // init_by_array; at least one word
  uint32_t next();

 private:
  void refill();
  std::array<uint32_t, 624> state_;
  size_t used_ = 624;  // words of state_ already handed out
};

// numpy.random.RandomState(seed).permutation(n): 0..n-1 shuffled. n in [0, 2^32].
std::vector<int64_t> numpy_permutation(uint32_t seed, int64_t n);

// Python's random.seed(seed) with an integer, then random.randint and random.random.
class PythonRandom {
 public:
  explicit PythonRandom(int64_t seed);
  uint32_t word() { return core_.next(); }
  int64_t randint(int64_t low, int64_t high);  // both ends included; throws Error when high < low
  double random();                             // in [0, 1), 53 bits

 private:
  Mt19937 core_;
};

}  // namespace bcq
