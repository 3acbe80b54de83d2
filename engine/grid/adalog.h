// Logarithmic grids with a base that is searched, for softmax and after GELU:  x̂ = s 2^(-k q/37), with powers from
// tables of short integers.   (AdaLog, "Post-Training Quantization for Vision Transformers with Adaptive Logarithm
// Quantizer")
#pragma once
#include "engine/grid/log_grid.h"

namespace bcq {

// 2^(-k q/37) is 2^-shift_k mant_k / top: shift_k = floor(k q/37), top = 2^(bits+1) - 2, mant_k = round(2^-f top) of
// the fraction f of k q/37. Integer form: mant_k 2^(S - shift_k) with the largest shift S, in one plane of 8 bits or as
// two bytes; none where it is 2^16 or more. `shift` is added to values before they are rounded and taken away after it:
// kGeluShift makes values after GELU positive. `extra_zero` is the published quantizer.
class AdaLog final : public LogGrid {
 public:
  static constexpr float kGeluShift = 0.16997124f;  // less the least value of GELU
  static constexpr int kMostBase = 255;

  AdaLog(int bits, float scale, int base, float shift = 0, bool extra_zero = false);
  static Grid read(const Fields& fields, bool extra_zero);

  int base;  // q, 1 to kMostBase

  const char* name() const override { return extra_zero ? "adalog+zero" : "adalog"; }
  Fields describe() const override;
};

}  // namespace bcq
