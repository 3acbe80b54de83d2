// Grids of activations: against their formulas in double precision, against published quantizers, and their codes
// against their values. Those named "activation grid" run on every kernel set.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <cstring>

#include "engine/core/check.h"
#include "engine/core/format.h"
#include "engine/grid/affine.h"
#include "engine/grid/log_grid.h"
#include "engine/grid/table.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/layer.h"
#include "tests/grid_codes.h"
#include "tests/kernels/kernel_sets.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The larger of both, infinite for NaN.
void grow(double& worst, double d) {
  if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
}

double clamp(double x, double lo, double hi) { return x < lo ? lo : x > hi ? hi : x; }

// The inputs of the golden vectors: u(k) and v(k) from k = start on, row-major.
Tensor u(int64_t start, Shape shape) {
  Tensor x(std::move(shape));
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(7919 * (start + i) % 1000 / 500.0 - 1);
  return x;
}
double v(int64_t k) { return 7919 * k * k % 1009 / 504.5 - 1; }

// Softmax over the last axis of 6 v(1), 6 v(2), ..., [2, 2, 4, 8].
Tensor golden_softmax() {
  Tensor x({2, 2, 4, 8});
  for (int64_t r = 0; r < 16; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < 8; ++c) sum += std::exp(6 * v(1 + r * 8 + c));
    for (int64_t c = 0; c < 8; ++c) x[r * 8 + c] = static_cast<float>(std::exp(6 * v(1 + r * 8 + c)) / sum);
  }
  return x;
}

// Values in (0, 1.2), evenly spread in the logarithm, and some that are not in a logarithmic grid's range.
Tensor positive(int64_t n, uint32_t seed, double octaves) {
  Tensor x = random({1, n}, seed);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(1.2 * std::exp2((x[i] - 1) / 2 * octaves));
  x[0] = 0, x[1] = -0.f, x[2] = -3, x[3] = 1e-40f, x[4] = INFINITY, x[5] = 1;
  return x;
}

// round(-log2(x / s) / step), half to even, as a level below `count`, which is that of 0.
int level_of(double x, double s, double step, int count) {
  if (!(x > 0)) return count;
  const double k = std::nearbyint(-std::log2(x / s) / step);
  return static_cast<int>(clamp(k, 0, count));
}

std::vector<uint8_t> some_levels(int bits, uint32_t seed) {
  const Tensor x = random({int64_t{1} << bits}, seed, 127.5);
  std::vector<uint8_t> levels;
  for (int64_t i = 0; i < x.size(); ++i) levels.push_back(static_cast<uint8_t>(x[i] + 127.5f));
  return levels;
}

// One grid of each kind and width that has an integer form.
std::vector<Grid> grids_with_codes() {
  std::vector<Grid> grids;
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int32_t zero : {0, 1, 1 << (bits - 1), (1 << bits) - 1, 200, (1 << bits) - 220})
      grids.push_back(Asymmetric{bits, 0.03f, zero});
    for (const int32_t zero : {0, 9, 128, 255}) grids.push_back(Table{bits, 0.01f, zero, some_levels(bits, 21)});
    for (const bool extra : {false, true}) {
      if (bits <= 4) grids.push_back(Log2{bits, 0.9f, extra});
      if (bits <= 4) grids.push_back(LogSqrt2{bits, 0.9f, extra});
      for (const int base : {10, 19, 37, 74, 138})
        for (const float shift : {0.f, AdaLog::kGeluShift}) {
          const Grid grid = AdaLog{bits, 0.9f, base, shift, extra};
          if (grid.has_codes()) grids.push_back(grid);
        }
    }
  }
  return grids;
}

}  // namespace

TEST_CASE("activation grid: asymmetric follows its formula at every width and zero point") {
  const Tensor x = spread({1, 7003}, 1, 6);
  for (int bits = 1; bits <= 9; ++bits)
    for (const int32_t zero : {0, 1, 100, -7, 1 << (bits - 1), 3000}) {
      const Grid grid = Asymmetric{bits, 0.05f, zero};
      const double top = std::ldexp(1, bits) - 1;
      const Tensor y = fake_quantize(grid, x);
      CHECK(all_equal(y, [&](int64_t i) {
        const double code = clamp(std::nearbyint(x[i] / 0.05f) + zero, 0, top);
        return 0.05f * static_cast<float>(code - zero);
      }));
      CHECK(all_equal(fake_quantize(grid, y), y));
      CHECK(same_on_two_threads([&] { return fake_quantize(grid, x); }));
      CHECK(grid.has_codes() == (bits <= 8 && zero <= 255 && top - zero <= 255));
      CHECK(grid.has_signed_codes() == (bits <= 8 && zero <= 128 && top - zero <= 127));
      if (grid.has_signed_codes()) CHECK(all_equal(decoded_signed(grid, x), y));
    }
}

TEST_CASE("activation grid: asymmetric has one pair a head") {
  const Tensor x = random({2, 3, 4, 5}, 2);
  const std::vector<float> scale = {0.1f, 0.02f, 0.3f};
  const std::vector<int32_t> zero = {3, 8, 15};
  const Grid grid = Asymmetric{4, 1, scale, zero};
  CHECK(all_equal(fake_quantize(grid, x), [&](int64_t i) {
    const size_t h = static_cast<size_t>(i / 20 % 3);
    return scale[h] * static_cast<float>(clamp(std::nearbyint(x[i] / scale[h]) + zero[h], 0, 15) - zero[h]);
  }));
  const Tensor first = sample(x, 0).reshaped({3, 20});
  CHECK(all_equal(decoded(grid, first), fake_quantize(grid, sample(x, 0)).reshaped({3, 20})));
  CHECK(all_equal(fake_quantize(grid.unit(1), x.slice(0, 1)),
                  fake_quantize(Asymmetric{4, scale[1], zero[1]}, x.slice(0, 1))));
  CHECK_THROWS_AS(fake_quantize(Asymmetric(4, 1, {1, 1}, {0, 0}), x), Error);
  CHECK_THROWS_AS(Asymmetric(4, 1, {1, 1}, {0}), Error);
  CHECK_THROWS_AS(Asymmetric(4, 1.f, 1 << 21), Error);
}

TEST_CASE("activation grid: asymmetric inputs and weights of RepQ-ViT's golden vector, with the zero point rounded") {
  const Tensor h = u(1001, {10, 8}), beta = u(1501, {8}), w = u(2001, {6, 8}), bias = u(3001, {6});
  const double gamma[] = {1, .5, 3, .25, 1, 8, .7, 2};
  const double ratio[] = {.7667521, .3027967, 1.3969665, .1151691, .5223297, 3.515654, .3364834, 1.0438485};
  const double shift[] = {.2420022, -.7260067, .5646718, -5.2433815, -.7260067, 1.5326807, 3.4686985, .8873413};
  Tensor x({10, 8}), folded({10, 8}), wide({6, 8});
  for (int64_t r = 0; r < 10; ++r) {
    double mean = 0, square = 0;
    for (int64_t c = 0; c < 8; ++c) mean += h[r * 8 + c] / 8.0;
    for (int64_t c = 0; c < 8; ++c) square += (h[r * 8 + c] - mean) * (h[r * 8 + c] - mean) / 8;
    for (int64_t c = 0; c < 8; ++c) {
      const double y = (h[r * 8 + c] - mean) / std::sqrt(square + 1e-6) * gamma[c] + beta[c];
      x[r * 8 + c] = static_cast<float>(y);
      folded[r * 8 + c] = static_cast<float>(y / ratio[c] - shift[c]);
    }
  }
  for (int64_t i = 0; i < w.size(); ++i) wide[i] = static_cast<float>(w[i] * ratio[i % 8]);
  const Tensor rounded = fake_quantize(Asymmetric{4, .3226696f, 10}, folded);
  const Affine rows{4, 8, Tensor({6, 1}, {.0684664f, .2430635f, .1441944f, .0711031f, .2601987f, .1237742f}),
                    Tensor({6, 1}, {5, 4, 14, 3, 4, 13})};
  const Tensor weight = fake_quantize(rows, wide);
  CHECK(all_equal(decoded_signed(rows, wide), weight));
  double error = 0;
  for (int64_t r = 0; r < 10; ++r)
    for (int64_t o = 0; o < 6; ++o) {
      double y = 0, want = 0;
      for (int64_t c = 0; c < 8; ++c) {
        y += static_cast<double>(rounded[r * 8 + c]) * weight[o * 8 + c] + wide[o * 8 + c] * shift[c];
        want += static_cast<double>(x[r * 8 + c]) * w[o * 8 + c];
      }
      error += (y - want) * (y - want);
    }
  CHECK(error == doctest::Approx(6.535916).epsilon(1e-5));
}

TEST_CASE("activation grid: logarithmic grids follow their formulas at every width") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const bool extra : {false, true}) {
      CAPTURE(bits);
      CAPTURE(extra);
      const int count = std::min(255, (1 << bits) - (extra ? 0 : 1));
      const float s = 0.9380360f;
      const Tensor x = positive(20011, 3, 1.5 * std::min(80, count));
      const Tensor two = fake_quantize(Log2{bits, s, extra}, x), root = fake_quantize(LogSqrt2{bits, s, extra}, x);
      double worst_two = 0, worst_root = 0;
      for (int64_t i = 0; i < x.size(); ++i) {
        const int k = level_of(x[i], s, 1, count), half = level_of(x[i], s, 0.5, count);
        const bool tiny = x[i] < 0x1p-126f;
        grow(worst_two, std::abs(two[i] - (k == count || tiny ? 0 : std::ldexp(double{s}, -k))) / s);
        const double value = half == count || tiny ? 0 : s * std::exp2(-half / 2.0);
        grow(worst_root, std::abs(root[i] - value) / (value > 0 ? value : s));
      }
      CHECK(worst_two == 0);
      CHECK(worst_root < 1e-7);
      CHECK(same_on_two_threads([&] { return fake_quantize(LogSqrt2{bits, s, extra}, x); }));
    }
}

TEST_CASE("activation grid: log-sqrt2 reproduces RepQ-ViT's golden vectors") {
  const Tensor x = golden_softmax();
  const float s = .938036f;
  const Tensor y = fake_quantize(LogSqrt2{4, s, true}, x);
  const double row[] = {.938036, 0, .0586273, .0293136, 0, .0207279, .0293136, 0};
  for (int64_t i = 0; i < 8; ++i) CHECK(y[i] == doctest::Approx(row[i]).epsilon(1e-6));
  const std::vector<int> counts[] = {{6, 5, 8, 3, 5, 1, 2, 6, 92},
                                     {6, 5, 8, 3, 5, 1, 2, 6, 6, 4, 5, 5, 6, 2, 4, 2, 58}};
  const double errors[] = {9.5004e-4, 6.8912e-4};
  for (const int bits : {3, 4}) {
    const Tensor rounded = fake_quantize(LogSqrt2{bits, s, true}, x);
    std::vector<int> count((size_t{1} << bits) + 1, 0);
    double error = 0;
    for (int64_t i = 0; i < x.size(); ++i) {
      const double d = static_cast<double>(x[i]) - rounded[i];
      error += d * d / static_cast<double>(x.size());
      const double code = rounded[i] > 0 ? std::nearbyint(-2 * std::log2(rounded[i] / s)) : 1 << bits;
      ++count[static_cast<size_t>(code)];
    }
    CHECK(count == counts[bits - 3]);
    CHECK(error == doctest::Approx(errors[bits - 3]).epsilon(1e-4));
    // One value less: what had the last code is 0.
    const Tensor fits = fake_quantize(LogSqrt2{bits, s}, x);
    const float last = static_cast<float>(s * std::exp2(-((1 << bits) - 1) / 2.0));
    CHECK(all_equal(fits, [&](int64_t i) { return rounded[i] < 1.1f * last ? 0 : rounded[i]; }));
  }
  // Planes of the first row.
  const uint8_t even[] = {128, 0, 8, 4, 0, 0, 4, 0}, odd[] = {0, 0, 0, 0, 0, 4, 0, 0};
  uint8_t codes[16];
  LogSqrt2(4, s, true).code(x.data, 8, 0, codes, 8);
  CHECK(std::equal(codes, codes + 8, even));
  CHECK(std::equal(codes + 8, codes + 16, odd));
}

TEST_CASE("activation grid: AdaLog follows its formula at every width and base") {
  for (int bits = 1; bits <= 8; ++bits)
    for (const bool extra : {false, true})
      for (const int base : {1, 10, 12, 21, 37, 74, 138, 255}) {
        CAPTURE(bits);
        CAPTURE(base);
        const int count = std::min(255, (1 << bits) - (extra ? 0 : 1));
        const double s = 0.75f, step = base / 37.0, top = std::ldexp(1, bits + 1) - 2;
        const Tensor x = positive(5003, 4, std::min(100.0, 1.3 * count * step));
        const Tensor y = fake_quantize(AdaLog{bits, 0.75f, base, 0, extra}, x);
        double worst = 0;
        for (int64_t i = 0; i < x.size(); ++i) {
          const int k = level_of(x[i], s, step, count);
          const double mant = std::nearbyint(std::exp2(-(k * base % 37) / 37.0) * top) / top;
          const double value = k == count || x[i] < 0x1p-126f ? 0 : s * mant * std::exp2(-(k * base / 37));
          grow(worst, std::abs(y[i] - value) / (value > 0x1p-126 ? value : s));
        }
        CHECK(worst < 2e-7);
      }
  // Halves: of base 74 one code is a factor of 4, and 2^-1 and 2^-3 are ties, to the even code.
  const Tensor ties({4}, {0.5f, std::nextafter(0.5f, 0.f), 0.125f, std::nextafter(0.125f, 1.f)});
  const Tensor y = fake_quantize(AdaLog{3, 1, 74}, ties);
  const float want[] = {1, 0.25f, 0.0625f, 0.25f};
  CHECK(all_equal(y, [&](int64_t i) { return want[i]; }));
}

TEST_CASE("activation grid: AdaLog reproduces the golden vectors") {
  const Tensor a = golden_softmax();
  const int shifts[2][16] = {{0, 0, 1, 1, 2, 2, 3, 3}, {0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4}};
  const int mants[2][16] = {{14, 9, 13, 9, 12, 8, 11, 7},
                            {30, 24, 19, 15, 24, 19, 16, 25, 20, 16, 25, 20, 16, 26, 21, 16}};
  const double errors[] = {.10078767, .04814072};
  for (const int bits : {3, 4}) {
    const int base = bits == 3 ? 21 : 12;
    const AdaLog grid{bits, 1, base, 0, true};
    for (int k = 0; k < 1 << bits; ++k) {
      const Tensor y = fake_quantize(grid, Tensor({1}, {static_cast<float>(std::exp2(-k * base / 37.0))}));
      CHECK(y[0] == doctest::Approx(std::ldexp(mants[bits - 3][k], -shifts[bits - 3][k]) / ((2 << bits) - 2)));
    }
    // The squared error of its product with v(9001), ... [2, 2, 8, 3].
    const Tensor rounded = fake_quantize(grid, a);
    double error = 0;
    for (int64_t i = 0; i < 16; ++i)
      for (int64_t o = 0; o < 3; ++o) {
        double d = 0;
        for (int64_t c = 0; c < 8; ++c)
          d += (static_cast<double>(rounded[i * 8 + c]) - a[i * 8 + c]) * v(9001 + (i / 4 * 8 + c) * 3 + o);
        error += d * d;
      }
    CHECK(error == doctest::Approx(errors[bits - 3]).epsilon(1e-5));
  }
  CHECK(AdaLog(4, 1, 12, 0, true).planes() == 2);  // 480 is the largest integer
  CHECK(AdaLog(3, 1, 21, 0, true).planes() == 1);  // 112
  CHECK(AdaLog(4, 1, 29, 0, true).planes() == 2);  // 30 * 2^11
  CHECK(AdaLog(4, 1, 30, 0, true).planes() == 0);
  CHECK(AdaLog(8, 1, 37).planes() == 0);
}

TEST_CASE("activation grid: a shift moves what AdaLog rounds") {
  const Tensor x = gelu_erf(nullptr, random({1, 3001}, 5, 4));
  Tensor moved = x.clone();
  for (int64_t i = 0; i < x.size(); ++i) moved[i] += AdaLog::kGeluShift;
  const Tensor y = fake_quantize(AdaLog{4, 3, 20, AdaLog::kGeluShift}, x),
               plain = fake_quantize(AdaLog{4, 3, 20}, moved);
  CHECK(all_equal(y, [&](int64_t i) { return plain[i] - AdaLog::kGeluShift; }));
}

TEST_CASE("activation grid: a table rounds to its nearest level") {
  const Tensor x = spread({1, 7001}, 6, 3);
  for (int bits = 1; bits <= 8; ++bits)
    for (const int32_t zero : {0, 9, 128, 255}) {
      const std::vector<uint8_t> levels = some_levels(bits, 7);
      const Table table{bits, 0.02f, zero, levels};
      CHECK(all_equal(fake_quantize(table, x), [&](int64_t i) {
        const double code = clamp(std::nearbyint(x[i] / 0.02f) + zero, 0, 255);
        double nearest = 1e9;
        for (const uint8_t level : levels)
          if (std::abs(level - code) < std::abs(nearest - code) ||
              (std::abs(level - code) == std::abs(nearest - code) && level < nearest))
            nearest = level;
        return 0.02f * static_cast<float>(nearest - zero);
      }));
    }
  // All 256 levels are the 8-bit grid.
  std::vector<uint8_t> all(256);
  for (size_t i = 0; i < 256; ++i) all[i] = static_cast<uint8_t>(i);
  CHECK(all_equal(fake_quantize(Table{8, 0.02f, 31, all}, x), fake_quantize(Asymmetric{8, 0.02f, 31}, x)));
  CHECK_THROWS_AS(Table(2, 1.f, 0, {1, 2, 3, 4, 5}), Error);
  CHECK_THROWS_AS(Table(2, 1.f, 0, {}), Error);
  CHECK_THROWS_AS(Table(2, 1.f, 256, {1}), Error);
  CHECK_THROWS_AS(Table(2, 1.f, -1, {1}), Error);
}

TEST_CASE("activation grid: codes stand for the rounded values, for rows of every length") {
  const Tensor x = spread({1, 1000}, 8, 20);
  int signed_grids = 0;
  for (const Grid& grid : grids_with_codes()) {
    const std::string name = grid.name();
    CAPTURE(name);
    CAPTURE(grid->bits);
    REQUIRE(grid.has_codes());
    for (const int64_t n : {1, 15, 16, 63, 64, 65, 997}) {
      const Tensor row = Tensor::borrow({1, n}, x.data, x.owner);
      const Tensor want = fake_quantize(grid, row);
      REQUIRE(all_equal(decoded(grid, row), want));
      if (grid.has_signed_codes()) REQUIRE(all_equal(decoded_signed(grid, row), want));
    }
    signed_grids += grid.has_signed_codes();
    float nan[40];
    std::fill(nan, nan + 40, NAN);
    uint8_t codes[80];
    grid->code(nan, 40, 0, codes, 40);  // some code
    const Tensor rounded = fake_quantize(grid, Tensor({1}, {NAN}));
    CHECK(std::isnan(rounded[0]));
  }
  CHECK(signed_grids > 20);
}

TEST_CASE("activation grid: integer products are those of the rounded values") {
  const int64_t rows = 9, depth = 70, columns = 35;
  Tensor x = spread({rows, depth}, 9, 3), w = random({columns, depth}, 10);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = std::min(std::max(x[i], -3.f), 3.f);
  Tensor scale({columns, 1}), zero({columns, 1});
  for (int64_t c = 0; c < columns; ++c)
    scale[c] = 0.1f + 0.01f * static_cast<float>(c), zero[c] = static_cast<float>(c % 16);
  const Grid of_rows = Affine{4, depth, scale, zero};
  for (const Grid& grid : grids_with_codes()) {
    const std::string name = grid.name();
    CAPTURE(name);
    CAPTURE(grid->bits);
    Layer layer;
    layer.name = "fc";
    layer.weight = w;
    layer.bias.loaded = random({columns}, 11);
    const Tensor left = fake_quantize(grid, x), right = fake_quantize(of_rows, w);
    layer.quantize({grid, of_rows, right, nullptr, nullptr});
    REQUIRE(layer.prepare_int8());
    const Tensor y = layer.product({Precision::Integer}, x, {});
    double worst = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        double sum = layer.bias.loaded[c], size = std::abs(sum);
        for (int64_t k = 0; k < depth; ++k) {
          const double term = static_cast<double>(left[r * depth + k]) * right[c * depth + k];
          sum += term, size += std::abs(term) + std::abs(grid->constant(0) * right[c * depth + k]);
        }
        grow(worst, std::abs(y[r * columns + c] - sum) / (10 * 0x1p-24 * size));
      }
    CHECK(worst <= 1);
  }
}

TEST_CASE("activation grid: read back from its name and description") {
  const Tensor x = spread({2, 3, 4, 50}, 12, 5);
  std::vector<Grid> grids = {Asymmetric{4, 1, {0.1f, 0.2f, 0.3f}, {3, -4, 100}}, Asymmetric{8, 0.1f, 77},
                             Table{3, 0.01f, 9, {5, 22, 44, 70, 101, 139, 188, 248}}};
  for (const bool extra : {false, true}) {
    grids.push_back(Log2{4, 0.9f, extra});
    grids.push_back(LogSqrt2{3, 0.9f, extra});
    grids.push_back(AdaLog{4, 0.9f, 23, 0.17f, extra});
  }
  for (const Grid& grid : grids) {
    CAPTURE(grid.name());
    const Grid again = read_grid(grid.name(), grid.describe());
    CHECK(again.name() == grid.name());
    CHECK(again.describe() == grid.describe());
    CHECK(same_bits(fake_quantize(again, x), fake_quantize(grid, x)));
    for (const auto& [name, value] : grid.describe()) {  // each of them is needed
      if (name == "axis" && grid->units() == 1) continue;
      Fields less = grid.describe();
      less.erase(name);
      CHECK_THROWS_AS(read_grid(grid.name(), less), InputError);
    }
  }
  const auto with = [](const Grid& grid, const char* name, const Fields::mapped_type& value) {
    Fields fields = grid.describe();
    fields[name] = value;
    return [=] { read_grid(grid.name(), fields); };
  };
  const Grid table = Table{2, 1, 0, {1}}, one = Asymmetric{4, 0.1f, 7}, log = AdaLog{4, 1, 12};
  for (const float bad : {-1.f, 256.f, 1.5f, NAN}) {
    CHECK_THROWS_AS(with(table, "levels", std::vector<float>{bad})(), InputError);
    if (bad != -1.f && bad != 256.f) CHECK_THROWS_AS(with(one, "zero", std::vector<float>{bad})(), InputError);
  }
  for (const int64_t bad : {int64_t{-1}, int64_t{256}, int64_t{1} << 40}) {
    CHECK_THROWS_AS(with(table, "zero", bad)(), InputError);
    CHECK_THROWS_AS(with(log, "base", bad)(), InputError);
  }
  for (const float bad : {0.f, -1.f, INFINITY, NAN}) CHECK_THROWS_AS(with(log, "scale", bad)(), Error);
}

TEST_CASE("activation grid: storage counts codes and parameters") {
  const Shape shape = {10, 20};
  CHECK(storage_bits(Asymmetric{4, 0, {1, 1}, {0, 0}}, shape) == 200 * 4 + 2 * (32 + 4));
  CHECK(storage_bits(LogSqrt2{4, 1}, shape) == 200 * 4 + 32);
  CHECK(storage_bits(LogSqrt2{4, 1, true}, shape) == doctest::Approx(200 * std::log2(17) + 32));
  CHECK(storage_bits(Table{2, 1, 0, {1, 5, 9}}, shape) == 200 * 2 + 32 + 8 + 3 * 8);
}

TEST_CASE("kernels of levels: every set against plain loops, at every length") {
  const Tensor x = spread({200}, 31), many = random({255}, 32);
  std::vector<int32_t> edges(255);
  for (int64_t i = 0; i < 255; ++i) {
    const float edge = std::abs(many[i]) * std::ldexp(1.f, static_cast<int>(i % 14) - 13);
    std::memcpy(&edges[static_cast<size_t>(i)], &edge, sizeof edge);
  }
  std::vector<uint8_t> table(256), codes(200), got(202);
  for (size_t i = 0; i < 256; ++i) table[i] = static_cast<uint8_t>(i * 37 + 11);
  for (size_t i = 0; i < 200; ++i) codes[i] = static_cast<uint8_t>(i * 29);
  for (const Kernels* k : kernel_sets())
    for (int64_t n = 0; n <= 200; ++n) {
      const std::string name = k->name;
      CAPTURE(name);
      CAPTURE(n);
      for (const int some : {1, 4, 15, 16, 255}) {
        std::fill(got.begin(), got.end(), 99);
        k->count_edges(x.data, n, 0.17f, edges.data(), some, got.data() + 1);
        bool same = got[0] == 99 && got[static_cast<size_t>(n) + 1] == 99;
        for (int64_t i = 0; i < n; ++i) {
          const float moved = x[i] + 0.17f;
          int32_t bits;
          std::memcpy(&bits, &moved, sizeof bits);
          const auto want = std::count_if(edges.begin(), edges.begin() + some, [&](int32_t e) { return bits < e; });
          same = same && got[static_cast<size_t>(i) + 1] == want;
        }
        REQUIRE(same);
      }
      for (const int size : {16, 32, 48, 256}) {
        std::copy(codes.begin(), codes.end(), got.begin() + 1);
        got[static_cast<size_t>(n) + 1] = 99;
        k->look_up(table.data(), size, got.data() + 1, got.data() + 1, n);
        bool same = got[static_cast<size_t>(n) + 1] == 99;
        for (int64_t i = 0; i < n; ++i) {
          const uint8_t code = codes[static_cast<size_t>(i)];
          same = same && got[static_cast<size_t>(i) + 1] == (code < size ? table[code] : 0);
        }
        REQUIRE(same);
      }
    }
}

TEST_CASE("the tests of activation grids on every kernel set") {
  int count = 0;
  const Kernels* const* sets = all_kernels(&count);
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  for (int i = 0; i < count; ++i) {
    const std::string name = sets[i]->name;
    CAPTURE(name);
    const std::string line = format("BCQ_ISA=%s '%s' -tc='activation grid:*' >/dev/null 2>&1", name, self);
    const int status = std::system(line.c_str());
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
}
