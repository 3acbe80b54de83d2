// What the tests share: a whole model quantized by one method alone, or by GPTQ with a compensation.
#pragma once
#include "quant/bias_comp.h"
#include "quant/calibrate.h"
#include "quant/ptq4vit.h"
#include "quant/weight_methods.h"

namespace bcq::test {

// Every linear layer to the nearest numbers of its grid.
inline void quantize_rtn(Model& model, const WeightGrid& grid, const LayerBits& bits = {}) {
  RoundToNearest method(grid, bits);
  calibrate(model, {}, {&method});
}

// With `bc` each block is compensated as soon as it is quantized, on the stream that quantized blocks make.
inline CalibrationResult quantize_gptq(Model& model, const std::vector<Batch>& windows,
                                       const GptqMethodOptions& options, const Progress& progress, const Warn& warn,
                                       PartStore* store = nullptr, const BcOptions* bc = nullptr) {
  Gptq method(options, warn);
  if (!bc) return calibrate(model, windows, {&method}, {"GPTQ", progress, store});
  BcOptions quantized = *bc;
  quantized.stream = Stream::Quantized;
  BiasCompensation compensation(quantized);
  return calibrate(model, windows, {&method, &compensation}, {"GPTQ", progress, store});
}

// Every layer of a vision model on images [B, 3, H, W], B >= 1.
inline CalibrationResult quantize_ptq(Model& model, const Tensor& images, const PtqOptions& options,
                                      const Progress& progress, const Warn& warn) {
  Ptq method(options, warn);
  return calibrate(model, vision_batches(model, images), {&method}, {"calibration", progress});
}

}  // namespace bcq::test
