// What binarized weights are stored as (BiLLM): not a grid of numbers, for levels differ from row to row and block to
// block and are found with the weight (quant/billm.h), but bits, from which rows of floats are made as they are needed.
#pragma once
#include <memory>

#include "engine/grid/grid.h"

namespace bcq {

// Of a weight [out, in]: in each block of columns a row has four pairs of a mean and a scale, of its small, large and
// salient values and of what is left of the salient ones. A value is mean + scale or mean - scale of its pair; one in a
// salient column is the sum of that of two pairs.
struct BinaryPlanes {
  static constexpr int kLevels = 8;  // of a row and block: mean and scale of each pair, in this order

  int64_t out = 0, in = 0, block = 0;
  std::vector<uint32_t> salient;  // [words]: whether a column is; bit c % 32 of word c / 32, as all of these
  std::vector<uint32_t> signs;    // [out, words]: whether the scale of the first pair is added
  std::vector<uint32_t> parts;    // [out, words]: whether the pair is the large one, or the second's scale is added
  std::vector<uint16_t> levels;   // [out, blocks, kLevels], float16

  BinaryPlanes(int64_t rows, int64_t columns, int64_t columns_of_block);  // zeros
  int64_t words() const { return (in + 31) / 32; }
  int64_t blocks() const { return (in + block - 1) / block; }
  int64_t salient_columns() const;
  // Rows [begin, end) to y.
  void decode(int64_t begin, int64_t end, float* y) const;
};

class Binary final : public GridKind {
 public:
  // Bits of one weight: all that is stored, and those that are signs. Simulated: levels are not those of float16.
  Binary(double stored, double signs) : GridKind(1), stored_bits(stored), sign_bits(signs) {}
  explicit Binary(std::shared_ptr<const BinaryPlanes> p);

  std::shared_ptr<const BinaryPlanes> planes;  // null: simulated
  double stored_bits, sign_bits;

  const char* name() const override { return "binary"; }
  Fields describe() const override { return {{"bits", bits}, {"stored_bits", static_cast<float>(stored_bits)}}; }
  void fake_quantize(const Tensor& x, Tensor& y) const override;  // Error: the weight is rounded as a whole
  double storage_bits(const Shape&) const override { return stored_bits; }
};

}  // namespace bcq
