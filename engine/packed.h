// A quantized weight: integer codes packed bit by bit, and the grid they stand on; in files and in memory.
//
// In files a row's codes are one stream of bits, the first code in the lowest bits, cut into 32-bit words; rows
// begin at a word and are padded to a multiple of 32 codes, so that 32 codes of K bits take K words. GPTQ
// checkpoints pack in exactly this way, their 3-bit pattern of three words included, with the words
// transposed: qweight[k, n] is word k of row n, and qzeros packs the zero points of a group along the rows.
//
// In memory the same bits stand as a product with one token reads them. Columns follow each other group by group,
// cut into fours ("quads", the last of a group padded with columns that meet zeros), and 16 rows stand side by side:
// a word holds one bit of 32 columns' codes of one row. With the bits b of a code read as signs s = 2 b - 1,
//   code = (2^K - 1) / 2 + sum_k 2^(k-1) s_k
//   y = sum_groups scale (1/2 sum_k 2^k S_k + ((2^K - 1) / 2 - zero) sum x),  S_k = sum over quads of +-x0 +-x1 +-x2
//   +-x3
// and a quad has only 16 such sums, which all rows share: four bits of a word look one up, instead of four codes that
// are widened, multiplied and added. (T-MAC, "CPU Renaissance via Table Lookup", does this with 8-bit sums; here
// they are floats.) Nothing is rounded that a product with the dequantized weights would not round, see multiply().
#pragma once
#include <cstdint>
#include <functional>
#include <new>
#include <vector>

#include "engine/grid.h"

namespace bcq {

struct PackedRows;  // engine/kernels.h

// For vectors whose rows of 16 words are cache lines.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, size_t) { ::operator delete (p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const { return true; }
};

// 32-bit words that n codes of `bits` bits (1..8) take.
inline int64_t packed_words(int64_t n, int bits) { return (n + 31) / 32 * bits; }
// codes[0..n), each below 2^bits, to words[0..packed_words(n, bits)), and back.
void pack_codes(const uint8_t* codes, int64_t n, int bits, uint32_t* words);
void unpack_codes(const uint32_t* words, int64_t n, int bits, uint8_t* codes);

class PackedWeight {
 public:
  static constexpr int64_t kRows = 16;  // that stand side by side

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

  // What the products of all rows with a token x [in] share.
  Tensor prepare(const float* x) const;
  // y[0..end-begin) = rows [begin, end) of the weight times that token; begin is a multiple of kRows. Serial.
  // With u = 2^-24 and n columns in all, n' in the largest group and G groups, |y - exact| is at most
  //   (n' / 8 + K + G + 12) u sum_groups scale (2^K sum |x|),
  // where a dot product over the dequantized weights in n / 16 steps has (n / 16 + 6) u sum |w| |x|.
  void multiply(const Tensor& prepared, int64_t begin, int64_t end, float* y) const;

 private:
  PackedRows rows(int64_t block) const;
  int64_t slots() const { return static_cast<int64_t>(ends_.back()) * 4; }
  int64_t word_columns() const { return (slots() + 31) / 32; }

  int bits_;
  int64_t group_;
  Shape shape_;
  bool scattered_;              // the groups' columns do not follow each other
  std::vector<int32_t> ends_;   // [groups] the quad at which each ends
  std::vector<int32_t> order_;  // [slots] the column there, -1 for padding; empty where slot i is column i
  std::vector<uint32_t, LineAllocator<uint32_t>> words_;  // [blocks, word_columns, bits, kRows], and one to read over
  std::vector<float> scale_;                              // [blocks, groups, kRows], or
  std::vector<uint16_t> scale16_;
  std::vector<uint8_t> zero_;  // [blocks, groups, kRows]
};

}  // namespace bcq
