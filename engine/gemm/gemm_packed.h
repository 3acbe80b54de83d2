// A quantized weight: integer codes packed bit by bit, and the grid they stand on; in files and in memory.
//
// In files a row's codes are one stream of bits, the first code in the lowest bits, cut into 32-bit words; rows
// begin at a word and are padded to a multiple of 32 codes, so that 32 codes of K bits take K words. GPTQ
// checkpoints pack in exactly this way, their 3-bit pattern of three words included, with the words
// transposed: qweight[k, n] is word k of row n, and qzeros packs the zero points of a group along the rows.
//
// In memory the same bits stand as products read them. Columns follow each other group by group, cut into fours
// ("quads", the last of a group padded with columns that meet zeros), and 32 rows stand side by side: a word has the
// codes of four columns of one row in its four bytes, shifted where the next quads' codes share the bytes (layout in
// engine/kernels/packed_kernels.h). That is the shape integer dot products want, so activations become integers, too:
// packed_reference() below is the definition. Its sums of integers are exact, so that one token alone, others with it,
// every cut into threads and every instruction set give the same bits. With u = 2^-24, M = 2^(e+23) < 2.01 X, X the
// largest magnitude of a token, and G groups,
//   |y - exact| <= u sum |w| (M + (G + 5) (|x| + M / 126)):
// the rounding of x, then of the T_p to floats, of their sum, of the product with the scale and of G sums (limbs below
// the first may cancel: they add up to at most M / 127). A dot product of floats in n / 16 steps has (n / 16 + 6) u
// sum |w| |x|. In 16 bits M = 2^(e+15), and 2^-16 M takes the place of the first M. A token with a value that is not
// finite makes every y NaN.
#pragma once
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "engine/gemm/gemm_int8.h"
#include "engine/grid/affine.h"

namespace bcq {

// The definition: y [tokens, out] = x [tokens, in] Wᵀ + bias, W of codes [out, in] on `grid`, bias [out] or null. A
// token is rounded, once, to integers q = x / 2^e of `bits` (24, or 16) bits, which are the sum of three int8 limbs, or
// two:
//   q = 65536 d_2 + 256 d_1 + d_0,  d from -128 to 127
//   y = 2^e sum_groups scale (65536 T_2 + 256 T_1 + T_0),  T_p = sum_columns (code - zero) d_p
// where 2^e is the least power of two, from 2^-126 on, with which they fit.
inline void packed_reference(const Affine& grid, const std::vector<uint8_t>& codes, const float* x, int64_t tokens,
                             int64_t in, int bits, const float* bias, float* y) {
  const int limbs = bits / 8;
  const int64_t out = grid.scale.dim(0), groups = grid.scale.dim(1);
  for (int64_t t = 0; t < tokens; ++t, x += in) {
    float top = 0, unit = 0x1p-126f;
    for (int64_t k = 0; k < in; ++k) top = std::max(top, std::abs(x[k]));
    const double finer = limbs == 3 ? 1 : 256;
    while (std::nearbyint(top * finer / unit) > 0x7f7f7f) unit *= 2;
    for (int64_t r = 0; r < out; ++r, ++y) {
      std::vector<int32_t> sums(static_cast<size_t>(groups * 3));
      for (int64_t k = 0; k < in; ++k) {
        const auto q = static_cast<int32_t>(std::nearbyint(x[k] / unit));
        const int d0 = static_cast<int8_t>(q), d1 = static_cast<int8_t>((q - d0) / 256),
                  d2 = (q - d0 - 256 * d1) / 65536;
        const int64_t g = grid.group_of(k);
        const int code = codes[at(r * in + k)] - static_cast<int>(grid.zero[r * groups + g]);
        int32_t* const sum = &sums[at(3 * g)];
        sum[0] += code * d0, sum[1] += code * d1, sum[2] += code * d2;
      }
      float total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        float value = 0;
        for (int p = limbs - 1; p >= 0; --p) value = value * 256 + static_cast<float>(sums[at(3 * g + p)]);
        total += grid.scale[r * groups + g] * value;
      }
      *y = bias ? total * unit + bias[r] : total * unit;
    }
  }
}

// 32-bit words that n codes of `bits` bits (1..8) take.
inline int64_t packed_words(int64_t n, int bits) { return (n + 31) / 32 * bits; }
// codes[0..n), each below 2^bits, to words[0..packed_words(n, bits)), and back.
void pack_codes(const uint8_t* codes, int64_t n, int bits, uint32_t* words);
void unpack_codes(const uint32_t* words, int64_t n, int bits, uint8_t* codes);

class PackedWeight {
 public:
  static constexpr int64_t kRows = kInt8Panel;  // that stand side by side

  // Writes the codes [in] of a row. Called from several threads.
  using RowCodes = std::function<void(int64_t row, uint8_t* codes)>;
  // shape [out, in]. Error for a zero point that is no integer from 0 to 255, which no quantizer here makes.
  PackedWeight(const Affine& grid, Shape shape, const RowCodes& codes);
  PackedWeight(const Affine& grid, Shape shape, const std::vector<uint8_t>& codes);  // codes [out, in]

  const Shape& shape() const { return shape_; }
  int bits() const { return bits_; }
  int64_t group() const { return group_; }  // columns that share a scale; in for a whole row
  int64_t groups() const { return static_cast<int64_t>(ends_.size()); }
  Affine grid() const;                 // as it was given; scales that 16-bit floats hold are kept as such
  std::vector<uint8_t> codes() const;  // [out, in]

  // Rows [begin, end) as floats, scale (code - zero): a difference of integers and one rounding, so that they
  // are the quantizer's own values, bit by bit. Serial.
  void decode(int64_t begin, int64_t end, float* y) const;

  // packed_reference(), on all threads. Activations are rounded to 24 bits, those of more than four tokens to
  // `window_bits`; UsageError unless these are 24 or 16.
  void multiply(const float* x, int64_t tokens, const float* bias, float* y, int window_bits = 24) const;

 private:
  struct Tokens;  // in int8 limbs
  Tokens to_limbs(const float* x, int64_t tokens, int limbs, int offset) const;
  void multiply_each(const Tokens& tokens, int64_t begin, int64_t end, const float* bias, float* y) const;
  void multiply_tile(const Tokens& tokens, int64_t t0, int64_t t1, int64_t begin, int64_t end, const float* bias,
                     float* y) const;
  void signed_panel(int64_t block, uint8_t* codes) const;

  PackedRows rows(int64_t block) const;
  static float scale_of(const PackedRows& rows, int64_t i);
  int64_t blocks() const { return (shape_[0] + kRows - 1) / kRows; }
  int64_t slots() const { return static_cast<int64_t>(ends_.back()) * 4; }
  int64_t chunks() const { return (slots() + 31) / 32; }
  int64_t panel_bytes() const { return chunks() * 32 * kRows; }  // of a block's codes
  int64_t column_of(int64_t slot) const {                        // -1 for padding
    return !order_.empty() ? order_[at(slot)] : slot < shape_[1] ? slot : -1;
  }

  int bits_;
  int64_t group_;
  Shape shape_;
  bool scattered_;              // the groups' columns do not follow each other
  bool less_zeros_;             // whether signed_panel() takes zero points off
  int most_;                    // a bound of the magnitudes of signed_panel()'s codes
  std::vector<int32_t> ends_;   // [groups] the quad at which each ends
  std::vector<int32_t> order_;  // [slots] the column there, -1 for padding; empty where slot i is column i
  Buffer<uint32_t> words_;      // [blocks, chunks, bits, kRows]
  std::vector<float> scale_;    // [blocks, groups, kRows], or
  std::vector<uint16_t> scale16_;
  std::vector<uint8_t> zero_;  // [blocks, groups, kRows]
};

}  // namespace bcq
