// How a whole language model is quantized and compensated: block by block, on calibration windows.
//
// One hidden state is held for each window and stream, and the moments of one block or, in
// sequential order, of the layers that share an input. Windows are taken through a block side by
// side, their sums added up in window order: results do not depend on the number of threads.
#pragma once
#include <optional>
#include <vector>

#include "engine/core/progress.h"
#include "models/model.h"
#include "quant/allocation.h"
#include "quant/bias_comp.h"
#include "quant/block_store.h"
#include "quant/gptq.h"

namespace bcq {

// What sites and blocks are fed while their errors are measured.
enum class BcStream {
  Float,     // their inputs in the float network, as in the official scripts
  Quantized  // what the quantized network makes of a window, compensated up to there
};

struct WalkOptions {
  GptqOptions gptq;
  SiteBits bits = {};  // as for quantize_rtn
  // The official order takes the inputs of a block's layers from the block still float; in sequential order
  // a layer sees those before it quantized, and compensated (GPTQ's --true-sequential).
  bool sequential = false;
  // Which products of inputs the solver looks at, those a layer gets on the quantized stream: as they are, or
  // centred, for a layer whose bias is fitted afterwards and so takes up any constant error.
  bool centred = false;
  // What is rounded: the layer's weights, or those refitted to make the float network's output of these inputs.
  bool float_target = false;
  int refine = 0;  // sweeps of coordinate descent over the codes, after GPTQ
  // Compensate a block as soon as it is quantized, on the stream that quantized blocks make: see below.
  std::optional<BcOptions> bc = std::nullopt;
};

// Wall time, in seconds.
struct WalkSeconds {
  double passes = 0;   // windows through blocks
  double moments = 0;  // Hessians and means
  double solve = 0;
};

struct WalkResult {
  std::vector<BlockRecord> blocks;
  WalkSeconds seconds;
  int64_t fitted() const;  // values of compensations
};

// Quantize every linear site of every block (embeddings, norms, biases and head stay float); those in `bits`
// with bits of their own, or not at all (0).
void quantize_rtn(Model& model, const WeightGrid& grid, const SiteBits& bits = {});
// GPTQ: a block sees the outputs of the quantized blocks before it. Warns when there are fewer tokens than columns.
// UsageError for options that mean nothing. Error naming the site whose input stops being finite.
// Blocks that `store` has are not done again.
WalkResult quantize_gptq(Model& model, const std::vector<Batch>& windows, const WalkOptions& options,
                         const Progress& progress, const Warn& warn, BlockStore* store = nullptr);

// Compensate a model of quantized weights at its linear sites and block outputs: a site's mean output is made that
// of the float network, b = mean(W x + bias) - mean(Q x~ + bias), where x~ is x on the float stream; then the
// block's, run from its input to its end. On the float stream the result is that of compensate() (bias_comp.h) up
// to rounding, for the mean of a product is that of its input times the weight: no site is run twice. UsageError
// for other outputs than linear and block. Per position, all windows need one length.
WalkResult compensate_blocks(Model& model, const std::vector<Batch>& windows, const BcOptions& options, BcStream stream,
                             const Progress& progress, BlockStore* store = nullptr);

}  // namespace bcq
