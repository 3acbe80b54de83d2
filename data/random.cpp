// MT19937, NumPy's legacy permutation and Python's randint; see random.h. The tests pin
// all three against words, permutations and draws of the originals.
#include "data/random.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "engine/core/check.h"

namespace bcq {
namespace {

constexpr size_t kWords = 624, kMiddle = 397;

// Python keys the generator with the 32-bit words of |seed|, low word first, at least one.
std::vector<uint32_t> python_key(int64_t seed) {
  const uint64_t magnitude = seed < 0 ? 0 - static_cast<uint64_t>(seed) : static_cast<uint64_t>(seed);
  std::vector<uint32_t> key{static_cast<uint32_t>(magnitude)};
  if (magnitude >> 32) key.push_back(static_cast<uint32_t>(magnitude >> 32));
  return key;
}

}  // namespace

Mt19937::Mt19937(uint32_t seed) {
  state_[0] = seed;
  for (size_t i = 1; i < kWords; ++i) {
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + static_cast<uint32_t>(i);
  }
}

Mt19937::Mt19937(const std::vector<uint32_t>& key) : Mt19937(19650218u) {
  require(!key.empty(), "MT19937: the key needs at least one word");
  const auto mixed = [&](size_t i) { return state_[i - 1] ^ (state_[i - 1] >> 30); };
  size_t i = 1, j = 0;
  const auto advance = [&] {
    if (++i < kWords) return;
    state_[0] = state_[kWords - 1];
    i = 1;
  };
  for (size_t k = std::max(kWords, key.size()); k > 0; --k) {
    state_[i] = (state_[i] ^ (mixed(i) * 1664525u)) + key[j] + static_cast<uint32_t>(j);
    advance();
    if (++j == key.size()) j = 0;
  }
  for (size_t k = kWords - 1; k > 0; --k) {
    state_[i] = (state_[i] ^ (mixed(i) * 1566083941u)) - static_cast<uint32_t>(i);
    advance();
  }
  state_[0] = 0x80000000u;
}

void Mt19937::refill() {
  for (size_t i = 0; i < kWords; ++i) {
    const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kWords] & 0x7fffffffu);
    state_[i] = state_[(i + kMiddle) % kWords] ^ (y >> 1) ^ ((y & 1u) ? 0x9908b0dfu : 0u);
  }
  used_ = 0;
}

uint32_t Mt19937::next() {
  if (used_ == kWords) refill();
  uint32_t y = state_[used_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

std::vector<int64_t> numpy_permutation(uint32_t seed, int64_t n) {
  require(n >= 0 && n <= (int64_t{1} << 32), "permutation of %d items", n);
  std::vector<int64_t> a(static_cast<size_t>(n));
  std::iota(a.begin(), a.end(), int64_t{0});
  Mt19937 words(seed);
  for (int64_t i = n - 1; i >= 1; --i) {
    // Rejection sampling on the smallest all-ones mask that covers i.
    const uint32_t top = static_cast<uint32_t>(i);
    const uint32_t mask = 0xffffffffu >> std::countl_zero(top);
    uint32_t v = words.next() & mask;
    while (v > top) v = words.next() & mask;
    std::swap(a[top], a[v]);
  }
  return a;
}

PythonRandom::PythonRandom(int64_t seed) : core_(python_key(seed)) {}

int64_t PythonRandom::randint(int64_t low, int64_t high) {
  require(low <= high, "randint: empty range %d..%d", low, high);
  const uint64_t n = static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1;
  require(n != 0, "randint: the range has to hold fewer than 2^64 values");
  const int bits = std::bit_width(n);
  // getrandbits: whole words from the low end, the last one keeps its high bits.
  const auto draw = [&]() -> uint64_t {
    if (bits <= 32) return core_.next() >> (32 - bits);
    const uint64_t lower = core_.next();
    return lower | (static_cast<uint64_t>(core_.next() >> (64 - bits)) << 32);
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
