// Powers of the root of two, for softmax:  x̂ = s 2^(-k/2), k = round(-2 log2(x / s)).   (RepQ-ViT, section 3.3)
#pragma once
#include "engine/grid/log_grid.h"

namespace bcq {

// Integer form, up to 4 bits: a plane of even k, 2^(7 - k/2), and one of odd k, 2^(8 - (k + 1)/2), whose scale has the
// root. `extra_zero` is the published quantizer.
class LogSqrt2 final : public LogGrid {
 public:
  LogSqrt2(int bits, float scale, bool extra_zero = false);
  static Grid read(const Fields& fields, bool extra_zero);

  const char* name() const override { return extra_zero ? "log-sqrt2+zero" : "log-sqrt2"; }
  Fields describe() const override { return fields(); }
};

}  // namespace bcq
