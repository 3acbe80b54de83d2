// What binarized weights are stored as: not a grid of numbers, for levels differ from row to row and block to block and
// are found with the weight (quant/billm.h), but what a report says of it.
#pragma once
#include "engine/grid/grid.h"

namespace bcq {

class Binary final : public GridKind {
 public:
  // Bits of one weight [out, in]: all that is stored, and those that are signs.
  Binary(double stored, double signs) : GridKind(1), stored_bits(stored), sign_bits(signs) {}

  double stored_bits, sign_bits;

  const char* name() const override { return "binary"; }
  Fields describe() const override { return {{"bits", bits}, {"stored_bits", static_cast<float>(stored_bits)}}; }
  void fake_quantize(const Tensor& x, Tensor& y) const override;  // Error: the weight is rounded as a whole
  double storage_bits(const Shape&) const override { return stored_bits; }
};

}  // namespace bcq
