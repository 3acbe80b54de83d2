// Integer products against sums written out, on every instruction set: odd sizes, misaligned
// operands, codes at the ends of their ranges.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "engine/gemm/gemm_int8.h"
#include "engine/grid/grid.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// Every value there is, the extreme ones often.
template <class T>
std::vector<T> random_codes(int64_t n, uint32_t seed) {
  std::mt19937 bits(seed);
  std::vector<T> codes;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t r = static_cast<uint32_t>(bits());
    codes.push_back(static_cast<T>(r % 3 == 0 ? (r >> 8 & 1 ? 0x80 : 0x7f) : r % 3 == 1 ? 0xff : r >> 16));
  }
  return codes;
}

}  // namespace

TEST_CASE("int8: a tile of sums is exact on every instruction set") {
  constexpr int kRows = 31;
  for (const Kernels* k : kernel_sets())
    for (const int64_t groups : {0, 1, 2, 3, 17, 64})
      for (int rows = 1; rows <= kRows; ++rows)
        for (const int64_t shift : {0, 1, 7, 8}) {
          const bool from_zero = shift == 8;
          const int64_t stride = 4 * groups + 3 * shift, ldc = 32 + shift;
          std::vector<int32_t> start(static_cast<size_t>(32 + shift));
          std::mt19937 bits(4);
          for (int32_t& s : start) s = static_cast<int32_t>(bits() % 2000000) - 1000000;
          const auto a = random_codes<uint8_t>(rows * stride + shift, 1);
          const auto b = random_codes<int8_t>(4 * groups * 32 + shift, 2);
          std::vector<int32_t> c(static_cast<size_t>(rows * ldc + shift + 8), -7), want = c;
          std::vector<int8_t> columns(static_cast<size_t>(32 * 4 * groups));  // [32, depth] of the panel
          for (int64_t j = 0; j < 32; ++j)
            for (int64_t i = 0; i < 4 * groups; ++i)
              columns[static_cast<size_t>(j * 4 * groups + i)] =
                  b[static_cast<size_t>(shift + (i / 4 * 32 + j) * 4 + i % 4)];
          const int32_t* const from = from_zero ? nullptr : start.data() + shift;
          for (int64_t r = 0; r < rows; ++r)
            gemm_int8_reference(a.data() + shift + r * stride, 1, columns.data(), 32, 4 * groups, from,
                                want.data() + shift + r * ldc);
          k->int8_tile({rows, a.data() + shift, stride, b.data() + shift, groups, from, c.data() + shift, ldc});
          if (c != want) FAIL_CHECK(k->name << ": " << rows << " rows, " << groups << " groups, shift " << shift);
        }
}

TEST_CASE("int8: products of four bytes of any kind are added exactly, modulo 2^32, on every instruction set") {
  const std::vector<uint8_t> left = {0, 1, 127, 128, 255};        // all fours of them are rows,
  const std::vector<int8_t> right = {-128, -127, -1, 0, 1, 127};  // all fours of these are columns
  constexpr int64_t kRows = 625, kFours = 1296, kPanels = (kFours + 31) / 32, kColumns = kPanels * 32, kAtOnce = 25;
  std::vector<uint8_t> a;
  for (size_t r = 0; r < kRows; ++r)
    for (const size_t k : {1, 5, 25, 125}) a.push_back(left[r / k % 5]);
  std::vector<int8_t> b;
  for (size_t c = 0; c < kColumns; ++c)
    for (const size_t k : {1, 6, 36, 216}) b.push_back(right[c / k % 6]);
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> start;
  for (size_t c = 0; c < kColumns; ++c)
    start.push_back(std::vector<int32_t>{kMost, kLeast, 0, kMost - 255 * 127, -1}[c % 5]);
  for (int64_t first = 0; first < kRows; first += kAtOnce) {
    std::vector<int32_t> want;
    for (int64_t r = first; r < first + kAtOnce; ++r)
      for (int64_t c = 0; c < kColumns; ++c) {
        uint32_t sum = static_cast<uint32_t>(start[static_cast<size_t>(c)]);
        for (int64_t k = 0; k < 4; ++k)
          sum += static_cast<uint32_t>(a[static_cast<size_t>(4 * r + k)] * b[static_cast<size_t>(4 * c + k)]);
        want.push_back(static_cast<int32_t>(sum));
      }
    for (const Kernels* k : kernel_sets()) {
      std::vector<int32_t> c(want.size());
      k->int8_tile({.rows = kAtOnce,
                    .a = a.data() + 4 * first,
                    .a_stride = 4,
                    .panel = b.data(),
                    .groups = 1,
                    .start = start.data(),
                    .c = c.data(),
                    .c_stride = kColumns,
                    .panels = kPanels,
                    .panel_stride = 128});
      if (c != want) FAIL_CHECK(k->name << ": rows from " << first);
    }
  }
}

TEST_CASE("int8: the largest sums of the largest depth are exact") {
  const int64_t groups = kInt8MostDepth / 4;
  const std::vector<uint8_t> a(static_cast<size_t>(kInt8MostDepth), 255);
  const std::vector<int8_t> b(static_cast<size_t>(kInt8MostDepth * 32), -128);
  for (const Kernels* k : kernel_sets()) {
    std::vector<int32_t> c(32);
    k->int8_tile({1, a.data(), 0, b.data(), groups, nullptr, c.data(), 32});
    CHECK(c == std::vector<int32_t>(32, -255 * 128 * 65536));
    const std::vector<int32_t> start(32, 128 * 128 * 65536 - 1);  // a sum of the other sign: they may pass any number
    k->int8_tile({1, a.data(), 0, b.data(), groups, start.data(), c.data(), 32});
    CHECK(c == std::vector<int32_t>(32, -127 * 128 * 65536 - 1));
  }
}

TEST_CASE("int8: sums of panels with codes of any range are exact, those of the largest codes included") {
  std::mt19937 bits(5);
  for (const int most : {1, 2, 4, 8, 9, 16, 17, 32, 33, 64, 128})
    for (const int64_t groups : {1, 5, 16, 17, 128, 129, 256, 257, 300})
      for (const int rows : {1, 2, 3, 4, 5, 6, 8, 16, 17, 32, 33, kInt8Block}) {
        constexpr int64_t kPanels = 3, kColumns = kPanels * kInt8Panel;
        const int64_t depth = 4 * groups;
        Int8Panels b(kColumns, depth);
        std::vector<int8_t> columns(static_cast<size_t>(kColumns * depth));
        for (int8_t& code : columns) code = static_cast<int8_t>(std::min(127, bits() % 16 < 15 ? most : -most));
        for (int64_t c = 0; c < kColumns; ++c) {
          if (c % 2)
            for (int64_t k = 0; k < depth; ++k)
              columns[static_cast<size_t>(c * depth + k)] = static_cast<int8_t>(-most);
          b.set_column(c, columns.data() + c * depth);
        }
        auto a = random_codes<uint8_t>(rows * depth, 6);
        for (uint8_t& code : a) code = bits() % 16 ? 255 : code;
        std::vector<int32_t> want(static_cast<size_t>(rows * kColumns));
        const std::vector<int32_t> starts = random_codes<int32_t>(kColumns, 7);
        const int32_t* const start = rows % 2 ? starts.data() : nullptr;
        gemm_int8_reference(a.data(), rows, columns.data(), kColumns, depth, start, want.data());
        for (const Kernels* k : kernel_sets()) {
          std::vector<int32_t> c(want.size());
          Int8Tile tile{rows,     a.data(), depth, b.panel(0), groups,         start,
                        c.data(), kColumns, most,  kPanels,    b.panel_bytes()};
          if (groups % 2) {  // read ahead
            tile.next_a = a.data(), tile.next_a_bytes = rows * depth;
            tile.next_panel = b.panel(0), tile.next_panel_bytes = b.panel_bytes() / 3;
          }
          k->int8_tile(tile);
          if (c != want)
            FAIL_CHECK(k->name << ": codes up to " << most << ", " << groups << " groups, " << rows << " rows");
        }
      }
}

// n values of T, behind which lies memory that nobody may read or write.
template <class T>
class Fenced {
 public:
  explicit Fenced(int64_t n) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = static_cast<size_t>(n) * sizeof(T);
    size_ = (bytes + page - 1) / page * page + page;
    begin_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(begin_ != MAP_FAILED);
    char* const fence = static_cast<char*>(begin_) + size_ - page;
    REQUIRE(::mprotect(fence, page, PROT_NONE) == 0);
    data = reinterpret_cast<T*>(fence - bytes);
  }
  ~Fenced() { ::munmap(begin_, size_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;

  T* data;

 private:
  void* begin_;
  size_t size_;
};

TEST_CASE("int8: a tile reads and writes no byte beyond its operands, on every instruction set") {
  constexpr int64_t kPanels = 2, kColumns = kPanels * kInt8Panel;
  for (const int rows : {1, 4, 13, 16, 17, 32, 33, kInt8Block})
    for (const int64_t groups : {1, 15, 16, 17, 33, 257}) {
      const Fenced<uint8_t> a(rows * 4 * groups);
      const Fenced<int8_t> panels(kColumns * 4 * groups);
      const Fenced<int32_t> start(kColumns), c(rows * kColumns);
      std::fill_n(a.data, rows * 4 * groups, uint8_t{3});
      std::fill_n(panels.data, kColumns * 4 * groups, int8_t{-2});
      for (int64_t i = 0; i < kColumns; ++i) start.data[i] = static_cast<int32_t>(i);
      for (const Kernels* k : kernel_sets()) {
        k->int8_tile({.rows = rows,
                      .a = a.data,
                      .a_stride = 4 * groups,
                      .panel = panels.data,
                      .groups = groups,
                      .start = start.data,
                      .c = c.data,
                      .c_stride = kColumns,
                      .panels = kPanels,
                      .panel_stride = 4 * groups * kInt8Panel});
        int64_t wrong = 0;
        for (int64_t i = 0; i < rows * kColumns; ++i) wrong += c.data[i] != i % kColumns - 24 * groups;
        if (wrong > 0) FAIL_CHECK(k->name << ": " << rows << " rows, " << groups << " groups");
      }
    }
}

TEST_CASE("int8: codes are those of the grids, on every instruction set") {
  constexpr int64_t n = 1003;
  Tensor x = random({n + 7}, 3, 2), p = random({n + 7}, 4, 1);
  for (int64_t i = 0; i < 300; ++i) x[i] = 0.02f * (static_cast<float>(i - 150) + 0.5f);  // near ties, and at them
  for (int64_t i = 0; i < p.size(); ++i) p[i] = p[i] * p[i] * p[i] * p[i];
  for (const int64_t i : {5, 700}) x[i] = std::numeric_limits<float>::infinity();
  for (const int64_t i : {6, 701}) x[i] = -std::numeric_limits<float>::infinity();
  for (const Kernels* k : kernel_sets())
    for (const int bits : {2, 4, 6, 8})
      for (const int64_t shift : {0, 1, 7}) {
        CAPTURE(k->name);
        CAPTURE(bits);
        const float m = std::ldexp(1.f, bits - 1);
        std::vector<uint8_t> first(static_cast<size_t>(n + shift)), second = first;
        uint8_t *one = first.data() + shift, *two = second.data() + shift;
        std::vector<float> want(static_cast<size_t>(n)), got = want;
        const float *in = x.data + shift, *softmax = p.data + shift;

        k->fake_uniform(in, want.data(), n, 0.02f, -m, m - 1);
        k->code_uniform(in, one, n, 0.02f, -m, m - 1, 128);
        k->code_uniform(in, two, n, 0.02f, -m, m - 1, 0);
        for (int64_t i = 0; i < n; ++i) got[static_cast<size_t>(i)] = 0.02f * static_cast<float>(one[i] - 128);
        CHECK(got == want);
        for (int64_t i = 0; i < n; ++i)
          got[static_cast<size_t>(i)] = 0.02f * static_cast<float>(static_cast<int8_t>(two[i]));
        CHECK(got == want);

        k->fake_twin_gelu(in, want.data(), n, 0.05f, 0.003f, m);
        k->code_twin_gelu(in, one, two, n, 0.05f, 0.003f, m);
        for (int64_t i = 0; i < n; ++i) got[static_cast<size_t>(i)] = 0.05f * one[i] - 0.003f * two[i];
        CHECK(got == want);

        for (const bool official : {true, false}) {
          const float split = 0.125f, top = m - 1, step = split / top;
          k->fake_twin_softmax(softmax, want.data(), n, split, top, official);
          k->code_twin_softmax(softmax, one, two, n, split, top, official);
          for (int64_t i = 0; i < n; ++i)
            got[static_cast<size_t>(i)] = static_cast<float>(two[i]) / top + step * static_cast<float>(one[i]);
          CHECK(got == want);
        }
      }
}

TEST_CASE("int8: codes are those of rounded quotients, for steps of any size and values next to where codes change") {
  std::mt19937 bits(3);
  const auto step_of = [&](int i) {  // mantissas at random, all ones and all zeros; exponents from end to end
    const uint32_t mantissa = i % 8 == 0 ? 0 : i % 8 == 1 ? 0x7fffff : static_cast<uint32_t>(bits()) >> 9;
    const uint32_t exponent = i % 2 ? 67 + static_cast<uint32_t>(bits()) % 120 : static_cast<uint32_t>(bits()) % 255;
    const uint32_t word = std::max(exponent << 23 | mantissa, 1u);
    float step;
    std::memcpy(&step, &word, sizeof step);
    return step;
  };
  int64_t wrong = 0, wrong_twins = 0;
  for (int i = 0; i < 3000; ++i) {
    const float delta = step_of(i), other = step_of(i + 3);
    std::vector<float> x;
    for (int code = -130; code < 130; ++code) {
      float at = (static_cast<float>(code) + 0.5f) * delta;
      for (int k = 0; k < 3; ++k) at = std::nextafter(at, -INFINITY);
      for (int k = 0; k < 6; ++k, at = std::nextafter(at, INFINITY)) x.push_back(at);
    }
    for (const float far : {0.f, -0.f, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f}) x.push_back(far);
    const auto n = static_cast<int64_t>(x.size());
    std::vector<uint8_t> want(x.size()), above = want, below = want;
    for (size_t k = 0; k < x.size(); ++k) {
      const auto code = [&](float step, float lo, float hi) {
        return std::nearbyint(std::min(std::max(x[k] / step, lo), hi));
      };
      want[k] = static_cast<uint8_t>(code(delta, -128, 127) + 128);
      above[k] = static_cast<uint8_t>(code(delta, 0, 127));
      below[k] = static_cast<uint8_t>(-code(other, -128, 0));
    }
    for (const Kernels* k : kernel_sets()) {
      std::vector<uint8_t> y(x.size()), z = y;
      k->code_uniform(x.data(), y.data(), n, delta, -128, 127, 128);
      wrong += y != want;
      k->code_twin_gelu(x.data(), y.data(), z.data(), n, delta, other, 128);
      wrong_twins += y != above || z != below;
    }
  }
  CHECK(wrong == 0);
  CHECK(wrong_twins == 0);
}

TEST_CASE("int8: what is not a number becomes the lowest code everywhere") {
  const std::vector<float> x(70, std::nanf(""));
  for (const Kernels* k : kernel_sets()) {
    std::vector<uint8_t> y(70, 7);
    k->code_uniform(x.data(), y.data(), 70, 0.1f, -8, 7, 128);
    CHECK(y == std::vector<uint8_t>(70, 120));
  }
}

TEST_CASE("int8: floats from sums are the same on every instruction set, and those of the formula") {
  for (int64_t n = 1; n <= 67; ++n) {
    std::mt19937 bits(static_cast<uint32_t>(n));
    std::vector<int32_t> sum1, sum2;
    std::vector<float> scale1, scale2, bias;
    for (int64_t i = 0; i < n; ++i) {
      for (auto* sums : {&sum1, &sum2}) sums->push_back(static_cast<int32_t>(bits()) / 4);
      for (auto* floats : {&scale1, &scale2, &bias}) floats->push_back(static_cast<float>(bits()) * 1e-9f);
    }
    for (const Kernels* k : kernel_sets())
      for (const bool twin : {false, true}) {
        std::vector<float> y(static_cast<size_t>(n)), want = y;
        k->from_sums(sum1.data(), twin ? sum2.data() : nullptr, scale1.data(), scale2.data(), bias.data(), y.data(), n);
        for (size_t i = 0; i < y.size(); ++i) {
          volatile float first = static_cast<float>(sum1[i]) * scale1[i];
          volatile float second = static_cast<float>(sum2[i]) * scale2[i];
          volatile float both = twin ? first + second : first;
          want[i] = both + bias[i];
        }
        CHECK(y == want);
      }
  }
}

TEST_CASE("int8: products of packed codes, by columns and by groups of depths, in one plane and in two") {
  for (const int64_t columns : {1, 31, 33, 64, 200})
    for (const auto& [depth, most] :
         {std::pair<int64_t, int>{1, 128}, {3, 128}, {4, 8}, {50, 128}, {197, 8}, {197, 128}}) {
      auto b = random_codes<int8_t>(columns * depth, 5);  // [columns, depth]
      for (int8_t& code : b) code = static_cast<int8_t>(code * most / 128);
      Int8Panels by_column(columns, depth), by_group(columns, depth);
      std::vector<int8_t> transposed(b.size());  // [depth, columns]
      std::vector<int32_t> sums(static_cast<size_t>(by_column.panels() * kInt8Panel));
      for (int64_t c = 0; c < columns; ++c) {
        by_column.set_column(c, b.data() + c * depth);
        for (int64_t k = 0; k < depth; ++k) {
          transposed[static_cast<size_t>(k * columns + c)] = b[static_cast<size_t>(c * depth + k)];
          sums[static_cast<size_t>(c)] += 3 * b[static_cast<size_t>(c * depth + k)];
        }
      }
      for (int64_t g = 0; 4 * g < depth; ++g)
        by_group.set_group(g, std::min<int64_t>(4, depth - 4 * g), transposed.data() + 4 * g * columns, columns);
      CHECK(std::memcmp(by_column.panel(0), by_group.panel(0), static_cast<size_t>(by_column.bytes())) == 0);
      CHECK(by_column.sums(3) == sums);
      CHECK(by_column.most() == 128);  // as long as nobody has looked
      by_column.find_range();
      CHECK(by_column.most() <= most);
      CHECK(by_column.sums(3) == sums);
      for (const int planes : {1, 2})
        for (const int64_t rows : {1, 7, 15, 130}) {
          const int64_t stride = int8_stride(depth);
          const auto codes = random_codes<uint8_t>(rows * planes * stride, 6);
          const Int8Rows a(rows, depth, planes);
          std::copy(codes.begin(), codes.end(), a.codes.data());
          std::vector<int32_t> got(static_cast<size_t>(rows * planes * columns)), want = got;
          const int32_t* const start = rows == 7 ? nullptr : sums.data();
          gemm_int8(a, by_column, start,
                    [&](int64_t r, int64_t c0, int64_t n, const int32_t* sum1, const int32_t* sum2) {
                      std::copy_n(sum1, n, got.data() + r * planes * columns + c0);
                      CHECK((sum2 != nullptr) == (planes == 2));
                      if (sum2) std::copy_n(sum2, n, got.data() + (r * planes + 1) * columns + c0);
                    });
          for (int64_t r = 0; r < rows * planes; ++r)
            gemm_int8_reference(codes.data() + r * stride, 1, b.data(), columns, depth, start,
                                want.data() + r * columns);
          CHECK(got == want);
        }
    }
}
