// What a walk over blocks leaves behind: what it measured at each layer, and finished blocks kept so that an
// interrupted walk can go on.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "models/model.h"

namespace bcq {

// One layer as the solver left it. Errors are mean squares over tokens and outputs of what rounding does to the
// layer's output on its calibration inputs, Σ (Q - V) C (Q - V)ᵀ / out: V the weights that were rounded (refitted
// ones for the float target), C the mean product of inputs, centred where the walk's Hessian is. Each is
// at most the one before it, but that of GPTQ, which promises nothing.
struct LayerRecord {
  std::string site;
  int bits = 0;
  int64_t group = 0;       // columns that share a scale
  double damp = 0;         // that GPTQ needed
  double ridge = 0;        // of the refit, as a share of C's mean diagonal; infinite: the weights as they were
  double signal = 0;       // the same mean of V's own output
  double rounded = 0;      // round to nearest
  double solved = 0;       // GPTQ
  double refined = 0;      // after coordinate descent
  double compensated = 0;  // C centred: what a bias on these inputs cannot take away
};

// What is kept of a block besides what its sites and Model::block_bc hold.
struct BlockRecord {
  std::vector<LayerRecord> layers;
  int64_t fitted = 0;  // values of compensations
};

// Finished blocks of a walk, by the walk's name ("GPTQ", "bias compensation") and the block's number. Walks
// finish blocks in order and know what they do to the sites: b, weight_hat, bias_hat, bc, and block_bc or what
// Model folds it into. A block restored is that block to the last bit, or results would depend on interruptions.
struct BlockStore {
  virtual ~BlockStore() = default;
  // Put block i of the walk back into the model as done() saw it; false when it was not finished.
  virtual bool load(const std::string& walk, Model& model, int i, BlockRecord& record) = 0;
  virtual void done(const std::string& walk, Model& model, int i, const BlockRecord& record) = 0;
};

// Puts back the blocks that `store` (may be null) has from the first on, appending their records to `records`;
// returns how many.
int restore_blocks(BlockStore* store, const std::string& walk, Model& model, std::vector<BlockRecord>& records);

}  // namespace bcq
