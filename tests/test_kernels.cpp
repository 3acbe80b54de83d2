// Kernels of float rows: every instruction set against plain, bit for bit, over odd sizes and
// misaligned rows; plain against the double-precision definitions. Tolerances are a
// few times what kernels_impl.h states to have been measured.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"
#include "tests/kernels/kernel_sets.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// Inputs of one call, at addresses that are 4 bytes apart from any alignment.
struct Inputs {
  const float *a, *b, *w, *probabilities;
  const uint16_t* halves;
};

struct Call {
  const char* name;
  std::function<void(const Kernels&, const Inputs&, int64_t n, float* y)> run;  // y: n values, then two for a result
};

void put(double value, float* y) { std::memcpy(y, &value, sizeof value); }

const std::vector<Call>& calls() {
  static const std::vector<Call> all = {
      {"layer_norm",
       [](auto& k, auto& in, int64_t n, float* y) {
         if (n) k.layer_norm(in.a, in.w, in.b, 1e-5f, n, y);
       }},
      {"rms_norm",
       [](auto& k, auto& in, int64_t n, float* y) {
         if (n) k.rms_norm(in.a, in.w, in.b, 1e-5f, n, y);
       }},
      {"softmax",
       [](auto& k, auto& in, int64_t n, float* y) {
         std::copy(in.a, in.a + n, y);
         k.softmax(y, n);
       }},
      {"gelu_erf", [](auto& k, auto& in, int64_t n, float* y) { k.gelu_erf(in.a, y, n); }},
      {"gelu_erf in place",
       [](auto& k, auto& in, int64_t n, float* y) {
         std::copy(in.a, in.a + n, y);
         k.gelu_erf(y, y, n);
         Row apart(static_cast<size_t>(n));
         k.gelu_erf(in.a, apart.data(), n);
         CHECK((n == 0 || std::memcmp(apart.data(), y, static_cast<size_t>(4 * n)) == 0));
       }},
      {"gelu_tanh", [](auto& k, auto& in, int64_t n, float* y) { k.gelu_tanh(in.a, y, n); }},
      {"gelu_quick", [](auto& k, auto& in, int64_t n, float* y) { k.gelu_quick(in.a, y, n); }},
      {"relu", [](auto& k, auto& in, int64_t n, float* y) { k.relu(in.a, y, n); }},
      {"swiglu", [](auto& k, auto& in, int64_t n, float* y) { k.swiglu(in.a, in.b, y, n); }},
      {"add", [](auto& k, auto& in, int64_t n, float* y) { k.add(in.a, in.b, y, n); }},
      {"add in place",
       [](auto& k, auto& in, int64_t n, float* y) {
         std::copy(in.a, in.a + n, y);
         k.add(y, in.b, y, n);
         k.add(in.b, y, y, n);
       }},
      {"scale", [](auto& k, auto& in, int64_t n, float* y) { k.scale(in.a, 0.3f, y, n); }},
      {"sum_exp", [](auto& k, auto& in, int64_t n, float* y) { put(k.sum_exp(in.a, 8.f, n), y + n); }},
      {"fake_uniform", [](auto& k, auto& in, int64_t n, float* y) { k.fake_uniform(in.a, y, n, 0.07f, -31, 32); }},
      {"fake_uniform in place",
       [](auto& k, auto& in, int64_t n, float* y) {
         std::copy(in.a, in.a + n, y);
         k.fake_uniform(y, y, n, 0.3f, 0, 15);
       }},
      {"fake_twin_gelu",
       [](auto& k, auto& in, int64_t n, float* y) { k.fake_twin_gelu(in.a, y, n, 0.07f, 0.003f, 32); }},
      {"fake_twin_softmax, official",
       [](auto& k, auto& in, int64_t n, float* y) { k.fake_twin_softmax(in.probabilities, y, n, 0.125f, 31, true); }},
      {"fake_twin_softmax, clean",
       [](auto& k, auto& in, int64_t n, float* y) { k.fake_twin_softmax(in.probabilities, y, n, 0.125f, 31, false); }},
      {"weighted_squared_error",
       [](auto& k, auto& in, int64_t n, float* y) { put(k.weighted_squared_error(in.a, in.b, in.w, n), y + n); }},
      {"squared error",
       [](auto& k, auto& in, int64_t n, float* y) { put(k.weighted_squared_error(in.a, in.b, nullptr, n), y + n); }},
      {"dot", [](auto& k, auto& in, int64_t n, float* y) { put(k.dot(in.a, in.b, n), y + n); }},
      {"dot_float", [](auto& k, auto& in, int64_t n, float* y) { y[n] = k.dot_float(in.a, in.b, n); }},
      {"weighted_rows", [](auto& k, auto& in, int64_t n,
                           float* y) { k.weighted_rows(in.b, in.a, n / 3, std::min<int64_t>(n, 3), n / 3, y); }},
      {"to_limbs",
       [](auto& k, auto& in, int64_t n, float* y) {
         y[n] = k.to_limbs(in.a, n, 3, 0, reinterpret_cast<uint8_t*>(y), n);
         y[n + 1] = static_cast<float>(k.sum_limbs(reinterpret_cast<const uint8_t*>(y), n, 0));
       }},
      {"to_limbs + 128",
       [](auto& k, auto& in, int64_t n, float* y) {
         y[n] = k.to_limbs(in.a, n, 2, 128, reinterpret_cast<uint8_t*>(y), n);
         y[n + 1] = static_cast<float>(k.sum_limbs(reinterpret_cast<const uint8_t*>(y), n, 128));
       }},
      {"max_abs", [](auto& k, auto& in, int64_t n, float* y) { y[n] = k.max_abs(in.a, n); }},
      {"all_finite", [](auto& k, auto& in, int64_t n, float* y) { y[n] = k.all_finite(in.a, n); }},
      {"from_f16", [](auto& k, auto& in, int64_t n, float* y) { k.from_f16(in.halves, y, n); }},
      {"from_bf16", [](auto& k, auto& in, int64_t n, float* y) { k.from_bf16(in.halves, y, n); }},
  };
  return all;
}

// The largest |got - want(x)| / max(|want(x)|, floor) of a kernel over x.
double worst(void (*kernel)(const float*, float*, int64_t), const Row& x, double (*want)(double), double floor) {
  Row y(x.size());
  kernel(x.data(), y.data(), static_cast<int64_t>(x.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double w = want(x[i]);
    const double error = std::abs(y[i] - w) / std::max(std::abs(w), floor);
    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
  }
  return worst;
}

Row range(double lo, double hi, int n) {
  Row x;
  for (int i = 0; i <= n; ++i) x.push_back(static_cast<float>(lo + (hi - lo) * i / n));
  return x;
}

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double gelu_quick(double x) { return x / (1 + std::exp(-1.702 * x)); }
double gelu_by_tanh(double x) { return x / (1 + std::exp(-2 * 0.79788456080286536 * x * (1 + 0.044715 * x * x))); }

float one_uniform(float x, float delta, float lo, float hi) {
  float y = 0;
  plain().fake_uniform(&x, &y, 1, delta, lo, hi);
  return y;
}

}  // namespace

TEST_CASE("kernels: every instruction set gives the bits of plain") {
  const std::vector<const Kernels*> sets = kernel_sets();
  CHECK(std::string(sets[0]->name) == "plain");
  constexpr int64_t kMost = 1100;
  const Row a = random_row(kMost + 16, 1, 6), b = random_row(kMost + 16, 2, 6);
  Row w = random_row(kMost + 16, 3, 1), p(kMost + 16);
  for (size_t i = 0; i < p.size(); ++i) p[i] = w[i] * w[i] * w[i] * w[i];
  std::vector<uint16_t> halves(kMost + 16);
  std::mt19937 bits(4);
  for (uint16_t& h : halves) h = static_cast<uint16_t>(bits() & 0xbbff);  // finite in both formats
  std::vector<int64_t> sizes = {127, 128, 129, 768, 1001, kMost};
  for (int64_t n = 0; n <= 67; ++n) sizes.push_back(n);

  for (size_t s = 1; s < sets.size(); ++s) {
    for (const Call& call : calls()) {
      for (const int64_t n : sizes) {
        for (const int64_t shift : {0, 1, 3, 7, 15}) {
          const Inputs in = {a.data() + shift, b.data() + shift / 2, w.data() + shift, p.data() + shift,
                             halves.data() + shift};
          // What lies around y must stay as it is.
          const size_t size = static_cast<size_t>(n + shift + 2 + 8);
          Row want(size, -7.f), got(size, -7.f);
          call.run(plain(), in, n, want.data() + shift);
          call.run(*sets[s], in, n, got.data() + shift);
          const bool same = std::memcmp(want.data(), got.data(), size * sizeof(float)) == 0;
          if (!same)
            FAIL_CHECK(sets[s]->name << " " << call.name << " differs from plain at n = " << n << ", shift " << shift);
          const bool untouched = std::all_of(want.end() - 8, want.end(), [](float v) { return v == -7.f; });
          if (!untouched) FAIL_CHECK(call.name << " writes behind its row at n = " << n);
        }
      }
    }
  }
}

TEST_CASE("kernels: gelu against double precision") {
  CHECK(worst(plain().gelu_erf, range(-1, 40, 200000), gelu, 1e-30) < 5e-7);
  CHECK(worst(plain().gelu_erf, range(-12.9, -1, 200000), gelu, 1e-37) < 1e-6);
  CHECK(worst(plain().gelu_erf, range(-1e-3, 1e-3, 20001), gelu, 1e-30) < 4e-7);
  CHECK(worst(plain().gelu_erf, range(-1e4, -12.9, 1000), gelu, 1.0) < 1e-35);
  CHECK(worst(plain().gelu_quick, range(-1, 40, 200000), gelu_quick, 1e-30) < 5e-7);
  CHECK(worst(plain().gelu_quick, range(-20, -1, 200000), gelu_quick, 1e-30) < 6e-6);
  CHECK(worst(plain().gelu_tanh, range(-1, 40, 200000), gelu_by_tanh, 1e-30) < 5e-7);
  CHECK(worst(plain().gelu_tanh, range(-5, -1, 200000), gelu_by_tanh, 1e-30) < 6e-6);
  CHECK(worst(plain().gelu_tanh, range(-1e4, -5, 10000), gelu_by_tanh, 1e-2) < 1e-9);
  const float odd[] = {0.f, -0.f, std::numeric_limits<float>::min(), 1e30f, -1e30f};
  float y[5];
  plain().gelu_erf(odd, y, 5);
  CHECK((y[0] == 0.f && y[1] == 0.f && y[2] == odd[2] / 2 && y[3] == 1e30f && y[4] == 0.f));
  plain().gelu_tanh(odd, y, 5);
  CHECK((y[0] == 0.f && y[1] == 0.f && y[2] == odd[2] / 2 && y[3] == 1e30f && y[4] == 0.f));
}

TEST_CASE("kernels: exp, through sum_exp, against double precision") {
  double most = 0;
  for (const float x : range(-86.9, 88.7, 300000)) {
    const double want = std::exp(static_cast<double>(x));
    most = std::max(most, std::abs(plain().sum_exp(&x, 0.f, 1) - want) / want);
  }
  CHECK(most < 1.2e-7);  // two ulp
  for (const float x : {-87.1f, -88.f, -104.f, -1000.f, -std::numeric_limits<float>::max(), -INFINITY})
    CHECK(plain().sum_exp(&x, 0.f, 1) == 0.0);
  for (const float x : {88.8f, 1000.f, INFINITY}) CHECK(std::isinf(plain().sum_exp(&x, 0.f, 1)));
  const float nan = NAN;
  CHECK(std::isnan(plain().sum_exp(&nan, 0.f, 1)));
}

TEST_CASE("kernels: softmax against double precision") {
  for (const int64_t n : {1, 2, 17, 197, 5000}) {
    const Row x = random_row(n, static_cast<uint32_t>(n), 20);
    Row y = x;
    plain().softmax(y.data(), n);
    const double max = *std::max_element(x.begin(), x.end());
    double total = 0, error = 0;
    for (const float v : x) total += std::exp(v - max);
    for (int64_t i = 0; i < n; ++i) {
      const double want = std::exp(x[static_cast<size_t>(i)] - max) / total;
      error = std::max(error, std::abs(y[static_cast<size_t>(i)] - want) / want);
    }
    CHECK(error < 5e-6);  // x - max is rounded to half an ulp of 40
  }
  for (size_t i = 0; i < 48; ++i) {  // wherever the largest is
    Row one(48, 0.f), want = one;
    one[i] = 1e4f, want[i] = 1.f;
    plain().softmax(one.data(), 48);
    CHECK(one == want);
  }
  Row masked = {1.f, -INFINITY, 1.f, std::numeric_limits<float>::lowest()};
  plain().softmax(masked.data(), 4);
  CHECK(masked == Row{0.5f, 0.f, 0.5f, 0.f});
  Row broken = {1.f, NAN, 2.f};
  plain().softmax(broken.data(), 3);
  CHECK((std::isnan(broken[0]) && std::isnan(broken[1]) && std::isnan(broken[2])));
}

TEST_CASE("kernels: layer_norm against double precision") {
  for (const double offset : {0.0, 30.0}) {
    constexpr int64_t n = 771;
    Row x = random_row(n, 5, 2), y(n);
    for (float& v : x) v += static_cast<float>(offset);
    const Row gamma = random_row(n, 6, 1), beta = random_row(n, 7, 1);
    plain().layer_norm(x.data(), gamma.data(), beta.data(), 1e-6f, n, y.data());
    double mean = 0, variance = 0, error = 0;
    for (const float v : x) mean += v / static_cast<double>(n);
    for (const float v : x) variance += (v - mean) * (v - mean) / static_cast<double>(n);
    for (size_t i = 0; i < n; ++i)
      error = std::max(error, std::abs(y[i] - ((x[i] - mean) / std::sqrt(variance + 1e-6) * gamma[i] + beta[i])));
    CHECK(error < 5e-7 * (1 + offset));  // half an ulp of the mean, over a deviation of about 1
  }
  const Row same(40, 3.f), ones(40, 1.f), zeros(40, 0.f);
  Row y(40);
  plain().layer_norm(same.data(), ones.data(), zeros.data(), 1e-5f, 40, y.data());
  CHECK(y == zeros);
}

TEST_CASE("kernels: rms_norm and swiglu against double precision") {
  constexpr int64_t n = 771;
  const Row x = random_row(n, 5, 20), gamma = random_row(n, 6, 1), beta = random_row(n, 7, 1);
  Row y(n);
  double square = 0, error = 0;
  for (const float v : x) square += static_cast<double>(v) * v / static_cast<double>(n);
  plain().rms_norm(x.data(), gamma.data(), beta.data(), 0.25f, n, y.data());
  for (size_t i = 0; i < n; ++i)
    error = std::max(error, std::abs(y[i] - (x[i] / std::sqrt(square + 0.25) * gamma[i] + beta[i])));
  CHECK(error < 5e-7);
  plain().swiglu(x.data(), gamma.data(), y.data(), n);
  for (size_t i = 0; i < n; ++i) {
    const double want = x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * gamma[i];
    CHECK(std::abs(y[i] - want) <= 1e-6 * std::abs(want) + 1e-30);
  }
}

TEST_CASE("kernels: rounding is half to even, by division, then clamped") {
  for (int k = -300; k <= 300; ++k) {
    const float half = static_cast<float>(k) + 0.5f;
    CHECK(one_uniform(half, 1.f, -1000, 1000) == std::nearbyint(half));
    CHECK(one_uniform(half * 0.25f, 0.25f, -1000, 1000) == 0.25 * std::nearbyint(half));
    CHECK(one_uniform(half, 1.f, -8, 7) == std::min(7.0, std::max(-8.0, std::nearbyint(static_cast<double>(half)))));
  }
  CHECK(one_uniform(std::nextafter(0.5f, 1.f), 1.f, -8, 7) == 1.f);
  CHECK(one_uniform(std::nextafter(0.5f, 0.f), 1.f, -8, 7) == 0.f);
  CHECK(one_uniform(1e30f, 1e-5f, -8, 7) == 7 * 1e-5f);  // x / delta overflows
  CHECK(one_uniform(-INFINITY, 1.f, -8, 7) == -8.f);
  CHECK(std::signbit(one_uniform(-0.3f, 1.f, -8, 7)));
  CHECK(std::isnan(one_uniform(NAN, 1.f, -8, 7)));
  // Half way between two steps, x / delta and x * (1 / delta) often round differently: the definition divides.
  for (const float delta : {0.0173f, 0.1f, 0.3f, 0.031f}) {
    for (int k = -120; k < 120; ++k) {
      const float x = (static_cast<float>(k) + 0.5f) * delta;
      CHECK(one_uniform(x, delta, -128, 127) == std::nearbyint(x / delta) * delta);
    }
  }
}

TEST_CASE("kernels: twin quantizers against their definitions") {
  const auto clamp = [](float v, float lo, float hi) { return std::min(hi, std::max(lo, v)); };
  Row x = random_row(3000, 9, 2), y(x.size());
  const auto n = static_cast<int64_t>(x.size());
  plain().fake_twin_gelu(x.data(), y.data(), n, 0.05f, 0.004f, 32);
  for (size_t i = 0; i < x.size(); ++i)
    CHECK(y[i] ==
          clamp(std::nearbyint(x[i] / 0.05f), 0, 31) * 0.05f + clamp(std::nearbyint(x[i] / 0.004f), -32, 0) * 0.004f);
  for (float& v : x) v = std::min(1.f, v * v * v * v);
  const float t = 0.0625f, m = 127, step = t / m;
  plain().fake_twin_softmax(x.data(), y.data(), n, t, m, true);
  for (size_t i = 0; i < x.size(); ++i)
    CHECK(y[i] == std::nearbyint(clamp(x[i], t, 1) * m) / m + std::nearbyint(clamp(x[i], 0, t) / step) * step);
  plain().fake_twin_softmax(x.data(), y.data(), n, t, m, false);
  for (size_t i = 0; i < x.size(); ++i)
    CHECK(y[i] == (x[i] < t ? clamp(std::nearbyint(x[i] / step), 0, m) * step : std::nearbyint(x[i] * m) / m));
}

TEST_CASE("kernels: sums in double, with and without weights") {
  constexpr int64_t n = 1003;
  const Row a = random_row(n, 10, 3), b = random_row(n, 11, 3), w = random_row(n, 12, 1);
  double dot = 0, square = 0, weighted = 0;
  for (size_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    dot += static_cast<double>(a[i]) * b[i];
    square += d * d;
    weighted += w[i] * d * d;
  }
  CHECK(std::abs(plain().dot(a.data(), b.data(), n) - dot) < 1e-11);
  CHECK(std::abs(plain().weighted_squared_error(a.data(), b.data(), nullptr, n) - square) < 1e-11);
  CHECK(std::abs(plain().weighted_squared_error(a.data(), b.data(), w.data(), n) - weighted) < 1e-11);
  CHECK(plain().dot(a.data(), b.data(), 0) == 0.0);
}

TEST_CASE("kernels: rows are added to doubles, and less other rows, on every instruction set") {
  const Row a = random_row(90, 13, 3), b = random_row(90, 14, 3);
  for (const Kernels* k : kernel_sets())
    for (size_t n = 0; n < 80; ++n)
      for (const bool less : {false, true}) {
        std::vector<double> sum(n + 1, 0.1), want = sum;
        for (size_t i = 0; i < n; ++i)
          want[i] += less ? static_cast<double>(a[i + 3]) - static_cast<double>(b[i]) : static_cast<double>(a[i + 3]);
        k->accumulate(a.data() + 3, less ? b.data() : nullptr, sum.data(), static_cast<int64_t>(n));
        CHECK(sum == want);
      }
}

TEST_CASE("kernels: max_abs and all_finite see every position") {
  for (const float special : {INFINITY, -INFINITY, NAN}) {
    for (size_t at = 0; at < 50; ++at) {
      Row x(50, -2.f);
      x[at] = -3.f;
      CHECK(plain().max_abs(x.data(), 50) == 3.f);
      CHECK(plain().all_finite(x.data(), 50));
      x[at] = special;
      CHECK(!plain().all_finite(x.data(), 50));
      CHECK(!std::isfinite(plain().max_abs(x.data(), 50)));
    }
  }
  CHECK(plain().all_finite(nullptr, 0));
  CHECK(plain().max_abs(nullptr, 0) == 0.f);
}

TEST_CASE("kernels: all 65536 halves and bfloats") {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  int wrong = 0;
  for (const Kernels* k : kernel_sets()) {
    Row half(65536), brain(65536);
    k->from_f16(bits.data(), half.data(), 65536);
    k->from_bf16(bits.data(), brain.data(), 65536);
    for (uint32_t i = 0; i < 65536; ++i) {
      const int exponent = (i >> 10) & 31, mantissa = i & 1023;
      double want = exponent == 0    ? std::ldexp(mantissa, -24)
                    : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                     : std::ldexp(1024 + mantissa, exponent - 25);
      if (i & 0x8000) want = -want;
      const bool same =
          std::isnan(want) ? std::isnan(half[i]) : half[i] == want && std::signbit(half[i]) == std::signbit(want);
      const uint32_t widened = i << 16;
      wrong += !same + (std::memcmp(&widened, &brain[i], 4) != 0);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("kernels: the chosen set runs here") {
  int count = 0;
  const Kernels* const* sets = all_kernels(&count);
  const char* wanted = std::getenv("BCQ_ISA");
  const std::string name = kernels().name;
  CHECK(name == (wanted && *wanted ? wanted : sets[count - 1]->name));
}

TEST_CASE("kernels: BCQ_ISA is obeyed or refused") {
  char self[4096];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  REQUIRE(n > 0);
  self[n] = '\0';
  // kernels() chooses once per process, so each choice needs its own.
  const auto run = [&](const std::string& isa) {
    const std::string command = "BCQ_ISA=" + isa + " '" + self + "' -tc='kernels: the chosen set runs here' 2>&1";
    std::string output;
    char buffer[4096];
    FILE* pipe = ::popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    while (const size_t got = std::fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, got);
    const int status = ::pclose(pipe);
    return std::pair(status, output);
  };
  int count = 0;
  const Kernels* const* sets = all_kernels(&count);
  for (int s = 0; s < count; ++s) CHECK(run(sets[s]->name).first == 0);
  for (const std::string isa : {"avx2", "avx-vnni", "avx512", "amx", "sse9"}) {
    if (std::any_of(sets, sets + count, [&](const Kernels* k) { return isa == k->name; })) continue;
    const auto [status, output] = run(isa);
    CHECK(status != 0);
    CHECK(contains(output, "BCQ_ISA=" + isa + " cannot run here: this machine runs plain"));
  }
}
