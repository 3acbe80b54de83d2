// What single tokens need: products with packed weights by look-ups, and attention to the tokens before. Part of
// kernels_impl.h, whose scalars and loops it uses.
namespace bcq {
namespace {

// Sixteen floats side by side, of 16 rows or columns. Looking a float up by four bits of each of 16 words is the one
// thing here that compilers do not find by themselves.

#if defined(__AVX512F__)
// Masked forms with every lane on: g++ 12 warns of its own header's undefined registers in the others.
constexpr __mmask16 kAll = 0xffff;
using Words = __m512i;
using Floats = __m512;
using Table = __m512;
Words load_words(const char* w) { return _mm512_loadu_si512(w); }
Words next_quad(Words w) { return _mm512_maskz_srli_epi32(kAll, w, 4); }
Table load_table(const float* t) { return _mm512_loadu_ps(t); }
Floats look_up(Table t, Words w) { return _mm512_maskz_permutexvar_ps(kAll, w, t); }
Floats all(float x) { return _mm512_set1_ps(x); }
Floats load(const float* x) { return _mm512_loadu_ps(x); }
Floats load(const uint16_t* halves) {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}
Floats load(const uint8_t* x) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_cvtepu8_epi32(kAll, bytes));
}
void store(Floats x, float* y) { _mm512_storeu_ps(y, x); }
#elif defined(__AVX2__)
struct Words {
  __m256i a, b;
};
struct Floats {
  __m256 a, b;
};
using Table = Floats;  // entries 0..7 and 8..15
Floats operator+(const Floats& x, const Floats& y) { return {x.a + y.a, x.b + y.b}; }
Floats operator-(const Floats& x, const Floats& y) { return {x.a - y.a, x.b - y.b}; }
Floats operator*(const Floats& x, const Floats& y) { return {x.a * y.a, x.b * y.b}; }
__m256i load8(const char* w) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)); }
Words load_words(const char* w) { return {load8(w), load8(w + 32)}; }
Words next_quad(const Words& w) { return {_mm256_srli_epi32(w.a, 4), _mm256_srli_epi32(w.b, 4)}; }
Table load_table(const float* t) { return {_mm256_loadu_ps(t), _mm256_loadu_ps(t + 8)}; }
__m256 look_up8(const Table& t, __m256i w) {
  const __m256 high = _mm256_castsi256_ps(_mm256_slli_epi32(w, 28));  // the fourth bit, where a blend looks
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.a, w), _mm256_permutevar8x32_ps(t.b, w), high);
}
Floats look_up(const Table& t, const Words& w) { return {look_up8(t, w.a), look_up8(t, w.b)}; }
Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
Floats load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
Floats load(const uint16_t* halves) {
  const auto* h = reinterpret_cast<const __m128i*>(halves);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
Floats load(const uint8_t* x) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
void store(const Floats& x, float* y) {
  _mm256_storeu_ps(y, x.a);
  _mm256_storeu_ps(y + 8, x.b);
}
#else
struct Words {
  uint32_t at[16];
};
struct Floats {
  float at[16];
};
using Table = const float*;
template <class Value>
inline Floats each_lane(const Value& value) {
  Floats y;
  for (int l = 0; l < 16; ++l) y.at[l] = value(l);
  return y;
}
Floats operator+(const Floats& x, const Floats& y) {
  return each_lane([&](int l) { return x.at[l] + y.at[l]; });
}
Floats operator-(const Floats& x, const Floats& y) {
  return each_lane([&](int l) { return x.at[l] - y.at[l]; });
}
Floats operator*(const Floats& x, const Floats& y) {
  return each_lane([&](int l) { return x.at[l] * y.at[l]; });
}
Words load_words(const char* w) {
  Words y;
  std::memcpy(y.at, w, sizeof y.at);
  return y;
}
Words next_quad(Words w) {
  for (uint32_t& x : w.at) x >>= 4;
  return w;
}
Table load_table(const float* t) { return t; }
Floats look_up(Table t, const Words& w) {
  return each_lane([&](int l) { return t[w.at[l] & 15]; });
}
Floats all(float x) {
  return each_lane([=](int) { return x; });
}
Floats load(const float* x) {
  return each_lane([=](int l) { return x[l]; });
}
Floats load(const uint16_t* halves) {
  return each_lane([=](int l) { return half_to_float(halves[l]); });
}
Floats load(const uint8_t* x) {
  return each_lane([=](int l) { return static_cast<float>(x[l]); });
}
void store(const Floats& x, float* y) { std::memcpy(y, x.at, sizeof x.at); }
#endif

void weighted_rows(const float* s, const float* x, int64_t stride, int64_t rows, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {  // 64 sums stay in registers
    Floats sum[4] = {all(0.f), all(0.f), all(0.f), all(0.f)};
    for (int64_t r = 0; r < rows; ++r) {
      const Floats weight = all(s[r]);
      BCQ_UNROLL
      for (int k = 0; k < 4; ++k) sum[k] = sum[k] + weight * load(x + r * stride + i + 16 * k);
    }
    for (int k = 0; k < 4; ++k) store(sum[k], y + i + 16 * k);
  }
  for (; i < n; ++i) {
    float sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += s[r] * x[r * stride + i];
    y[i] = sum;
  }
}

void sign_tables(const float* x, int64_t quads, float* tables) {
  for (int64_t q = 0; q < quads; ++q, x += 4, tables += 16)
    each(16, [=](int64_t e) {
      const auto sign = [e](int j) { return e >> j & 1 ? 1.f : -1.f; };
      tables[e] = (sign(0) * x[0] + sign(1) * x[1]) + (sign(2) * x[2] + sign(3) * x[3]);
    });
}

// sum_k 2^k S_k of one group (engine/packed.h) for kBlocks blocks of rows, `stride` words apart: the sums over even and
// over odd quads apart until the end. A word is read again from each of its bytes, whose two quads then need one shift:
// loads are free beside shifts and look-ups.
template <int kBits, int kBlocks>
inline void group_sum(const uint32_t* words, int64_t stride, const float* tables, int64_t begin, int64_t end,
                      Floats* y) {
  constexpr int kPlanes = kBits * kBlocks;
  Floats even[kPlanes], odd[kPlanes];
  BCQ_UNROLL
  for (int p = 0; p < kPlanes; ++p) even[p] = odd[p] = all(0.f);
  // The quads of one byte.
  const auto look = [&](const char* bytes, const float* table, bool first, bool second) {
    const Table low = load_table(table), high = load_table(table + 16);
    BCQ_UNROLL
    for (int p = 0; p < kPlanes; ++p) {
      const Words w = load_words(bytes + p / kBits * stride * 4 + p % kBits * 64);
      if (first) even[p] = even[p] + look_up(low, w);
      if (second) odd[p] = odd[p] + look_up(high, next_quad(w));
    }
  };
  const auto bytes_of = [&](int64_t q) {
    return reinterpret_cast<const char*>(words + q / 8 * kBits * 16) + q % 8 / 2;
  };
  constexpr int64_t kAhead = 4096;  // bytes: what comes into the second cache meanwhile
  int64_t q = begin;
  if (q % 2 && q < end) {
    look(bytes_of(q), tables + (q - 1) * 16, false, true);
    ++q;
  }
  for (; q + 2 <= end && q % 8; q += 2) look(bytes_of(q), tables + q * 16, true, true);
  for (; q + 8 <= end; q += 8) {
    const char* const bytes = bytes_of(q);
    BCQ_UNROLL
    for (int p = 0; p < kPlanes; ++p)
      __builtin_prefetch(bytes + kAhead + p / kBits * stride * 4 + p % kBits * 64, 0, 2);
    BCQ_UNROLL
    for (int j = 0; j < 4; ++j) look(bytes + j, tables + (q + 2 * j) * 16, true, true);
  }
  for (; q + 2 <= end; q += 2) look(bytes_of(q), tables + q * 16, true, true);
  if (q < end) look(bytes_of(q), tables + q * 16, true, false);
  BCQ_UNROLL
  for (int k = 0; k < kBlocks; ++k) {
    const Floats *e = even + k * kBits, *o = odd + k * kBits;
    Floats sum = e[kBits - 1] + o[kBits - 1];
    BCQ_UNROLL
    for (int b = kBits - 2; b >= 0; --b) sum = (sum + sum) + (e[b] + o[b]);
    y[k] = sum;
  }
}

template <int kBits, int kBlocks>
inline void product_of_blocks(const PackedRows& r, int64_t block, const float* tables, const float* sums, float* y) {
  const Floats middle = all(static_cast<float>((1 << kBits) - 1) * 0.5f), half = all(0.5f);
  const int64_t stride = r.word_columns * kBits * 16;
  Floats total[kBlocks], sum[kBlocks];
  for (Floats& t : total) t = all(0.f);
  for (int64_t g = 0; g < r.groups; ++g) {
    group_sum<kBits, kBlocks>(r.words + block * stride, stride, tables, g ? r.ends[g - 1] : 0, r.ends[g], sum);
    BCQ_UNROLL
    for (int k = 0; k < kBlocks; ++k) {
      const int64_t first = ((block + k) * r.groups + g) * 16;
      const Floats scale = r.scale ? load(r.scale + first) : load(r.scale16 + first);
      total[k] = total[k] + scale * (half * sum[k] + (middle - load(r.zero + first)) * all(sums[g]));
    }
  }
  for (int k = 0; k < kBlocks; ++k) store(total[k], y + (block + k) * 16);
}

template <int kBits>
void product_of(const PackedRows& r, int64_t blocks, const float* tables, const float* sums, float* y) {
  constexpr int kAtOnce = kBits <= 3 ? 2 : 1;  // that use a table while it is in a register
  int64_t block = 0;
  for (; block + kAtOnce <= blocks; block += kAtOnce) product_of_blocks<kBits, kAtOnce>(r, block, tables, sums, y);
  for (; block < blocks; ++block) product_of_blocks<kBits, 1>(r, block, tables, sums, y);
}

float scale_of(const PackedRows& r, int64_t i) { return r.scale ? r.scale[i] : half_to_float(r.scale16[i]); }

template <int kBits>
void decode_row(const PackedRows& r, int64_t lane, float* y) {
  for (int64_t c = 0; c < r.word_columns; ++c) {
    uint32_t w[kBits];
    for (int b = 0; b < kBits; ++b) w[b] = r.words[(c * kBits + b) * 16 + lane];
    each(32, [=, &w](int64_t i) {
      uint32_t code = 0;
      for (int b = 0; b < kBits; ++b) code |= (w[b] >> i & 1u) << b;
      y[c * 32 + i] = static_cast<float>(static_cast<int32_t>(code));
    });
  }
  for (int64_t g = 0, begin = 0; g < r.groups; begin = r.ends[g++] * 4) {
    const float scale = scale_of(r, g * 16 + lane), zero = static_cast<float>(r.zero[g * 16 + lane]);
    each(r.ends[g] * 4 - begin, [=](int64_t i) { y[begin + i] = scale * (y[begin + i] - zero); });
  }
}

void packed_product(const PackedRows& r, int64_t blocks, const float* tables, const float* sums, float* y) {
  constexpr decltype(&packed_product) of[] = {product_of<1>, product_of<2>, product_of<3>, product_of<4>,
                                              product_of<5>, product_of<6>, product_of<7>, product_of<8>};
  of[r.bits - 1](r, blocks, tables, sums, y);
}

void packed_decode(const PackedRows& r, int64_t lane, float* y) {
  constexpr decltype(&packed_decode) of[] = {decode_row<1>, decode_row<2>, decode_row<3>, decode_row<4>,
                                             decode_row<5>, decode_row<6>, decode_row<7>, decode_row<8>};
  of[r.bits - 1](r, lane, y);
}

}  // namespace
}  // namespace bcq
