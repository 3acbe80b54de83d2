// What single tokens need: products with packed weights, and attention to the tokens before.
#pragma once
#include "engine/kernels/kernels.h"
#include "engine/kernels/simd.h"

namespace bcq {
namespace {

// sum + codes · limbs for every four bytes, of codes below 2^kBits.
template <int kBits>
inline Sums dot(Sums sum, Words codes, Words limbs) {
#if defined(BCQ_DPBUSD)
  return add_products(sum, codes, limbs);
#elif defined(__AVX2__)
  // Pairs of products fit 16 bits if codes have 7 bits; the eighth is multiplied by itself.
  const __m256i seven = _mm256_maddubs_epi16(__m256i(kBits == 8 ? codes & 0x7f7f7f7fu : codes), __m256i(limbs));
  sum += Sums(_mm256_madd_epi16(seven, _mm256_set1_epi16(1)));
  if (kBits == 8) {
    const __m256i eighth = _mm256_maddubs_epi16(__m256i(codes >> 7 & 0x01010101u), __m256i(limbs));
    sum += Sums(_mm256_madd_epi16(eighth, _mm256_set1_epi16(128)));
  }
  return sum;
#else
  for (int l = 0; l < kWide; ++l)
    for (int b = 0; b < 32; b += 8)
      sum[l] += static_cast<int32_t>(codes[l] >> b & 255) * static_cast<int8_t>(limbs[l] >> b & 255);
  return sum;
#endif
}

// Without an instruction for four bytes, AVX2 sums the products of eight quads in pairs of 16 bits if codes have at
// most four: 8 * 2 * 15 * 128 = 30720. add_pairs() adds one, sum_of_pairs() what came together.
#if defined(__AVX2__) && !defined(BCQ_DPBUSD)
constexpr int kMostBitsOfPairs = 4;
inline Sums add_pairs(Sums pairs, Words codes, Words limbs) {
  __m256i sum = __m256i(pairs);
  add_in_place(sum, _mm256_maddubs_epi16(__m256i(codes), __m256i(limbs)));
  return Sums(sum);
}
inline Sums sum_of_pairs(Sums pairs) { return Sums(_mm256_madd_epi16(__m256i(pairs), _mm256_set1_epi16(1))); }
#else
constexpr int kMostBitsOfPairs = 0;
inline Sums add_pairs(Sums pairs, Words, Words) { return pairs; }
inline Sums sum_of_pairs(Sums pairs) { return pairs; }
#endif

// The codes of quad q, 0..7, of a chunk of 32 columns, a byte each. They are stored in parts of 4, 2 or 1 bits, the
// largest first: in a part of w bits, words [w, kInt8Panel] hold 8 / w quads each, quad q at bit q w of every byte of
// word q w / 8, modulo 8. Bits from kTo on are being put together.
template <int kBits, int kTo = 0>
inline Words codes_of(const uint32_t* words, int64_t q) {
  constexpr int kPart = kBits >= 4 ? 4 : kBits >= 2 ? 2 : 1;
  const int from = static_cast<int>(q * kPart % 8);
  Words codes = load<Words>(words + q * kPart / 8 * kInt8Panel);
  codes = from >= kTo ? codes >> (from - kTo) : codes << (kTo - from);
  codes &= ((1u << kPart) - 1u) * (0x01010101u << kTo);
  if constexpr (kBits > kPart) codes |= codes_of<kBits - kPart, kTo + kPart>(words + kPart * kInt8Panel, q);
  return codes;
}

// Scales and zero points of kWide rows from `row` on, counted through blocks.
struct Scales {
  Floats scale;
  Sums zero;
  Scales(const PackedRows& r, int64_t row, int64_t group) {
    const int64_t i = (row / kInt8Panel * r.groups + group) * kInt8Panel + row % kInt8Panel;
    scale = r.scale ? load<Floats>(r.scale + i) : to_floats(r.scale16 + i);
    zero = to_sums(r.zero + i);
  }
};

// Rows [first, first + kWide kVectors), counted through blocks: the sums and their scales of engine/gemm/gemm_packed.h.
template <int kBits, int kVectors>
inline void product_of_rows(const PackedRows& r, const PackedToken& x, int64_t first, float* y) {
  constexpr int64_t kAhead = 4096;  // bytes: what comes into the second cache meanwhile
  const uint32_t* words[kVectors];
  Floats total[kVectors] = {};
  for (int64_t k = 0; k < kVectors; ++k) {
    const int64_t row = first + k * kWide;
    words[k] = r.words + row / kInt8Panel * r.chunks * kBits * kInt8Panel + row % kInt8Panel;
  }
  for (int64_t g = 0, q = 0; g < r.groups; ++g) {
    constexpr bool kPairs = kBits <= kMostBitsOfPairs;
    Sums sum[kVectors][kTokenLimbs] = {}, pairs[kVectors][kTokenLimbs];
    const auto add = [&](int64_t quad, int64_t of_chunk, auto in_pairs) {
      Words limbs[kTokenLimbs];
      BCQ_UNROLL
      for (int p = 0; p < kTokenLimbs; ++p) limbs[p] = load<uint32_t>(x.limbs + p * x.stride + quad * 4) - Words{};
      BCQ_UNROLL
      for (int k = 0; k < kVectors; ++k) {
        const Words codes = codes_of<kBits>(words[k] + quad / 8 * kBits * kInt8Panel, of_chunk);
        BCQ_UNROLL
        for (int p = 0; p < kTokenLimbs; ++p) {
          if constexpr (in_pairs)
            pairs[k][p] = add_pairs(pairs[k][p], codes, limbs[p]);
          else
            sum[k][p] = dot<kBits>(sum[k][p], codes, limbs[p]);
        }
      }
    };
    const int64_t end = r.ends[g];
    while (q < end) {
      if (q % 8 != 0 || q + 8 > end) {
        add(q, q % 8, std::false_type());
        ++q;
        continue;
      }
      BCQ_UNROLL
      for (int k = 0; k < kVectors; ++k)
        for (int b = 0; b < kBits; ++b)
          __builtin_prefetch(reinterpret_cast<const char*>(words[k] + (q / 8 * kBits + b) * kInt8Panel) + kAhead, 0, 2);
      BCQ_UNROLL
      for (int k = 0; k < kVectors; ++k) {
        BCQ_UNROLL
        for (int p = 0; p < kTokenLimbs; ++p) pairs[k][p] = Sums{};
      }
      BCQ_UNROLL
      for (int64_t j = 0; j < 8; ++j) add(q + j, j, std::bool_constant<kPairs>());
      q += 8;
      BCQ_UNROLL
      for (int k = 0; k < kVectors; ++k) {
        BCQ_UNROLL
        for (int p = 0; p < kTokenLimbs; ++p)
          if constexpr (kPairs) sum[k][p] += sum_of_pairs(pairs[k][p]);
      }
    }
    BCQ_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      const Scales scales(r, first + k * kWide, g);
      Floats value = {};
      BCQ_UNROLL
      for (int p = kTokenLimbs - 1; p >= 0; --p)
        value = value * 256.f + to_floats(sum[k][p] - scales.zero * x.sums[g * kTokenLimbs + p]);
      total[k] += scales.scale * value;
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    total[k] *= x.unit;
    store(total[k], y + first + k * kWide);
  }
}

void packed_product(const PackedRows& r, int64_t blocks, const PackedToken& x, float* y) {
  // Two registers of rows share the limbs, and hide how long a dot product takes.
  with_constant<8>(r.bits, [&](auto bits) {
    for (int64_t row = 0; row < blocks * kInt8Panel; row += 2 * kWide) product_of_rows<bits, 2>(r, x, row, y);
  });
}

void packed_codes(const PackedRows& r, uint8_t* y) {
  with_constant<8>(r.bits, [&](auto bits) {
    for (int64_t c = 0; c < r.chunks; ++c)
      for (int64_t q = 0; q < 8; ++q)
        for (int64_t row = 0; row < kInt8Panel; row += kWide, y += sizeof(Words))
          store(codes_of<bits>(r.words + c * bits * kInt8Panel + row, q), y);
  });
}

template <int kLimbs, bool kLessZero>
inline void scaled_sums(const PackedRows& r, const PackedSums& part) {
  const int32_t middle = 1 << (r.bits - 1);
  const int64_t next = r.groups * kLimbs, stride = part.stride;
  for (int64_t row = 0; row < part.blocks * kInt8Panel; row += kWide) {
    const Scales scales(r, row, part.group);
    const Sums zero = scales.zero - middle;
    for (int64_t t = 0; t < part.tokens; ++t) {
      const int32_t* const sum = part.sums + t * kLimbs * stride + row;
      const auto term = [&](int p) {
        const Sums of_codes = load<Sums>(sum + p * stride);
        return to_floats(kLessZero ? of_codes : of_codes - zero * part.limb_sums[t * next + p]);
      };
      Floats value = term(kLimbs - 1);
      BCQ_UNROLL
      for (int p = kLimbs - 2; p >= 0; --p) value = value * 256.f + term(p);
      float* const y = part.y + t * stride + row;
      store(load<Floats>(y) + scales.scale * value, y);
    }
  }
}

void packed_sums(const PackedRows& r, const PackedSums& part) {
  const auto less_zero = part.limbs == 3 ? scaled_sums<3, true> : scaled_sums<2, true>;
  const auto with_zero = part.limbs == 3 ? scaled_sums<3, false> : scaled_sums<2, false>;
  (part.limb_sums ? with_zero : less_zero)(r, part);
}

// The exponent of the largest magnitude, and one more where its limbs would not fit; x / unit is exact, and adding
// 2^23 to its magnitude rounds it, half to even. In q + 0x808080 every byte is a limb + 128.
float to_limbs(const float* x, int64_t n, int limbs, int offset, uint8_t* y, int64_t stride) {
  const int32_t top = max_magnitude_bits(x, n), exponent = (top + 0x10101) >> 23;
  const bool finite = top < 0x7f800000;
  const int32_t least = exponent - (8 * limbs - 2) > 1 ? exponent - (8 * limbs - 2) : 1;  // 2^-126
  const float unit = as_float(static_cast<uint32_t>(least) << 23);
  const float inverse = finite ? as_float(static_cast<uint32_t>(254 - least) << 23) : 0.f;
  const uint32_t middles = limbs == 3 ? 0x808080u : 0x8080u, flip = static_cast<uint32_t>(offset ^ 128) * 0x010101u;
  for (int p = 0; p < limbs; ++p)
    each(n, [=](int64_t i) {
      const float v = x[i] * inverse;
      const uint32_t magnitude = as_bits(as_float(as_bits(v) & 0x7fffffffu) + 8388608.f) - 0x4b000000u;
      const uint32_t q = as_bits(v) >> 31 ? 0u - magnitude : magnitude;
      y[p * stride + i] = static_cast<uint8_t>(((q + middles) ^ flip) >> 8 * p);
    });
  return finite ? unit : __builtin_nanf("");
}

int32_t sum_limbs(const uint8_t* x, int64_t n, int offset) {
  const uint32_t flip = static_cast<uint32_t>(offset ^ 128);  // to limbs + 128, of which pairs fit 16 bits in dot()
  Sums sums = {};
  int64_t i = 0;
  for (; i + 4 * kWide <= n; i += 4 * kWide)
    sums = dot<7>(sums, load<Words>(x + i) ^ flip * 0x01010101u, 0x01010101u - Words{});
  int32_t sum = 0;
  for (int l = 0; l < kWide; ++l) sum += sums[l];
  for (; i < n; ++i) sum += static_cast<int32_t>(x[i] ^ flip);
  return sum - 128 * static_cast<int32_t>(n);
}

// y[0..kWide kVectors): sums that stay in registers.
template <int kVectors>
inline void weighted_columns(const float* s, const float* x, int64_t stride, int64_t rows, float* y) {
  Floats sum[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const Floats weight = s[r] - Floats{};
    BCQ_UNROLL
    for (int k = 0; k < kVectors; ++k) sum[k] += weight * load<Floats>(x + r * stride + k * kWide);
  }
  std::memcpy(y, sum, sizeof sum);
}

void weighted_rows(const float* s, const float* x, int64_t stride, int64_t rows, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 4 * kWide <= n; i += 4 * kWide) weighted_columns<4>(s, x + i, stride, rows, y + i);
  for (; i + kWide <= n; i += kWide) weighted_columns<1>(s, x + i, stride, rows, y + i);
  for (; i < n; ++i) {
    float sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += s[r] * x[r * stride + i];
    y[i] = sum;
  }
}

}  // namespace
}  // namespace bcq
