// How a whole language model is quantized: block by block, on calibration windows.
#pragma once
#include <vector>

#include "engine/progress.h"
#include "models/model.h"
#include "quant/allocation.h"
#include "quant/gptq.h"

namespace bcq {

// Quantize every linear site of every block (embeddings, norms, biases and head stay float); those in `bits`
// with bits of their own, or not at all (0).
void quantize_rtn(Model& model, const WeightGrid& grid, const SiteBits& bits = {});
// GPTQ walks the blocks on the calibration windows: a block sees the outputs of the quantized blocks
// before it, and its own layers still float. Warns when there are fewer tokens than columns. Error naming the
// site whose input stops being finite. Holds one hidden state per window, and the Hessians of one block.
void quantize_gptq(Model& model, const std::vector<Batch>& windows, const GptqOptions& options,
                   const Progress& progress, const Warn& warn, const SiteBits& bits = {});

}  // namespace bcq
