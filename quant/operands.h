// The calibration that shows a method whole operands of layers on the float network, with gradients if wanted, from the
// head back to the embedding.
#pragma once
#include "quant/calibrate.h"

namespace bcq {

// Calibrate by one method that is shown operands of the float network, all layers in parallel. Each rank fits whole
// parts: what a method keeps from layer to layer, it keeps within a part.
CalibrationResult calibrate_on_float(Model& model, const std::vector<Batch>& data, Method& method,
                                     const CalibrationOptions& options);

}  // namespace bcq
