// The one loop over a network that quantizers and compensations share.
//
// Parts (embedding, blocks, head) are taken in order. Two streams of hidden states go along, one tensor a batch each:
// what the float network makes of the data, and what the network as quantized so far makes of it. In each part methods
// are shown what they need, in the order they are given, and change the part; then both streams move on. A method that
// needs gradients is shown the float network, from the head back to the embedding. Batches may be taken side by side;
// what is summed over them is added up in their order, so that results do not depend on the number of threads.
#pragma once
#include "quant/calibration.h"

namespace bcq {

// Calibrate a model by these methods on `data` (may be empty if none of them needs any). Vision: batches of pixels;
// language: windows of ids, of one length where a compensation is per position. UsageError for points or needs the
// model has nothing for. Error naming the layer whose input stops being finite.
CalibrationResult calibrate(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods,
                            const CalibrationOptions& options = {});

// Images [B, 3, H, W], B >= 1, in batches that are on one tape. UsageError for a language model or no image.
std::vector<Batch> vision_batches(const Model& model, const Tensor& images);

}  // namespace bcq
