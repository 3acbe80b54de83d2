// Powers of two, for softmax:  x̂ = s 2^-k, k = round(-log2(x / s)).
#pragma once
#include "engine/grid/log_grid.h"

namespace bcq {

// Integer form: one plane of 2^(7 - k) up to 3 bits; with 4 bits a second one of 2^(15 - k) for k >= 8.
class Log2 final : public LogGrid {
 public:
  Log2(int bits, float scale, bool extra_zero = false);
  static Grid read(const Fields& fields, bool extra_zero);

  const char* name() const override { return extra_zero ? "log2+zero" : "log2"; }
  Fields describe() const override { return fields(); }
};

}  // namespace bcq
