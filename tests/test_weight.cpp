// Weights: whatever one is stored as, a product with it has the bits of the product with its float values.
#include <doctest/doctest.h>

#include <atomic>

#include "engine/core/check.h"
#include "engine/nn/layer.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// Decoded from 8-bit codes, and the largest number of rows asked for at a time.
struct Codes {
  explicit Codes(const Shape& s) : shape(s), codes(static_cast<size_t>(numel(s))) {
    std::mt19937 bits(1);
    for (int8_t& c : codes) c = static_cast<int8_t>(bits() % 256 - 128);
  }
  Weight weight() {
    return Weight(shape, [this](int64_t begin, int64_t end, float* y) {
      const int64_t columns = numel(shape) / shape[0];
      for (int64_t seen = most; seen < end - begin && !most.compare_exchange_weak(seen, end - begin);) {
      }
      for (int64_t i = begin * columns; i < end * columns; ++i)
        *y++ = 0.01f * static_cast<float>(codes[static_cast<size_t>(i)]);
    });
  }
  Tensor values() const {
    Tensor t(shape);
    for (int64_t i = 0; i < t.size(); ++i) t[i] = 0.01f * static_cast<float>(codes[static_cast<size_t>(i)]);
    return t;
  }
  Shape shape;
  std::vector<int8_t> codes;
  std::atomic<int64_t> most{0};
};

}  // namespace

TEST_CASE("a weight: floats are used in place, anything else is decoded by rows") {
  const Tensor floats = random({7, 5}, 1);
  const Weight in_place = floats;
  Tensor scratch;
  CHECK(in_place.values().data == floats.data);
  CHECK(in_place.rows(2, 4, scratch) == floats.data + 10);
  CHECK(scratch.empty());

  Codes codes({301, 67});
  const Weight decoded = codes.weight();
  CHECK(decoded.shape() == codes.shape);
  CHECK(decoded.size() == 301 * 67);
  CHECK_FALSE(decoded.empty());
  CHECK(same_bits(decoded.values(), codes.values()));
  for (const auto& range : {std::pair<int64_t, int64_t>{4, 9}, {0, 301}, {300, 301}}) {  // room grows as needed
    const float* rows = decoded.rows(range.first, range.second, scratch);
    const Tensor want = codes.values().slice(range.first, range.second);
    CHECK(std::memcmp(rows, want.data, static_cast<size_t>(want.size()) * 4) == 0);
  }
  CHECK(Weight().empty());
  CHECK(Weight(Tensor{}).empty());
}

TEST_CASE("a product decodes no more than its blocks of rows, and has the bits of the float product") {
  Codes large({1000, 96});
  const Tensor x = random({3, 70, 96}, 2), bias = random({1000}, 3);
  const Tensor want = linear(nullptr, x, large.values(), bias);
  CHECK(same_bits(linear(nullptr, x, large.weight(), bias), want));
  CHECK(large.most == 96);
  CHECK(same_on_two_threads([&] { return linear(nullptr, x, large.weight(), bias); }));
  CHECK_THROWS_AS(linear(nullptr, random({1, 2, 95}, 4), large.weight(), bias), Error);

  Layer layer;  // a storage form for the float and one for the quantized weight
  Codes hat({1000, 96});
  hat.codes[5] = static_cast<int8_t>(hat.codes[5] + 1);
  layer.weight = large.weight();
  layer.quantize({{}, {}, hat.weight(), nullptr, nullptr});
  CHECK(layer.is_linear());
  CHECK(same_bits(layer.run({Precision::Float}, x), linear(nullptr, x, large.values(), Tensor{})));
  CHECK(same_bits(layer.run({Precision::Fake}, x), linear(nullptr, x, hat.values(), Tensor{})));
}

TEST_CASE("a product with a decoded weight has its gradient") {
  Codes codes({6, 9});
  const Function f = [&](Tape* tape, const Tensor& x) { return linear(tape, x, codes.weight(), Tensor{}); };
  const Function g = [&](Tape* tape, const Tensor& x) { return linear(tape, x, codes.values(), Tensor{}); };
  const Tensor x = random({2, 3, 9}, 5), dy = random({2, 3, 6}, 6);
  CHECK(same_bits(tape_gradient(f, x, dy), tape_gradient(g, x, dy)));
}
