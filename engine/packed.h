// A quantized weight as it is kept, in memory and in files: integer codes packed bit by bit, and the grid
// they stand on.
//
// A row's codes are one stream of bits, the first code in the lowest bits, cut into 32-bit words; rows begin
// at a word and are padded to a multiple of 32 codes, so that 32 codes of K bits take K words. GPTQ
// checkpoints pack in exactly this way, their 3-bit pattern of three words included, with the words
// transposed: qweight[k, n] is word k of row n, and qzeros packs the zero points of a group along the rows.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/grid.h"

namespace bcq {

// 32-bit words that n codes of `bits` bits (1..8) take.
inline int64_t packed_words(int64_t n, int bits) { return (n + 31) / 32 * bits; }
// codes[0..n), each below 2^bits, to words[0..packed_words(n, bits)), and back.
void pack_codes(const uint8_t* codes, int64_t n, int bits, uint32_t* words);
void unpack_codes(const uint32_t* words, int64_t n, int bits, uint8_t* codes);

struct PackedWeight {
  Affine grid;
  Shape shape;                  // [out, in]
  std::vector<uint32_t> words;  // [out, packed_words(in, grid.bits)]

  PackedWeight() = default;
  PackedWeight(Affine grid, Shape shape, const std::vector<uint8_t>& codes);  // codes [out, in]

  std::vector<uint8_t> codes() const;  // [out, in]
  // Rows [begin, end) as floats, scale (code - zero): a difference of integers and one rounding, so that they
  // are the quantizer's own values, bit by bit. Serial.
  void decode(int64_t begin, int64_t end, float* y) const;

 private:
  int64_t row_words() const { return packed_words(shape[1], grid.bits); }
};

}  // namespace bcq
