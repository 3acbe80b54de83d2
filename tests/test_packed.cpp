// Packed weights: the stream of bits against the words AutoGPTQ and GPTQModel write, and round trips for
// every width, group and order of columns.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "engine/packed.h"
#include "quant/gptq.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

using Codes = std::vector<uint8_t>;

Codes random_codes(int64_t n, int bits, uint32_t seed) {
  std::mt19937 generator(seed);
  Codes codes(static_cast<size_t>(n));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(generator() >> (32 - bits));
  return codes;
}

std::vector<uint32_t> packed(const Codes& codes, int bits) {
  const auto n = static_cast<int64_t>(codes.size());
  std::vector<uint32_t> words(static_cast<size_t>(packed_words(n, bits)), 0xdeadbeef);
  pack_codes(codes.data(), n, bits, words.data());
  return words;
}

}  // namespace

TEST_CASE("packed codes come back, at every width and length") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const int64_t n : {1, 5, 31, 32, 33, 64, 127, 1000}) {
      const Codes codes = random_codes(n, bits, static_cast<uint32_t>(bits * 1000 + n));
      const std::vector<uint32_t> words = packed(codes, bits);
      Codes back(codes.size());
      unpack_codes(words.data(), n, bits, back.data());
      CHECK(back == codes);
    }
}

TEST_CASE("2, 4 and 8 bits: code j of a word is shifted by bits * j, the rest is zero") {
  for (const int bits : {2, 4, 8}) {
    const Codes codes = random_codes(75, bits, 7);
    const std::vector<uint32_t> words = packed(codes, bits);
    const size_t per_word = 32 / static_cast<size_t>(bits);
    REQUIRE(words.size() == 96 / per_word);
    for (size_t w = 0; w < words.size(); ++w) {
      uint32_t want = 0;
      for (size_t j = 0; j < per_word && w * per_word + j < codes.size(); ++j)
        want |= static_cast<uint32_t>(codes[w * per_word + j]) << (static_cast<size_t>(bits) * j);
      CHECK(words[w] == want);
    }
  }
}

TEST_CASE("3 bits: 32 codes in three words as pack() of AutoGPTQ and GPTQModel lays them out") {
  const Codes codes = random_codes(64, 3, 8);
  const std::vector<uint32_t> words = packed(codes, 3);
  REQUIRE(words.size() == 6);
  for (size_t half = 0; half < 2; ++half) {
    const uint8_t* x = codes.data() + 32 * half;
    uint32_t a = 0, b = 0, c = 0;
    for (int j = 0; j < 10; ++j) a |= static_cast<uint32_t>(x[j]) << (3 * j);
    a |= static_cast<uint32_t>(x[10]) << 30;
    b |= (x[10] >> 2) & 1u;
    for (int j = 0; j < 10; ++j) b |= static_cast<uint32_t>(x[11 + j]) << (3 * j + 1);
    b |= static_cast<uint32_t>(x[21]) << 31;
    c |= (x[21] >> 1) & 3u;
    for (int j = 0; j < 10; ++j) c |= static_cast<uint32_t>(x[22 + j]) << (3 * j + 2);
    CHECK(words[3 * half] == a);
    CHECK(words[3 * half + 1] == b);
    CHECK(words[3 * half + 2] == c);
  }
}

TEST_CASE("a packed weight has the quantizer's codes and values, bit by bit") {
  for (int bits = 2; bits <= 8; ++bits)
    for (const int64_t group : {-1, 1, 16, 24, 64})
      for (const bool scattered : {false, true}) {
        const Tensor w = random({5, 72}, static_cast<uint32_t>(bits));
        QuantizedWeight q = round_to_nearest(w, WeightGrid{bits, group});
        if (scattered) {
          std::mt19937 generator(9);
          for (int64_t c = 0; c < 72; ++c) q.grid.column_group.push_back(static_cast<int32_t>(c / q.grid.group));
          std::shuffle(q.grid.column_group.begin(), q.grid.column_group.end(), generator);
          q.values = fake_quantize(q.grid, w);
          for (int64_t i = 0; i < w.size(); ++i) {
            const int64_t g = i / 72 * q.grid.scale.dim(1) + q.grid.group_of(i % 72);
            q.codes[static_cast<size_t>(i)] =
                static_cast<uint8_t>(std::lround(q.values[i] / q.grid.scale[g] + q.grid.zero[g]));
          }
        }
        const PackedWeight packed_weight(q.grid, w.shape, q.codes);
        CHECK(packed_weight.words.size() == static_cast<size_t>(5 * 3 * bits));
        CHECK(packed_weight.codes() == q.codes);
        Tensor values = Tensor::uninitialized(w.shape);
        packed_weight.decode(0, 2, values.data);
        packed_weight.decode(2, 5, values.data + 2 * 72);
        CHECK(same_bits(values, q.values));
      }
}
