// Grids by the range of what is seen: each step just wide enough, nothing is searched.
#pragma once
#include "models/model.h"

namespace bcq {

// Quantize every product of a vision model to `bits` [2, 8], symmetric, by the largest magnitudes its operands have in
// the float network on `batch`. `twin`: PTQ4ViT's twin-uniform grids after GELU and softmax. The pixels stay float.
// What the model held of quantization before is forgotten.
void quantize_minmax(Model& model, const Batch& batch, int bits, bool twin = false);

}  // namespace bcq
