// The definition of every kernel, as plain loops. Included once by each of
// kernels_plain.cpp, kernels_avx2.cpp, kernels_avxvnni.cpp and kernels_avx512.cpp, which
// name the table (BCQ_TABLE, BCQ_ISA_NAME) and differ only in compiler flags.
//
// The bits must not depend on which of the four runs, so: sums go into a fixed number
// of lanes that are added up in a fixed order; nothing calls libm; a product is rounded
// before it is added (-ffp-contract=off). For the same reason nothing here may have
// external linkage: the linker could pick the AVX-512 copy for the whole program.
// NaN inputs give NaN outputs, of no particular sign; to find them is the caller's (all_finite).
#include "engine/kernels/float_tile.h"
#include "engine/kernels/int8_tile.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/level_kernels.h"
#include "engine/kernels/packed_kernels.h"
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

// ---- Scalars the loops below are made of; every one is free of branches -----------------------

// For |x| < 2^22: adding 1.5 * 2^23 leaves no bits behind the point, so the addition
// rounds to an integer, half to even, and the subtraction is exact.
constexpr float kRound = 12582912.f;

// round(clamp(x, lo, hi)), which for integers lo and hi equals clamp(round(x), lo, hi) but
// keeps x in the range above. The sign of x survives on zero, as in torch: -0.3 gives -0.
float round_clamp(float x, float lo, float hi) {
  x = at_most(at_least(x, lo), hi);
  return as_float(as_bits((x + kRound) - kRound) | (as_bits(x) & 0x80000000u));
}

// In three functions: exp(x + dx) for x >= kExpLow and |dx| < 0.06. x = n ln 2 + r with ln 2 in two parts, the first
// short enough for n * kLn2High to be exact; exp(r) = 1 + r + r^2 P(r). P is minimax for the
// relative error of exp on |r| <= 0.402 (Lawson's iteration, 40-digit references): 1.1e-8 with
// these rounded coefficients. Measured for dx = 0: 1.01 ulp at most.
// From -86.99 down, where 2^(n-1) would be denormal, the result is 0; above 88.72 it is infinite.
constexpr float kExpLow = -87.5f;
constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr int32_t kRoundBits = 0x4b400000;  // those of kRound

struct Reduced {
  float r;
  int32_t shifted;  // its lowest bits are n
};
Reduced reduced(float x, float dx) {
  // n <= 128 is enforced here, on integers: a second clamp of
  // floats in a row makes g++ split the loop into paths that it then fails to vectorise.
  const int32_t bits = static_cast<int32_t>(as_bits(x * kLog2E + kRound));
  const int32_t shifted = bits < kRoundBits + 128 ? bits : kRoundBits + 128;
  const float n = as_float(static_cast<uint32_t>(shifted)) - kRound;
  return {((x - n * kLn2High) - n * kLn2Low) + dx, shifted};
}
float exp_polynomial(float r) {
  return 0.49999985f + r * (0.16666403f + r * (0.041669767f + r * (0.008380883f + r * 0.0013789505f)));
}
float scaled_exp(float r, float p, int32_t shifted) {
  const float e = 1.f + (r + (r * r) * p);
  // 2^(n-1), and 0 for n = -126; 2^n itself would overflow for n = 128.
  const float half_scale = as_float((static_cast<uint32_t>(shifted) << 23) + (126u << 23));
  return (e + e) * half_scale;
}
float exp_of(float x) {
  const Reduced e = reduced(at_least(x, kExpLow), 0.f);
  return scaled_exp(e.r, exp_polynomial(e.r), e.shifted);
}

// x Phi(x), Phi the normal distribution function. With t = |x| and the tail q = Phi(-t),
// that is max(x, 0) - t q for either sign, which cancels nothing near 0 and keeps the
// relative accuracy of q in the negative tail.
//   q = exp(-t^2 / 2) (1 - v) P(v),  v = t / (t + 2.5)
// P is minimax for the relative error over 0 <= t <= 13.25 with P(0) = 1/2 (Lawson's iteration in
// a Chebyshev basis, references by 40-digit erfc): 2.1e-8 with these rounded coefficients. t^2 is
// taken apart into hi^2, exact, and the rest, or exp would amplify its rounding error by t^2 / 2.
// Measured against double: relative error at most 2.0e-7 for x > 0, 2.7e-7 on [-1, 0], 5.5e-7 on
// [-13, 0]; absolute 7.5e-8 for |x| <= 1. Below -13.2 the result is 0.
//
// Four loops, not one: the operations of one element wait for each other, and one loop is too long for the processor to
// overlap several elements. (Zen 3: 0.76 of the time of one loop.)
constexpr int64_t kGeluBlock = 128;
void gelu_erf_block(const float* x, float* y, int64_t n) {
  float squares[kGeluBlock], rests[kGeluBlock], vs[kGeluBlock], ps[kGeluBlock];
  int32_t exponents[kGeluBlock];
  float *const square = squares, *const r = rests, *const v = vs, *const p = ps;  // [=] would copy the arrays
  int32_t* const shifted = exponents;
  const auto t_of = [=](int64_t i) {
    return at_most(as_float(as_bits(x[i]) & 0x7fffffffu), 13.2f);
  };  // q is 0 from there on
  each(n, [=](int64_t i) {
    const float t = t_of(i), hi = as_float(as_bits(t) & 0xfffff000u);
    square[i] = -0.5f * (hi * hi);
    r[i] = -0.5f * ((t + hi) * (t - hi));
    v[i] = t / (t + 2.5f);
  });
  each(n, [=](int64_t i) {
    const Reduced e = reduced(square[i], r[i]);
    r[i] = e.r;
    shifted[i] = e.shifted;
    const float a = 0.11035637f + v[i] * -0.031495966f;
    p[i] = -0.05904662f + v[i] * (0.053354226f + v[i] * (-0.12304139f + v[i] * a));
  });
  float* const exp_p = square;  // not needed any more
  each(n, [=](int64_t i) {
    exp_p[i] = exp_polynomial(r[i]);
    const float a = 0.11678014f + v[i] * (0.022186793f + v[i] * p[i]);
    p[i] = 0.5f + v[i] * (-0.49735683f + v[i] * (0.06784053f + v[i] * a));
  });
  each(n, [=](int64_t i) {
    const float q = scaled_exp(r[i], exp_p[i], shifted[i]) * ((1.f - v[i]) * p[i]);
    y[i] = at_least(x[i], 0.f) - t_of(i) * q;
  });
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)): the same function without the cancellation.
// Measured against double: relative error at most 1.5e-7 for x > 0, 2.8e-7 on [-1, 0], 3.3e-6 on
// [-5, 0] (the rounding error of 2 u, amplified); absolute 1.1e-7 for |x| <= 1.
float gelu_tanh_of(float x) {
  const float u2 = 1.59576912f * (x * (1.f + 0.044715f * (x * x)));
  return x / (1.f + exp_of(-u2));
}

// ---- The table's functions --------------------------------------------------------------------

// Mean and variance in double, two passes; biased variance, as in every LayerNorm.
void layer_norm(const float* x, const float* gamma, const float* beta, float eps, int64_t n, float* y) {
  const double mean = sum(n, [=](int64_t i) { return static_cast<double>(x[i]); }) / static_cast<double>(n);
  const double square = sum(n, [=](int64_t i) {
    const double d = static_cast<double>(x[i]) - mean;
    return d * d;
  });
  const double variance = square / static_cast<double>(n);
  const float shift = static_cast<float>(mean);
  const float scale = static_cast<float>(1.0 / __builtin_sqrt(variance + static_cast<double>(eps)));
  each(n, [=](int64_t i) { y[i] = ((x[i] - shift) * scale) * gamma[i] + beta[i]; });
}

// The mean of squares in double.
void rms_norm(const float* x, const float* gamma, const float* beta, float eps, int64_t n, float* y) {
  const double square = sum(n, [=](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
  const float scale =
      static_cast<float>(1.0 / __builtin_sqrt(square / static_cast<double>(n) + static_cast<double>(eps)));
  each(n, [=](int64_t i) { y[i] = (x[i] * scale) * gamma[i] + beta[i]; });
}

// fold() would do, but g++ 12 compiles it to scalar code here.
float max_of(const float* x, int64_t n) {
  const auto larger = [](auto a, auto b) { return b > a ? b : a; };
  float lane[kLanes];
  Floats most[kLanes / kWide];
  for (Floats& m : most) m = -__builtin_inff() - Floats{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int p = 0; p < kLanes / kWide; ++p) most[p] = larger(most[p], load<Floats>(x + i + p * kWide));
  store(most, lane);
  for (int l = 0; i + l < n; ++l) lane[l] = larger(lane[l], x[i + l]);
  return fold_halves<kLanes / 2>(lane, larger);
}

void softmax(float* x, int64_t n) {
  const float max = max_of(x, n);
  each(n, [=](int64_t i) { x[i] = exp_of(x[i] - max); });
  const float total = static_cast<float>(sum(n, [=](int64_t i) { return static_cast<double>(x[i]); }));
  each(n, [=](int64_t i) { x[i] = x[i] / total; });
}

double sum_exp(const float* x, float max, int64_t n) {
  return sum(n, [=](int64_t i) { return static_cast<double>(exp_of(x[i] - max)); });
}

void gelu_erf(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kGeluBlock) gelu_erf_block(x + i, y + i, n - i < kGeluBlock ? n - i : kGeluBlock);
}

void gelu_tanh(const float* x, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = gelu_tanh_of(x[i]); });
}

void gelu_quick(const float* x, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = x[i] / (1.f + exp_of(-1.702f * x[i])); });
}

void relu(const float* x, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = at_least(x[i], 0.f); });
}

void swiglu(const float* gate, const float* up, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = (gate[i] / (1.f + exp_of(-gate[i]))) * up[i]; });
}

void add(const float* a, const float* b, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = a[i] + b[i]; });
}

void scale(const float* x, float s, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = x[i] * s; });
}

// Division, not multiplication by 1 / delta: the reference implementations divide, and a
// value near a rounding boundary would land on the other side.
void fake_uniform(const float* x, float* y, int64_t n, float delta, float lo, float hi) {
  each(n, [=](int64_t i) { y[i] = round_clamp(x[i] / delta, lo, hi) * delta; });
}

void fake_twin_gelu(const float* x, float* y, int64_t n, float pos, float neg, float m) {
  each(n,
       [=](int64_t i) { y[i] = round_clamp(x[i] / pos, 0.f, m - 1.f) * pos + round_clamp(x[i] / neg, -m, 0.f) * neg; });
}

void fake_twin_softmax(const float* x, float* y, int64_t n, float split, float m, bool official) {
  const float step = split / m;
  if (official) {
    each(n, [=](int64_t i) {
      const float low = at_most(at_least(x[i], 0.f), split);
      const float high = at_most(at_least(x[i], split), 1.f);
      y[i] = round_clamp(high * m, 0.f, m) / m + round_clamp(low / step, 0.f, m) * step;
    });
  } else {
    each(n, [=](int64_t i) {
      const float low = round_clamp(x[i] / step, 0.f, m) * step;
      const float high = round_clamp(x[i] * m, 0.f, m) / m;
      y[i] = x[i] < split ? low : high;
    });
  }
}

// round_clamp(x, lo, hi) as an integer: the lowest bits of x + kRound. NaN is lo.
int32_t code_of(float x, float lo, float hi) {
  return static_cast<int32_t>(as_bits(at_most(x > lo ? x : lo, hi) + kRound)) - kRoundBits;
}

// Codes of x / delta.
struct Step {
  float delta, lo, hi;
  float least = lo * delta, most = hi * delta, inverse = 1.f / delta;

  // Whether nothing below underflows for quotients of at least 1 / 4; smaller ones need not be exact.
  bool is_ordinary() const { return delta > 0x1p-60f && delta < 0x1p60f; }
  int32_t divided(float x) const { return code_of(x / delta, lo, hi); }
  // The same without the division, which takes longer than all else: the remainder of a product with the inverse is
  // exact, and corrects it (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor").
  // The code is that of the rounded quotient: tried for every mantissa of delta and all floats within 3 units in the
  // last place of where one of 256 codes changes. To clamp x itself gives the same codes and leaves no infinities.
  int32_t code(float x) const {
    const float a = at_most(x > least ? x : least, most);
#if defined(__FMA__)
    const float near = a * inverse;
    const float q = __builtin_fmaf(__builtin_fmaf(-near, delta, a), inverse, near);
#else
    const float q = a / delta;
#endif
    return static_cast<int32_t>(as_bits(q + kRound)) - kRoundBits;
  }
};

// As each(), for bytes: 64 or 32 at a time, which compilers do, and then 16, of which they would make single ones.
template <class Body>
inline void each_byte(int64_t n, const Body& body) {
  int64_t i = n / 32 * 32;
  each(i, body);
  for (; i + kLanes <= n; i += kLanes) {
    BCQ_INDEPENDENT
    for (int l = 0; l < kLanes; ++l) body(i + l);
  }
  for (; i < n; ++i) body(i);
}

// body(i, code) for i in [0, n), where code(step, x) is a code.
template <class Body>
inline void each_code(int64_t n, bool ordinary, const Body& body) {
  const auto code = [](const Step& step, float x) { return step.code(x); };
  const auto divided = [](const Step& step, float x) { return step.divided(x); };
  if (ordinary && n >= 64)  // or the inverse does not pay
    each_byte(n, [=](int64_t i) { body(i, code); });
  else
    each_byte(n, [=](int64_t i) { body(i, divided); });
}

void code_uniform(const float* x, uint8_t* y, int64_t n, float delta, float lo, float hi, int offset) {
  const Step step{delta, lo, hi};
  each_code(n, step.is_ordinary(),
            [=](int64_t i, const auto& code) { y[i] = static_cast<uint8_t>(code(step, x[i]) + offset); });
}

void code_twin_gelu(const float* x, uint8_t* positive, uint8_t* negative, int64_t n, float pos, float neg, float m) {
  const Step above{pos, 0.f, m - 1.f}, below{neg, -m, 0.f};
  each_code(n, above.is_ordinary() && below.is_ordinary(), [=](int64_t i, const auto& code) {
    positive[i] = static_cast<uint8_t>(code(above, x[i]));
    negative[i] = static_cast<uint8_t>(-code(below, x[i]));
  });
}

void code_twin_softmax(const float* x, uint8_t* low, uint8_t* high, int64_t n, float split, float m, bool official) {
  const Step fine{split / m, 0.f, m};  // divided: all else there is to do hides it
  if (official) {
    each_byte(n, [=](int64_t i) {
      low[i] = static_cast<uint8_t>(fine.divided(at_most(at_least(x[i], 0.f), split)));
      high[i] = static_cast<uint8_t>(code_of(at_most(at_least(x[i], split), 1.f) * m, 0.f, m));
    });
  } else {
    each_byte(n, [=](int64_t i) {
      const int32_t steps = fine.divided(x[i]), coarse = code_of(x[i] * m, 0.f, m);
      low[i] = static_cast<uint8_t>(x[i] < split ? steps : 0);
      high[i] = static_cast<uint8_t>(x[i] < split ? 0 : coarse);
    });
  }
}

void from_sums(const int32_t* sum1, const int32_t* sum2, const float* scale1, const float* scale2, const float* bias,
               float* y, int64_t n) {
  const auto first = [=](int64_t i) { return static_cast<float>(sum1[i]) * scale1[i]; };
  if (sum2 == nullptr)
    each(n, [=](int64_t i) { y[i] = first(i) + bias[i]; });
  else
    each(n, [=](int64_t i) { y[i] = (first(i) + static_cast<float>(sum2[i]) * scale2[i]) + bias[i]; });
}

double weighted_squared_error(const float* a, const float* b, const float* w, int64_t n) {
  const auto squared = [=](int64_t i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    return d * d;
  };
  if (w == nullptr) return sum(n, squared);
  return sum(n, [=](int64_t i) { return static_cast<double>(w[i]) * squared(i); });
}

double dot(const float* a, const float* b, int64_t n) {
  return sum(n, [=](int64_t i) { return static_cast<double>(a[i]) * static_cast<double>(b[i]); });
}

void accumulate(const float* x, const float* less, double* sum, int64_t n) {
  if (less == nullptr) return each(n, [=](int64_t i) { sum[i] += static_cast<double>(x[i]); });
  each(n, [=](int64_t i) { sum[i] += static_cast<double>(x[i]) - static_cast<double>(less[i]); });
}

float max_abs(const float* x, int64_t n) { return as_float(static_cast<uint32_t>(max_magnitude_bits(x, n))); }

bool all_finite(const float* x, int64_t n) { return max_magnitude_bits(x, n) < 0x7f800000; }

float dot_float(const float* a, const float* b, int64_t n) {
  return fold(
      n, 0.f, [=](int64_t i) { return a[i] * b[i]; }, [](float x, float y) { return x + y; });
}

void from_f16(const uint16_t* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) {
    store(to_floats(x + i), y + i);
  }
  for (; i < n; ++i) y[i] = half_to_float(x[i]);
}

void from_bf16(const uint16_t* x, float* y, int64_t n) {
  each(n, [=](int64_t i) { y[i] = as_float(static_cast<uint32_t>(x[i]) << 16); });
}

}  // namespace

extern constinit const Kernels BCQ_TABLE;
constinit const Kernels BCQ_TABLE = {
    .name = BCQ_ISA_NAME,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .softmax = softmax,
    .gelu_erf = gelu_erf,
    .gelu_tanh = gelu_tanh,
    .gelu_quick = gelu_quick,
    .relu = relu,
    .swiglu = swiglu,
    .add = add,
    .scale = scale,
    .sum_exp = sum_exp,
    .fake_uniform = fake_uniform,
    .fake_twin_gelu = fake_twin_gelu,
    .fake_twin_softmax = fake_twin_softmax,
    .code_uniform = code_uniform,
    .code_twin_gelu = code_twin_gelu,
    .code_twin_softmax = code_twin_softmax,
    .int8_tile = int8_tile,
    .from_sums = from_sums,
    .float_tile = float_tile,
    .weighted_squared_error = weighted_squared_error,
    .dot = dot,
    .accumulate = accumulate,
    .max_abs = max_abs,
    .all_finite = all_finite,
    .dot_float = dot_float,
    .weighted_rows = weighted_rows,
    .to_limbs = to_limbs,
    .sum_limbs = sum_limbs,
    .packed_product = packed_product,
    .packed_codes = packed_codes,
    .packed_sums = packed_sums,
    .count_edges = count_edges,
    .look_up = look_up,
    .from_f16 = from_f16,
    .from_bf16 = from_bf16,
    .int8_rows = kInt8BestRows,
    .float_rows = kTall > 1 ? kTall : kFloatRows,
    .sums_in_16_bits = kSumsIn16Bits,
};

}  // namespace bcq
