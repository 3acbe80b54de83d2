// Float products: every instruction set gives the bits of the sum that is promised, at odd sizes and misaligned, and
// that sum is within its rounding errors of the exact one.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/gemm/gemm_float.h"
#include "engine/nn/mlp.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

TEST_CASE("product: a tile has the promised bits on every instruction set, at odd sizes and misaligned") {
  for (const int64_t depth : {1, 2, 17, 511, 513, 1100})
    for (int rows = 1; rows <= 30; rows += depth > 100 ? 7 : 1)
      for (const int64_t columns : {1, 15, 16, 17, 31, 32})
        for (const int64_t shift : {0, 1}) {
          const int64_t stride = depth + shift, ldc = 32 + 3 * shift;
          Tensor a = random({rows * stride + depth + shift}, 1), panel = random({depth * 32 + shift}, 2);
          const Tensor start = random({rows * 40 + shift}, 3);
          for (int64_t i = 0; i < a.size(); i += 3) a[i] *= 1e-6f;  // sums that round to even, and products that vanish
          for (int64_t i = 0; i < a.size(); i += 7) a[i] = 1;
          Tensor w({columns, depth});
          for (int64_t i = 0; i < w.size(); ++i) w[i] = panel[shift + i % depth * 32 + i / depth];
          for (const bool transposed : {false, true}) {
            const int64_t row = transposed ? 1 : stride, step = transposed ? rows : 1;
            if (transposed && rows * depth > a.size()) continue;
            for (const int64_t start_stride : {-1, 0, 40}) {
              Tensor want({rows * ldc + 40});
              for (int64_t r = 0; r < rows; ++r) {
                std::vector<float> x;
                for (int64_t i = 0; i < depth; ++i) x.push_back(a[shift + r * row + i * step]);
                linear_reference(x.data(), 1, w.data, columns, depth,
                                 start_stride < 0 ? nullptr : start.data + shift + r * start_stride,
                                 want.data + shift + r * ldc);
              }
              for (const Kernels* k : kernel_sets()) {
                Tensor got({rows * ldc + 40});
                k->float_tile({.rows = rows,
                               .a = a.data + shift,
                               .a_stride = row,
                               .a_step = step,
                               .panel = panel.data + shift,
                               .depth = depth,
                               .columns = columns,
                               .start = start_stride < 0 ? nullptr : start.data + shift,
                               .start_stride = std::max<int64_t>(0, start_stride),
                               .c = got.data + shift,
                               .c_stride = ldc,
                               .next_a = a.data + shift,
                               .next_rows = step == 1 ? rows % 4 : 0,
                               .next_panel = panel.data + shift,
                               .next_depths = rows % 2 ? depth : 0});
                if (!same_bits(got, want))
                  FAIL_CHECK(k->name << ": " << rows << " rows, " << columns << " columns, depth " << depth
                                     << ", shift " << shift << ", start " << start_stride);
              }
            }
          }
        }
}

TEST_CASE("product: a sum is rounded once for each of its terms, whatever their sizes") {
  // Hard cases of a multiply-add: results halfway between floats but for a last bit far below, cancellation, denormals.
  std::mt19937 bits(4);
  constexpr int64_t n = 32, kTries = 2000;
  for (int64_t i = 0; i < kTries; ++i) {
    Tensor panel({2 * n}), a({2}), want({n});
    const auto any = [&](int spread) {
      const int exponent = static_cast<int>(bits() % static_cast<uint32_t>(2 * spread + 1)) - spread;
      const float mantissa = static_cast<float>(static_cast<int32_t>(bits() >> 7) - (1 << 24));
      return std::ldexp(i % 2 ? mantissa : std::round(std::ldexp(mantissa, -12)), exponent - 12);
    };
    const int spread = i % 5 == 0 ? 60 : 14;
    a[0] = 1, a[1] = any(spread);
    for (int64_t j = 0; j < n; ++j) panel[j] = any(2 * spread), panel[n + j] = any(spread);
    for (int64_t j = 0; j < n; ++j) want[j] = std::fma(a[1], panel[n + j], panel[j]);
    for (const Kernels* k : kernel_sets()) {
      Tensor got({n});
      k->float_tile({1, a.data, 2, 1, panel.data, 2, n, nullptr, 0, got.data, n});
      if (!same_bits(got, want)) FAIL_CHECK(k->name << ", try " << i);
    }
  }
}

TEST_CASE("product: all strides of both operands, within the rounding errors of its sums") {
  for (const int64_t rows : {1, 13, 15, 40})
    for (const int64_t columns : {1, 5, 31, 33, 70})
      for (const int64_t depth : {1, 3, 16, 67, 530}) {
        const Tensor a = random({rows, depth}, 5), b = random({depth, columns}, 6), start = random({rows, columns}, 7);
        Tensor at({depth, rows}), bt({columns, depth});
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t r = 0; r < rows; ++r) at[k * rows + r] = a[r * depth + k];
          for (int64_t c = 0; c < columns; ++c) bt[c * depth + k] = b[k * columns + c];
        }
        Tensor first;
        for (const Matrix& left : {row_major(a.data, depth), row_major(at.data, rows).transposed()})
          for (const Matrix& right : {row_major(b.data, columns), row_major(bt.data, depth).transposed()}) {
            Tensor y = start.clone();
            const FloatPanels panels(right, depth, columns);
            gemm_float({left, rows, panels.view(), depth, columns, y.data, columns, y.data, columns});
            if (first.empty()) first = y;
            CHECK(same_bits(y, first));
          }
        // Each of n roundings is at most half a unit in the last place of a partial sum, which the sizes add up to
        // bound.
        double worst = 0;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; ++c) {
            double sum = start[r * columns + c], size = std::abs(sum);
            for (int64_t k = 0; k < depth; ++k) {
              const double term = static_cast<double>(a[r * depth + k]) * b[k * columns + c];
              sum += term, size += std::abs(term);
            }
            const double bound = static_cast<double>(std::min(depth, kFloatRun) + 2) * 0x1p-24 * size;
            worst = std::max(worst, std::abs(first[r * columns + c] - sum) / bound);
          }
        CHECK(worst <= 1);
      }
}

TEST_CASE("product: linear has the bits of the plain loop, however it is cut, on one and on two threads") {
  struct Case {
    int64_t samples, rows, in, out;
  };
  for (const Case c : {Case{1, 5, 3, 1}, {3, 37, 1024, 70}, {1, 300, 70, 300}, {2, 29, 1100, 97}, {2, 5, 2048, 33}})
    for (const bool biased : {false, true}) {
      const Tensor x = random({c.samples, c.rows, c.in}, 14), w = random({c.out, c.in}, 15);
      const Tensor bias = biased ? random({c.out}, 16) : Tensor{};
      Tensor want({c.samples, c.rows, c.out});
      linear_reference(x.data, x.rows(), w.data, c.out, c.in, bias.data, want.data);
      CHECK(same_bits(linear(nullptr, x, w, bias), want));
      CHECK(same_on_two_threads([&] { return linear(nullptr, x, w, bias); }));
      const Weight packed({c.out, c.in}, std::make_shared<const FloatPanels>(Weight(w)));
      CHECK(same_bits(packed.values(), w));
      CHECK(same_bits(linear(nullptr, x, packed, bias), want));
      CHECK(same_on_two_threads([&] { return linear(nullptr, x, packed, bias); }));
      const Tensor few = random({c.samples, kFewRows, c.in}, 17);
      Tensor want_few({c.samples, kFewRows, c.out});
      linear_few_reference(few.data, few.rows(), w.data, c.out, c.in, bias.data, want_few.data);
      CHECK(same_bits(linear(nullptr, few, w, bias), want_few));
      CHECK(same_bits(linear(nullptr, few, packed, bias), want_few));
    }
}

TEST_CASE("product: a fused MLP has the bits of its operations, in batches or alone, on one and on two threads") {
  for (const int64_t hidden : {50, 1024}) {  // the second is a depth whose rows are copied to another stride
    const Tensor x = random({3, 37, 1024}, 8), w1 = random({hidden, 1024}, 9, 0.1), w2 = random({33, hidden}, 10, 0.1);
    const Tensor b1 = random({hidden}, 11), b2 = random({33}, 12);
    const Tensor want = linear(nullptr, gelu_erf(nullptr, linear(nullptr, x, w1, b1)), w2, b2);
    CHECK(same_bits(fused_float_mlp(x, w1, b1, w2, b2), want));
    CHECK(same_bits(fused_float_mlp(x.slice(1, 2), w1, b1, w2, b2), want.slice(1, 2)));
    CHECK(same_on_two_threads([&] { return fused_float_mlp(x, w1, b1, w2, b2); }));
    const Tensor few = random({5, 3, 1024}, 13);
    CHECK(same_bits(fused_float_mlp(few, w1, b1, w2, b2),
                    linear(nullptr, gelu_erf(nullptr, linear(nullptr, few, w1, b1)), w2, b2)));
  }
  CHECK_THROWS_AS(fused_float_mlp(random({1, 9, 5}, 1), random({4, 6}, 1), Tensor{}, random({2, 4}, 1), Tensor{}),
                  Error);
  CHECK_THROWS_AS(fused_float_mlp(random({1, 9, 5}, 1), random({4, 5}, 1), Tensor{}, random({2, 3}, 1), Tensor{}),
                  Error);
}
