// BiLLM ("BiLLM: Pushing the Limit of Post-Training Quantization for LLMs"): weights as signs. A few salient columns of
// each block are binarized twice, the rest apart in small and large values; errors go to the columns after it as in
// GPTQ.
#pragma once
#include <cstdint>

#include "engine/core/progress.h"
#include "engine/grid/binary.h"
#include "quant/allocation.h"
#include "quant/method.h"

namespace bcq {

// How the error of a block's columns is carried on.
enum class BillmInside {
  Official,   // each column's own error over its pivot, as if no column before it in the block had one
  Solve,      // exactly, for the block as it was rounded
  Sequential  // exactly, and each column takes the nearest of the block's levels once it is corrected, as in GPTQ
};

struct BillmOptions {
  BillmInside inside = BillmInside::Official;
  bool hessian = true;  // salience is w² over the squared pivot; else w itself
  int64_t block = 128;  // columns that share levels
  int most = 50;        // salient columns are fewer than this
  double percdamp = 0.01;
  bool sequential = false, centred = false;  // as GptqMethodOptions has them
  bool float_target = false;                 // Target::Float
  // Levels are rounded to what is stored, and a value at a mean goes up; else they are floats, as in the code before it
  // stores its weights.
  bool half = false;
};

struct BillmBlock {
  int64_t salient_columns = 0;
  double split = 0;                           // of salience: below it values are small
  int64_t small = 0, large = 0, salient = 0;  // values
};
struct BinarizedWeight {
  Tensor values;  // [out, in]
  std::vector<BillmBlock> blocks;
  std::shared_ptr<BinaryPlanes> planes;  // what values are, with `half`; else null
  // Signs, one a value and two in salient columns; and with them what else there is: one bit a value that is not
  // salient to tell small from large, four means and four scales of 16 bits a row and block, one bit a column.
  double sign_bits = 0, stored_bits = 0;
};
// w [out, in], hessian as gptq() has it. Error naming `name` for a Hessian that no damping
// makes positive definite.
BinarizedWeight billm(const Tensor& w, std::vector<double> hessian, const BillmOptions& options,
                      const std::string& name, const Warn& warn);

// All layers of a block on what the quantized blocks before it make, as the official walk of GPTQ, or one after the
// other. Layers whose bits are 0 stay float; others have no bits to choose.
class Billm : public Method {
 public:
  Billm(const BillmOptions& options, const LayerBits& bits, const Warn& warn);
  Needs needs() const override {
    return {.stream = Stream::Quantized,
            .sequential = options_.sequential,
            .moments = true,
            .cross = options_.float_target};
  }
  bool wants(const Layer& layer) const override { return is_to_quantize(layer, bits_); }
  void fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) override;

 private:
  BillmOptions options_;
  LayerBits bits_;
  Warn warn_;
};

}  // namespace bcq
