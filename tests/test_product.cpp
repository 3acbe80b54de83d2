// Float products: every instruction set gives the bits of the sum that is promised, at odd sizes and misaligned, and
// that sum is within its rounding errors of the exact one.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/gemm/product.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

std::vector<const Kernels*> sets() {
  int count = 0;
  const Kernels* const* all = all_kernels(&count);
  return {all, all + count};
}

// start + a b as kernels.h says; of libm, whose fma is exact.
float promised(const float* a, int64_t step, const float* b, int64_t row, int64_t depth, const float* start) {
  float total = start ? *start : 0;
  for (int64_t k0 = 0; k0 < depth; k0 += kFloatRun) {
    float sum = 0;
    for (int64_t k = k0; k < std::min(depth, k0 + kFloatRun); ++k) sum = std::fma(a[k * step], b[k * row], sum);
    total = k0 == 0 && !start ? sum : total + sum;
  }
  return total;
}

}  // namespace

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
          for (const bool turned : {false, true}) {
            const int64_t row = turned ? 1 : stride, step = turned ? rows : 1;
            if (turned && rows * depth > a.size()) continue;
            for (const int64_t start_stride : {-1, 0, 40}) {
              Tensor want({rows * ldc + 40});
              for (int64_t r = 0; r < rows; ++r)
                for (int64_t j = 0; j < columns; ++j)
                  want[shift + r * ldc + j] =
                      promised(a.data + shift + r * row, step, panel.data + shift + j, 32, depth,
                               start_stride < 0 ? nullptr : start.data + shift + r * start_stride + j);
              for (const Kernels* k : sets()) {
                Tensor got({rows * ldc + 40});
                k->float_tile(rows, a.data + shift, row, step, panel.data + shift, depth,
                              start_stride < 0 ? nullptr : start.data + shift, std::max<int64_t>(0, start_stride),
                              columns, got.data + shift, ldc);
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
    for (const Kernels* k : sets()) {
      Tensor got({n});
      k->float_tile(1, a.data, 2, 1, panel.data, 2, nullptr, 0, n, got.data, n);
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
            multiply(left, rows, right, depth, columns, y.data, columns, y.data, columns);
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

TEST_CASE("product: a fused_mlp has the bits of its operations, in batches or alone, on one and on two threads") {
  for (const int64_t hidden : {50, 1024}) {  // the second is a depth whose rows are moved apart
    const Tensor x = random({3, 37, 1024}, 8), w1 = random({hidden, 1024}, 9, 0.1), w2 = random({33, hidden}, 10, 0.1);
    const Tensor b1 = random({hidden}, 11), b2 = random({33}, 12);
    const Tensor want = linear(nullptr, gelu_erf(nullptr, linear(nullptr, x, w1, b1)), w2, b2);
    CHECK(same_bits(fused_mlp(x, w1, b1, w2, b2), want));
    CHECK(same_bits(fused_mlp(x.slice(1, 2), w1, b1, w2, b2), want.slice(1, 2)));
    CHECK(same_on_two_threads([&] { return fused_mlp(x, w1, b1, w2, b2); }));
    const Tensor few = random({5, 3, 1024}, 13);
    CHECK(same_bits(fused_mlp(few, w1, b1, w2, b2),
                    linear(nullptr, gelu_erf(nullptr, linear(nullptr, few, w1, b1)), w2, b2)));
  }
  CHECK_THROWS_AS(fused_mlp(random({1, 9, 5}, 1), random({4, 6}, 1), Tensor{}, random({2, 4}, 1), Tensor{}), Error);
  CHECK_THROWS_AS(fused_mlp(random({1, 9, 5}, 1), random({4, 5}, 1), Tensor{}, random({2, 3}, 1), Tensor{}), Error);
}
