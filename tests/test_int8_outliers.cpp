// Codes cut for sums in 16 bits and the outliers beside them: the same products on every instruction set.
#include <doctest/doctest.h>

#include "engine/gemm/gemm_int8.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// [columns, depth] like rounded weights, of which one in `rare` is at an end of the range, and their panels.
struct Operand {
  int64_t columns, depth;
  std::vector<int8_t> codes;
  Int8Panels panels;

  Operand(int64_t n, int64_t k, float deviation, uint32_t rare, uint32_t seed) : columns(n), depth(k), panels(n, k) {
    std::mt19937 bits(seed);
    const Tensor x = random({n * k, 3}, seed, deviation);  // the sum of three has that deviation
    for (int64_t i = 0; i < x.size(); i += 3) {
      const float end = bits() % 2 ? 127.f : -128.f, sum = std::nearbyint(x[i] + x[i + 1] + x[i + 2]);
      codes.push_back(static_cast<int8_t>(bits() % rare ? std::clamp(sum, -128.f, 127.f) : end));
    }
    for (int64_t c = 0; c < n; ++c) panels.set_column(c, codes.data() + c * k);
    panels.find_range();
  }
};

}  // namespace

TEST_CASE("int8 outliers: products of cut codes are those of the codes, on every instruction set") {
  std::mt19937 bits(3);
  for (const int64_t depth : {1, 4, 7, 8, 12, 64, 508, 512, 513, 520, 1300})
    for (const int64_t columns : {32, 90}) {
      Operand b(columns, depth, 30, 50, static_cast<uint32_t>(depth));
      const std::vector<int32_t> sums = b.panels.sums(1);
      b.panels.cut_outliers();
      CHECK((b.panels.outliers() > 0 || depth < 64));
      CHECK(b.panels.sums(1) == sums);
      b.panels.cut_outliers();  // once is enough
      CHECK(b.panels.sums(1) == sums);
      std::vector<int8_t> column(static_cast<size_t>(depth));
      for (int64_t c = 0; c < columns; ++c) {
        b.panels.column(c, column.data());
        CHECK(std::equal(column.begin(), column.end(), b.codes.begin() + c * depth));
      }
      for (const int rows : {1, 7, 16, 17, kInt8Block}) {
        const int64_t stride = 4 * b.panels.groups(), width = b.panels.panels() * kInt8Panel;
        std::vector<uint8_t> a(static_cast<size_t>(rows * stride));
        for (uint8_t& code : a) code = static_cast<uint8_t>(bits() % 3 ? 255 : bits());
        std::vector<int32_t> start(static_cast<size_t>(width)), want(static_cast<size_t>(rows * columns));
        for (int32_t& s : start) s = static_cast<int32_t>(bits() % 2000000) - 1000000;
        for (int64_t r = 0; r < rows; ++r)
          gemm_int8_reference(a.data() + r * stride, 1, b.codes.data(), columns, depth, start.data(),
                              want.data() + r * columns);
        for (const Kernels* k : kernel_sets()) {
          std::vector<int32_t> c(static_cast<size_t>(rows * width)), got(want.size());
          Int8Tile tile = b.panels.tile(0, b.panels.panels());
          tile.rows = rows, tile.a = a.data(), tile.a_stride = stride;
          tile.start = start.data(), tile.c = c.data(), tile.c_stride = width;
          k->int8_tile(tile);
          for (int64_t r = 0; r < rows; ++r) std::copy_n(c.begin() + r * width, columns, got.begin() + r * columns);
          if (got != want) FAIL_CHECK(k->name << ": " << rows << " x " << depth << " x " << columns);
        }
      }
    }
}

TEST_CASE("int8 outliers: a tile may begin at any panel") {
  Operand b(3 * kInt8Panel, 600, 30, 50, 1);
  b.panels.cut_outliers();
  const std::vector<uint8_t> a(600, 255);
  for (const Kernels* k : kernel_sets())
    for (int64_t p = 0; p < 3; ++p) {
      std::vector<int32_t> c(kInt8Panel), want(kInt8Panel);
      gemm_int8_reference(a.data(), 1, b.codes.data() + p * kInt8Panel * 600, kInt8Panel, 600, nullptr, want.data());
      Int8Tile tile = b.panels.tile(p, p + 1);
      tile.rows = 1, tile.a = a.data(), tile.c = c.data();
      k->int8_tile(tile);
      CHECK(c == want);
    }
}

TEST_CASE(
    "int8 outliers: after cutting, four codes of a column add up in 16 bits with any bytes, the largest cut first") {
  Operand b(40, 300, 35, 20, 2);
  b.panels.cut_outliers();
  const auto code = [&](int64_t c, int64_t k) {
    return b.panels.panel(c / kInt8Panel)[(k / 4 * kInt8Panel + c % kInt8Panel) * 4 + k % 4];
  };
  int64_t cut = 0;
  for (int64_t c = 0; c < 40; ++c)
    for (int64_t k = 0; k < 300; k += 8)
      for (const int64_t half : {0, 2}) {
        int above = 0, below = 0, least_cut = 128, largest_kept = 0;
        for (const int64_t i : {0, 1, 4, 5}) {
          if (k + half + i >= 300) continue;
          const int is = code(c, k + half + i), was = b.codes[static_cast<size_t>(c * 300 + k + half + i)];
          (is > 0 ? above : below) += is;
          CHECK(is * was >= 0);
          CHECK(std::abs(is) <= std::abs(was));
          cut += is != was;
          if (was > 0)
            (is != was ? least_cut : largest_kept) = is != was ? std::min(least_cut, was) : std::max(largest_kept, was);
        }
        CHECK(above <= 128);
        CHECK(below >= -128);
        CHECK(largest_kept <= least_cut);
      }
  CHECK(cut > 0);
  CHECK(b.panels.outliers() >= cut);
}

TEST_CASE("int8 outliers: nothing is cut where codes are small, or most are large") {
  Operand small(32, 64, 10, 1000000, 3), large(32, 64, 30, 2, 4);
  for (Operand* b : {&small, &large}) {
    if (b == &small)
      for (int64_t c = 0; c < 32; ++c) {
        for (int64_t k = 0; k < 64; ++k) {
          int8_t& code = b->codes[static_cast<size_t>(c * 64 + k)];
          code = std::clamp<int8_t>(code, -32, 31);
        }
        b->panels.set_column(c, b->codes.data() + c * 64);
      }
    b->panels.find_range();
    const std::vector<int8_t> before(b->panels.panel(0), b->panels.panel(0) + b->panels.bytes());
    b->panels.cut_outliers();
    CHECK(b->panels.outliers() == 0);
    CHECK(b->panels.tile(0, 1).outlier_starts == nullptr);
    CHECK(std::equal(before.begin(), before.end(), b->panels.panel(0)));
  }
}
