#include "engine/gemm/weight.h"

#include <algorithm>

#include "engine/core/parallel.h"
#include "engine/gemm/gemm_float.h"
#include "engine/gemm/gemm_packed.h"
#include "engine/grid/binary.h"

namespace bcq {

Weight::Weight(Shape shape, std::shared_ptr<const FloatPanels> panels)
    : shape_(std::move(shape)),
      decode_([panels](int64_t begin, int64_t end, float* y) { panels->columns(begin, end, y); }),
      panels_(panels) {}

Weight::Weight(std::shared_ptr<const PackedWeight> packed)
    : shape_(packed->shape()),
      decode_([packed](int64_t begin, int64_t end, float* y) { packed->decode(begin, end, y); }),
      packed_(packed) {}

Weight::Weight(std::shared_ptr<const BinaryPlanes> planes)
    : shape_({planes->out, planes->in}),
      decode_([planes](int64_t begin, int64_t end, float* y) { planes->decode(begin, end, y); }) {}

const float* Weight::rows(int64_t begin, int64_t end, Tensor& scratch) const {
  const int64_t columns = size() / dim(0);
  if (!decode_) return floats_.data + begin * columns;
  const int64_t n = (end - begin) * columns;
  if (scratch.empty() || scratch.size() < n) scratch = Tensor::uninitialized({n});
  decode_(begin, end, scratch.data);
  return scratch.data;
}

Tensor Weight::values() const {
  if (!decode_) return floats_;
  Tensor y = Tensor::uninitialized(shape_);
  const int64_t columns = size() / dim(0), per_item = std::max<int64_t>(1, kElementsPerItem / columns);
  parallel_for((dim(0) + per_item - 1) / per_item, [&](int64_t i) {
    decode_(i * per_item, std::min(dim(0), (i + 1) * per_item), y.data + i * per_item * columns);
  });
  return y;
}

}  // namespace bcq
