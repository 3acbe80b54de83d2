// NumPy's legacy permutation and Python's randint on the standard library's MT19937; see random.h. The tests pin
// all three against words, permutations and draws of the originals.
#include "data/random.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "engine/core/check.h"

namespace bcq {
namespace {

// Python keys the generator with the 32-bit words of |seed|, low word first (init_by_array of the reference code).
struct PythonKey {
  using result_type = uint32_t;
  std::vector<uint32_t> key;

  explicit PythonKey(int64_t seed) {
    const uint64_t magnitude = seed < 0 ? 0 - static_cast<uint64_t>(seed) : static_cast<uint64_t>(seed);
    key = {static_cast<uint32_t>(magnitude)};
    if (magnitude >> 32) key.push_back(static_cast<uint32_t>(magnitude >> 32));
  }

  // The state of a generator: 624 words.
  template <class Words>
  void generate(Words begin, Words end) const {
    const size_t n = static_cast<size_t>(end - begin);
    std::vector<uint32_t> s{19650218};
    const auto mixed = [&](size_t i) { return s[i - 1] ^ (s[i - 1] >> 30); };
    while (s.size() < n) s.push_back(1812433253u * mixed(s.size()) + static_cast<uint32_t>(s.size()));
    size_t i = 1, j = 0;
    const auto advance = [&] {
      if (++i < n) return;
      s[0] = s[n - 1];
      i = 1;
    };
    for (size_t k = std::max(n, key.size()); k > 0; --k) {
      s[i] = (s[i] ^ (mixed(i) * 1664525u)) + key[j] + static_cast<uint32_t>(j);
      advance();
      if (++j == key.size()) j = 0;
    }
    for (size_t k = n - 1; k > 0; --k) {
      s[i] = (s[i] ^ (mixed(i) * 1566083941u)) - static_cast<uint32_t>(i);
      advance();
    }
    s[0] = 0x80000000u;
    std::copy(s.begin(), s.end(), begin);
  }
};

}  // namespace

std::vector<int64_t> numpy_permutation(uint32_t seed, int64_t n) {
  require(n >= 0 && n <= (int64_t{1} << 32), "permutation of %d items", n);
  std::vector<int64_t> a(static_cast<size_t>(n));
  std::iota(a.begin(), a.end(), int64_t{0});
  std::mt19937 words(seed);
  for (int64_t i = n - 1; i >= 1; --i) {
    // Rejection sampling on the smallest all-ones mask that covers i.
    const uint32_t top = static_cast<uint32_t>(i);
    const uint32_t mask = 0xffffffffu >> std::countl_zero(top);
    auto v = words() & mask;
    while (v > top) v = words() & mask;
    std::swap(a[top], a[v]);
  }
  return a;
}

PythonRandom::PythonRandom(int64_t seed) {
  PythonKey key(seed);
  core_.seed(key);
}

int64_t PythonRandom::randint(int64_t low, int64_t high) {
  require(low <= high, "randint: empty range %d..%d", low, high);
  const uint64_t n = static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1;
  require(n != 0, "randint: the range has to hold fewer than 2^64 values");
  const int bits = std::bit_width(n);
  // getrandbits: whole words from the low end, the last one keeps its high bits.
  const auto draw = [&]() -> uint64_t {
    if (bits <= 32) return word() >> (32 - bits);
    const uint64_t lower = word();
    return lower | (static_cast<uint64_t>(word() >> (64 - bits)) << 32);
  };
  uint64_t r = draw();
  while (r >= n) r = draw();
  return static_cast<int64_t>(static_cast<uint64_t>(low) + r);
}

double PythonRandom::random() {
  const uint32_t high = word() >> 5, low = word() >> 6;
  return (high * 67108864.0 + low) / 9007199254740992.0;
}

}  // namespace bcq
