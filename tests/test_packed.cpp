// Packed weights: the stream of bits against the words AutoGPTQ and GPTQModel write, and round trips for
// every width, group and order of columns.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "engine/core/check.h"
#include "engine/gemm/gemm_packed.h"
#include "engine/grid/affine.h"
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
        CHECK(packed_weight.codes() == q.codes);
        Tensor values = Tensor::uninitialized(w.shape);
        packed_weight.decode(0, 2, values.data);
        packed_weight.decode(2, 5, values.data + 2 * 72);
        CHECK(same_bits(values, q.values));
      }
}

namespace {

// A random weight of any grid; scattered: the columns of a group do not follow each other. Zero points of as many bits
// as codes, or more.
std::shared_ptr<const PackedWeight> random_weight(int64_t out, int64_t in, int bits, int64_t group, bool scattered,
                                                  uint32_t seed, int more = 0) {
  std::mt19937 generator(seed);
  const int64_t wide = group < 0 ? in : group, groups = (in + wide - 1) / wide;
  Affine grid{bits, wide, Tensor({out, groups}), Tensor({out, groups})};
  for (int64_t i = 0; i < grid.scale.size(); ++i) {
    grid.scale[i] = 0.001f * static_cast<float>(1 + generator() % 100);
    grid.zero[i] = static_cast<float>(generator() >> (32 - bits - more));
  }
  for (int64_t c = 0; scattered && c < in; ++c) grid.column_group.push_back(static_cast<int32_t>(c / wide));
  std::shuffle(grid.column_group.begin(), grid.column_group.end(), generator);
  return std::make_shared<const PackedWeight>(grid, Shape{out, in}, random_codes(out * in, bits, seed + 1));
}

}  // namespace

TEST_CASE("packed products have the bits of the plain loop, of one token and of many, in 24 bits and in 16") {
  for (int width = 1; width <= 8; ++width)
    for (const bool scattered : {false, true})
      for (const int64_t group : {-1, 7, 64})
        for (const int64_t tokens : {1, 3, 5, 40}) {
          const auto w = random_weight(37, 100, width, group, scattered, static_cast<uint32_t>(width + group));
          Tensor x = random({1, tokens, 100}, 21), bias = random({37}, 22);
          for (int64_t t = 0; t < tokens; ++t)  // magnitudes of all kinds, those whose largest limb is full among them
            for (int64_t k = 0; k < 100; ++k)
              x[t * 100 + k] *= std::ldexp(t % 3 == 1 ? 0.998f : 1.f, t % 5 == 4 ? -140 : static_cast<int>(t));
          if (tokens > 3) x[3 * 100] = 0x1.fefefep9f, x[2 * 100 + 1] = -0x1.fefep9f;
          for (const int bits : {24, 16}) {
            Tensor want({1, tokens, 37});
            packed_reference(w->grid(), w->codes(), x.data, tokens, 100, tokens > 4 ? bits : 24, bias.data, want.data);
            CHECK(same_bits(linear(nullptr, x, w, bias, bits), want));
          }
        }
}

TEST_CASE("packed products of the largest codes and limbs fit the sums on the way") {
  struct Case {
    int bits, zero, code;
    int64_t out;
  };
  std::vector<Case> cases;
  for (int bits = 1; bits <= 8; ++bits)
    for (const int zero : {0, 1, (1 << (bits - 1)) - 1, 1 << (bits - 1), 255})
      for (const int code : {0, (1 << bits) - 1})
        for (const int64_t out : {40, 64}) cases.push_back({bits, zero, code, out});
  const int64_t in = 128;
  for (const Case& c : cases) {
    CAPTURE(c.bits);
    CAPTURE(c.zero);
    CAPTURE(c.code);
    const int64_t out = c.out;
    Affine grid{c.bits, in, Tensor({out, 1}), Tensor({out, 1})};
    for (int64_t r = 0; r < out; ++r) grid.scale[r] = 0.5f, grid.zero[r] = static_cast<float>(c.zero);
    const std::vector<uint8_t> codes(static_cast<size_t>(out * in), static_cast<uint8_t>(c.code));
    const PackedWeight w(grid, {out, in}, codes);
    for (const float value : {0x7f7f7fp0f, -0x7f7f7fp0f, 0x7e8080p0f, -0x7e8080p0f, 0x3e7f80p0f})
      for (const int64_t tokens : {1, 9}) {
        Tensor x({tokens, in}), want({tokens, out}), y({tokens, out});
        std::fill_n(x.data, x.size(), value);
        for (int64_t t = 0; t < tokens; ++t) x[t * in] = 0x7f7f7fp0f;  // so that values are integers of 24 bits
        packed_reference(grid, codes, x.data, tokens, in, 24, nullptr, want.data);
        w.multiply(x.data, tokens, nullptr, y.data);
        CHECK(same_bits(y, want));
      }
  }
}

TEST_CASE("products with packed weights stay within their bound of the exact ones, on any number of threads") {
  struct Case {
    int64_t out, in, group;
    bool scattered;
    int zero_bits = 0;
  };
  for (const Case c : {Case{5, 7, -1, false},
                       {16, 96, -1, false},
                       {130, 200, 64, false},
                       {67, 72, 24, true},
                       {33, 130, 7, false},
                       {40, 90, 32, true, 8},
                       {20, 33, 1, true},
                       {64, 256, 128, true}})
    for (int bits = 2; bits <= 8; ++bits) {
      CAPTURE(bits);
      CAPTURE(c.in);
      const auto w = random_weight(c.out, c.in, bits, c.group, c.scattered, static_cast<uint32_t>(bits + c.in),
                                   std::max(c.zero_bits - bits, 0));
      const Affine grid = w->grid();
      const std::vector<uint8_t> codes = w->codes();
      const Tensor x = random({2, 20, c.in}, 3), bias = random({c.out}, 4);
      const Tensor y = linear(nullptr, x, w, Tensor{});
      double worst = 0;
      for (int64_t t = 0; t < 40; ++t)
        for (int64_t r = 0; r < c.out; ++r) {
          const float* token = x.data + t * c.in;
          double exact = 0, bound = 0, top = 0;
          for (int64_t k = 0; k < c.in; ++k) top = std::max(top, std::abs(static_cast<double>(token[k])));
          for (int64_t k = 0; k < c.in; ++k) {
            const int64_t g = r * w->groups() + grid.group_of(k);
            const double v =
                grid.scale[g] * (codes[static_cast<size_t>(r * c.in + k)] - static_cast<double>(grid.zero[g]));
            exact += v * token[k];
            bound += std::abs(v) * (2.01 * top + static_cast<double>(w->groups() + 5) *
                                                     (std::abs(static_cast<double>(token[k])) + 2.01 * top / 126));
          }
          worst = std::max(worst, std::abs(y[t * c.out + r] - exact) / std::max(std::ldexp(bound, -24), 1e-30));
        }
      CHECK(worst < 1);
      CHECK(same_on_two_threads([&] { return linear(nullptr, x, w, bias); }));
      // A token at a time, a few and many: the same bits.
      for (const int64_t some : {1, 3, 21}) {
        const Tensor few = linear(nullptr, Tensor({1, some, c.in}, {x.data, x.data + some * c.in}), w, Tensor{});
        CHECK(std::memcmp(few.data, y.data, static_cast<size_t>(few.size()) * 4) == 0);
      }
      Tensor biased = y.clone();
      for (int64_t i = 0; i < y.size(); ++i) biased[i] += bias[i % c.out];
      CHECK(same_bits(linear(nullptr, x, w, bias), biased));
    }
}

TEST_CASE("packed products: windows longer than one pass, tokens that are not finite, and groups that overflow") {
  const auto w = random_weight(20, 40, 4, 8, false, 2);
  Tensor x = random({1, 1500, 40}, 6);
  x[30] = NAN;
  x[1400 * 40 + 3] = -INFINITY;
  const Tensor y = linear(nullptr, x, w, Tensor{});
  int64_t wrong = 0;
  for (int64_t t = 0; t < 1500; ++t) {
    const Tensor one = linear(nullptr, Tensor({1, 1, 40}, {x.data + t * 40, x.data + (t + 1) * 40}), w, Tensor{});
    for (int64_t r = 0; r < 20; ++r) {
      const float a = one[r], b = y[t * 20 + r];
      wrong += t == 0 || t == 1400 ? !(std::isnan(a) && std::isnan(b)) : std::memcmp(&a, &b, 4) != 0;
    }
  }
  CHECK(wrong == 0);
  const Affine grid{2, 70000, Tensor({1, 1}, {1.f}), Tensor({1, 1})};
  CHECK_THROWS_WITH_AS(PackedWeight(grid, {1, 70000}, Codes(70000)), doctest::Contains("70000 columns"), Error);
}

TEST_CASE("packed products of windows rounded to 16 bits: nearer to the exact ones than the bound, not as near as 24") {
  for (const bool scattered : {false, true}) {
    const auto w = random_weight(67, 256, 4, 64, scattered, 5);
    const Affine grid = w->grid();
    const Codes codes = w->codes();
    const Tensor x = random({1, 24, 256}, 6);
    const Tensor fine = linear(nullptr, x, w, Tensor{});
    const Tensor coarse = linear(nullptr, x, w, Tensor{}, 16);
    const Tensor alone = linear(nullptr, Tensor({1, 1, 256}, {x.data, x.data + 256}), w, Tensor{}, 16);
    CHECK(same_on_two_threads([&] { return linear(nullptr, x, w, Tensor{}, 16); }));
    double worst = 0, worst_of_24 = 0;
    for (int64_t t = 0; t < 24; ++t)
      for (int64_t r = 0; r < 67; ++r) {
        double exact = 0, size = 0, top = 0;
        for (int64_t k = 0; k < 256; ++k) {
          const int64_t g = r * w->groups() + grid.group_of(k);
          const double code = codes[static_cast<size_t>(r * 256 + k)], v = grid.scale[g] * (code - grid.zero[g]);
          exact += v * x[t * 256 + k], size += std::abs(v),
              top = std::max(top, std::abs(static_cast<double>(x[t * 256 + k])));
        }
        // The first rounding, and those in float, which are 2^-8 of it each.
        const double bound = std::ldexp(size * 2.01 * top, -16) * (1 + static_cast<double>(w->groups() + 5) / 256);
        worst = std::max(worst, std::abs(coarse[t * 67 + r] - exact) / bound);
        worst_of_24 = std::max(worst_of_24, std::abs(fine[t * 67 + r] - exact) / bound);
      }
    CHECK(worst < 1);
    CHECK(worst > 16 * worst_of_24);
    CHECK(std::memcmp(alone.data, fine.data, 67 * 4) == 0);  // a token alone keeps its 24
  }
  const auto w = random_weight(2, 4, 4, 4, false, 5);
  CHECK_THROWS_AS(linear(nullptr, random({1, 24, 4}, 6), w, Tensor{}, 8), UsageError);
}

TEST_CASE("a packed weight gives its grid back, and refuses zero points that are no codes") {
  for (const bool scattered : {false, true}) {
    const auto w = random_weight(37, 60, 3, 8, scattered, 1);
    const Affine grid = w->grid();
    const PackedWeight again(grid, w->shape(), w->codes());
    CHECK(same_bits(again.grid().scale, grid.scale));
    CHECK(same_bits(again.grid().zero, grid.zero));
    CHECK(grid.column_group.empty() != scattered);
    CHECK(again.grid().column_group == grid.column_group);
    CHECK(again.codes() == w->codes());
  }
  for (const float zero : {0.5f, -1.f, 256.f}) {
    const Affine grid{2, 4, Tensor({1, 1}, {1.f}), Tensor({1, 1}, {zero})};
    CHECK_THROWS_AS(PackedWeight(grid, {1, 4}, Codes(4)), Error);
  }
}
