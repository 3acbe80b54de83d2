// The constant operand of a linear layer: a matrix [out, in] read as float32, whatever it is stored as.
//
// Floats in memory or in a mapped file are used where they are. Anything else, 16-bit floats of a checkpoint
// or packed codes, is a function that decodes rows. A product asks for the few hundred rows it works on
// and drops them, so that no float copy of a block ever exists, let alone of a network; for a window of 2048
// tokens decoding costs about a hundredth of the product. Packed codes are multiplied as they are
// (engine/gemm/gemm_packed.h), and so are panels, floats in the order in which products of many rows read them. A new
// form of storage is one constructor call:
//   site.weight = Weight(shape, [stored](int64_t begin, int64_t end, float* y) { widen(stored, begin, end, y); });
// Quantizers, which need the matrix as a whole, take values() and let go of it.
#pragma once
#include <functional>
#include <memory>

#include "engine/core/tensor.h"

namespace bcq {

class FloatPanels;
class PackedWeight;
struct BinaryPlanes;

class Weight {
 public:
  // Writes rows [begin, end) to y. Called from several threads; gives the same values each time; owns what it reads.
  using Decode = std::function<void(int64_t begin, int64_t end, float* y)>;

  Weight() = default;
  Weight(Tensor floats) : shape_(floats.shape), floats_(std::move(floats)) {}  // NOLINT: a Tensor is a Weight
  Weight(Shape shape, Decode decode) : shape_(std::move(shape)), decode_(std::move(decode)) {}

  Weight(Shape shape, std::shared_ptr<const FloatPanels> panels);
  Weight(std::shared_ptr<const PackedWeight> packed);  // NOLINT: as is one that is packed
  Weight(std::shared_ptr<const BinaryPlanes> planes);  // NOLINT: or binarized (engine/grid/binary.h)

  bool empty() const { return floats_.empty() && !decode_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[at(i)]; }
  int64_t size() const { return numel(shape_); }

  // Rows [begin, end): in place where they are floats, else decoded into scratch, which is given room for them.
  const float* rows(int64_t begin, int64_t end, Tensor& scratch) const;
  const PackedWeight* packed() const { return packed_.get(); }  // null unless it is
  const FloatPanels* panels() const { return panels_.get(); }   // null unless it is held as such
  // All of it: the floats themselves, shared and not to be written to, else decoded into memory of its own.
  Tensor values() const;

 private:
  Shape shape_;
  Tensor floats_;
  Decode decode_;
  std::shared_ptr<const PackedWeight> packed_;
  std::shared_ptr<const FloatPanels> panels_;
};

}  // namespace bcq
