#include "engine/grid/binary.h"

#include "engine/core/check.h"

namespace bcq {

void Binary::fake_quantize(const Tensor&, Tensor&) const {
  throw Error("a binarized weight has no grid that other values could be rounded to");
}

}  // namespace bcq
