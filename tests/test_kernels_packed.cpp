// Kernels of packed weights and of activations as limbs: limbs against their definition, products against plain.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "engine/kernels/kernels.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

TEST_CASE("kernels: limbs of 24 and 16 bits are the nearest, of any magnitude") {
  const auto check = [](const Row& x, int planes) {
    const auto n = static_cast<int64_t>(x.size());
    std::vector<uint8_t> low(3 * x.size()), high(low);
    const float unit = plain().to_limbs(x.data(), n, planes, 0, low.data(), n);
    CHECK(plain().to_limbs(x.data(), n, planes, 128, high.data(), n) == unit);
    double top = 0, error = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      double q = 0;
      for (int p = planes - 1; p >= 0; --p) {
        const size_t at = static_cast<size_t>(p) * x.size() + i;
        CHECK(high[at] == (low[at] ^ 128));
        q = q * 256 + static_cast<int8_t>(low[at]);
      }
      top = std::max(top, std::abs(static_cast<double>(x[i])));
      error = std::max(error, std::abs(q * unit - x[i]));
    }
    CHECK(error <= unit / 2);
    // The unit is the least power of two that fits them, but for denormals of it.
    CHECK(unit <= std::max(top * std::ldexp(2.04, 1 - 8 * planes), std::ldexp(1.0, -126)));
  };
  for (const int planes : {2, 3}) {
    for (const int exponent : {-149, -140, -126, -110, -20, 0, 3, 100, 127})
      for (const float top : {1.f, 1.5f, 1.9921f, 1.99215f, 1.992157f, 1.9921572f, 1.9921876f, 1.9921877f, 1.9999999f})
        for (const float sign : {1.f, -1.f}) {
          Row x = random_row(50, 3, std::ldexp(0.9, exponent));
          x[17] = sign * std::ldexp(top, exponent);
          x[33] = -x[17];
          check(x, planes);
        }
    check(Row(5), planes);
  }
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const Row x = {1, 2, bad, 4};
    uint8_t y[12];
    CHECK(std::isnan(plain().to_limbs(x.data(), 4, 3, 0, y, 4)));
  }
}

TEST_CASE("kernels: packed rows, every width, groups that end anywhere") {
  constexpr int64_t kBlocks = 2, kChunks = 5, kQuads = kChunks * 8, kRows = kBlocks * kInt8Panel, kTokens = 3;
  const std::vector<std::vector<int32_t>> endings = {{40}, {8, 24, 40}, {1, 2, 5, 16, 17, 19, 36, 39}, {7, 40}};
  std::mt19937 bits(5);
  const std::vector<const Kernels*> sets = kernel_sets();
  for (int width = 1; width <= 8; ++width)
    for (const auto& ends : endings)
      for (const bool half : {false, true}) {
        const auto groups = static_cast<int64_t>(ends.size());
        const auto steps = static_cast<size_t>(kBlocks * groups * kInt8Panel);
        std::vector<uint32_t> words(static_cast<size_t>(kBlocks * kChunks * width * kInt8Panel));
        for (uint32_t& w : words) w = static_cast<uint32_t>(bits());
        std::vector<uint16_t> scale16(steps);
        std::vector<uint8_t> zero(steps), limbs(kTokens * 3 * kQuads * 4);
        for (uint8_t& d : limbs) d = static_cast<uint8_t>(bits());
        limbs[0] = limbs[1] = 128;  // -128
        for (size_t i = 0; i < steps; ++i) {
          scale16[i] = static_cast<uint16_t>(bits() % 0x7c00);
          zero[i] = static_cast<uint8_t>(bits());
        }
        std::vector<int32_t> limb_sums(static_cast<size_t>(kTokens * groups * 3)), sums(kTokens * 3 * kRows);
        for (int32_t& sum : limb_sums) sum = static_cast<int32_t>(bits() % 200000) - 100000;
        for (int32_t& sum : sums) sum = static_cast<int32_t>(bits() % 2000000000) - 1000000000;
        const Row scale = random_row(static_cast<int64_t>(steps), 6, 1);
        const PackedRows rows{width,          kChunks,     words.data(),
                              groups,         ends.data(), half ? nullptr : scale.data(),
                              scale16.data(), zero.data()};
        const PackedToken token{0.125f, limbs.data(), kQuads * 4, limb_sums.data()};
        struct Results {
          Row product = Row(kRows), sums3 = Row(kTokens * kRows), sums2 = Row(kTokens * kRows),
              less3 = Row(kTokens * kRows), less2 = Row(kTokens * kRows);
          std::vector<uint8_t> codes = std::vector<uint8_t>(kQuads * 4 * kInt8Panel);
        };
        const auto results = [&](const Kernels& k) {
          Results y;
          const auto sum = [&](int limbs, const int32_t* limb_sums, Row& to) {
            k.packed_sums(rows, {kBlocks, groups - 1, kTokens, limbs, sums.data(), limb_sums, to.data(), kRows});
          };
          k.packed_product(rows, kBlocks, token, y.product.data());
          k.packed_codes(rows, y.codes.data());
          sum(3, limb_sums.data(), y.sums3);
          sum(2, limb_sums.data(), y.sums2);
          sum(3, nullptr, y.less3);
          sum(2, nullptr, y.less2);
          return y;
        };
        const Results want = results(plain());
        CHECK(*std::max_element(want.codes.begin(), want.codes.end()) < 1 << width);
        for (size_t s = 1; s < sets.size(); ++s) {
          const Results y = results(*sets[s]);
          CAPTURE(sets[s]->name);
          CAPTURE(width);
          CHECK(std::memcmp(y.product.data(), want.product.data(), y.product.size() * 4) == 0);
          CHECK(std::memcmp(y.sums3.data(), want.sums3.data(), y.sums3.size() * 4) == 0);
          CHECK(std::memcmp(y.sums2.data(), want.sums2.data(), y.sums2.size() * 4) == 0);
          CHECK(std::memcmp(y.less3.data(), want.less3.data(), y.less3.size() * 4) == 0);
          CHECK(std::memcmp(y.less2.data(), want.less2.data(), y.less2.size() * 4) == 0);
          CHECK(y.codes == want.codes);
        }
      }
}
