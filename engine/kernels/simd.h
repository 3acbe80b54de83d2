// What the kernels are made of: loops over fixed lanes, and registers as vector types of the compiler. Only for
// kernels_impl.h and the headers it includes, all of which is compiled once for each instruction set: nothing here may
// have external linkage, or the linker could pick the AVX-512 copy for the whole program.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX2__)
#include <immintrin.h>
#else
#include <emmintrin.h>
#endif

#if defined(__FAST_MATH__)
#error "the kernels need IEEE arithmetic: build without -ffast-math"
#endif

// BCQ_INDEPENDENT says that iterations are independent, which holds when an output is an input as well; without it that
// case would run scalar. BCQ_LANES keeps clang from unrolling a loop over lanes before it vectorises, which would leave
// it with 128-bit pairs. BCQ_UNROLL: registers of plain hold one lane of four, there nothing is won.
#if defined(__clang__)
#define BCQ_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define BCQ_LANES _Pragma("clang loop vectorize(assume_safety) unroll(disable)")
#else
#define BCQ_INDEPENDENT _Pragma("GCC ivdep")
#define BCQ_LANES
#endif
#if !defined(__AVX2__)
#define BCQ_UNROLL
#elif defined(__clang__)
#define BCQ_UNROLL _Pragma("unroll")
#else
#define BCQ_UNROLL _Pragma("GCC unroll 8")
#endif

namespace bcq {
namespace {

constexpr int kLanes = 16;  // two AVX-512 registers of doubles, one of floats

inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Clamps that keep NaN. Both are one instruction where they vectorise.
inline float at_least(float x, float lo) { return x < lo ? lo : x; }
inline float at_most(float x, float hi) { return x > hi ? hi : x; }

// body(i) for i in [0, n).
template <class Body>
inline void each(int64_t n, const Body& body) {
  BCQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) body(i);
}

// Fold 2 * half lanes, in halves.
template <int half, class T, class Combine>
inline T fold_halves(T* lane, const Combine& combine) {
  for (int l = 0; l < half; ++l) lane[l] = combine(lane[l], lane[l + half]);
  if constexpr (half > 1) return fold_halves<half / 2>(lane, combine);
  return lane[0];
}

// Fold term(0), ..., term(n-1) with combine: element i goes to lane i mod kLanes, the lanes are folded in halves. Lanes
// start from `start`.
template <class T, class Term, class Combine>
inline T fold(int64_t n, T start, const Term& term, const Combine& combine) {
  T lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = start;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    BCQ_LANES
    for (int l = 0; l < kLanes; ++l) lane[l] = combine(lane[l], term(i + l));
  }
  for (int l = 0; i + l < n; ++l) lane[l] = combine(lane[l], term(i + l));
  return fold_halves<kLanes / 2>(lane, combine);
}

template <class Term>
inline double sum(int64_t n, const Term& term) {
  return fold(n, 0.0, term, [](double a, double b) { return a + b; });
}

// As integers, the bits of |x| are ordered like |x|, then infinity, then NaN.
inline int32_t max_magnitude_bits(const float* x, int64_t n) {
  return fold(
      n, int32_t{0}, [=](int64_t i) { return static_cast<int32_t>(as_bits(x[i]) & 0x7fffffffu); },
      [](int32_t a, int32_t b) { return b > a ? b : a; });
}

// Exact, denormals, infinities and NaN included: the exponent is moved as an integer; a denormal
// gets its leading one by a float subtraction.
inline float half_to_float(uint16_t h) {
  const uint32_t shifted = static_cast<uint32_t>(h & 0x7fff) << 13;
  const uint32_t exponent = shifted & 0x0f800000u;
  const uint32_t normal = shifted + (112u << 23);
  const uint32_t special = shifted + (224u << 23);
  const uint32_t denormal = as_bits(as_float(shifted + (113u << 23)) - as_float(113u << 23));
  const uint32_t magnitude = exponent == 0 ? denormal : exponent == 0x0f800000u ? special : normal;
  return as_float(magnitude | static_cast<uint32_t>(h & 0x8000) << 16);
}

// ---- Registers of kWide lanes of 32 bits ---------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
using Words = uint32_t __attribute__((vector_size(4 * kWide)));
using Sums = int32_t __attribute__((vector_size(4 * kWide)));
using Floats = float __attribute__((vector_size(4 * kWide)));

template <class T, class From>
inline T load(const From* from) {
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
template <class T, class To>
inline void store(const T& x, To* to) {
  std::memcpy(to, &x, sizeof x);
}
inline Floats to_floats(Sums x) { return __builtin_convertvector(x, Floats); }
// Masked with every lane on: g++ 12 warns of its own header's undefined registers in the other forms.
#if defined(__AVX512F__)
inline Floats to_floats(const uint16_t* halves) { return Floats(_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(halves))); }
inline Sums to_sums(const uint8_t* x) { return Sums(_mm512_maskz_cvtepu8_epi32(0xffff, load<__m128i>(x))); }
#elif defined(__AVX2__)
inline Floats to_floats(const uint16_t* halves) { return Floats(_mm256_cvtph_ps(load<__m128i>(halves))); }
inline Sums to_sums(const uint8_t* x) {
  return Sums(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
#else
inline Floats to_floats(const uint16_t* halves) {
  Floats x;
  for (int l = 0; l < kWide; ++l) x[l] = half_to_float(halves[l]);
  return x;
}
inline Sums to_sums(const uint8_t* x) { return Sums{x[0], x[1], x[2], x[3]}; }
#endif

// The instruction that adds the products of four bytes, unsigned and signed, to a sum of 32 bits, where the processor
// has one. Sums wrap around. Tests set a reference of the 256-bit one in its place
// (tests/kernels/avxvnni_reference.cpp).
#if defined(__AVX512VNNI__)
#define BCQ_DPBUSD _mm512_dpbusd_epi32
#elif defined(__AVXVNNI__)
#define BCQ_DPBUSD _mm256_dpbusd_avx_epi32
#endif
#if defined(BCQ_DPBUSD)
inline Sums add_products(Sums sum, Words x, Words y) {
  using Register = long long __attribute__((vector_size(4 * kWide)));
  return Sums(BCQ_DPBUSD(Register(sum), Register(x), Register(y)));
}
#elif defined(__AVX2__)
// sum += x in 16 bits. Written as the instruction, or g++ would keep sums elsewhere and move them back.
inline void add_in_place(__m256i& sum, __m256i x) { __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(x)); }
#endif

// Memory that is prefetched into the second cache beside a loop of so many steps, a line at each. Without any it is
// what is in cache, again and again, which costs nothing and saves a branch.
struct Ahead {
  const char* at;
  int64_t bytes_of_step;

  Ahead(const void* from, int64_t bytes, int64_t steps, const void* in_cache)
      : at(static_cast<const char*>(bytes > 0 ? from : in_cache)),
        bytes_of_step(bytes > 0 && steps > 0 ? (bytes + steps - 1) / steps : 0) {}
  void fetch() {
    __builtin_prefetch(at, 0, 2);
    at += bytes_of_step;
  }
};

// body(m) for m = min(n, kMost) as a constant, n >= 1.
template <int kMost, class Body>
inline void with_constant(int n, const Body& body) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, body);
  }
  body(std::integral_constant<int, kMost>());
}

}  // namespace
}  // namespace bcq
