// Weight quantizers of language models: round to nearest, and GPTQ ("GPTQ: Accurate
// Post-Training Quantization for Generative Pre-trained Transformers"; semantics of the
// official gptq.py and quant.py, deviations named where they occur).
#pragma once
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "engine/grid/affine.h"

namespace bcq {

// The numbers a weight is rounded to, and how a row's, or a group's, scale and zero point are found in it
// (find_params of the official Quantizer with perchannel=True). Zero is always one of the numbers.
struct WeightGrid {
  int bits = 4;            // 2..8
  int64_t groupsize = -1;  // columns that share a scale; -1: a whole row
  bool sym = false;        // the zero point is 2^(bits-1). A row without negative values gets half the codes
  // Shrink the range from 1 to 0.21 in steps of 0.01 and keep the one of least Σ |x̂ - x|^mse; 0: do not.
  double mse = 0;
  bool half = false;  // scales are numbers of 16 bits, as GPTQ checkpoints store them
};
float stored(float scale, const WeightGrid& grid);  // the scale as a checkpoint holds it

struct GptqOptions : WeightGrid {
  double percdamp = 0.01;      // damping, as a share of the Hessian's mean diagonal
  int64_t blocksize = 128;     // columns between two lazy updates of the rest
  bool act_order = false;      // columns in descending order of the Hessian's diagonal; groups follow that order
  bool static_groups = false;  // groups of consecutive columns, whose grids are made before the first is rounded
  // Shrink ranges as for `mse`, and keep the one of least Σ_c H_cc (ŵ_c - w_c)²: errors count as their inputs do.
  bool weighted = false;
  double drift_share = 0.25;  // of the drift that is carried on: 1 in GPTAQ's paper, 0.25 in its published code
};

// A quantized weight: integer codes, the grid they stand on, and their values.
struct QuantizedWeight {
  std::vector<uint8_t> codes;  // [out, in]
  Affine grid;
  Tensor values;    // [out, in] = scale (code - zero)
  double damp = 0;  // the percdamp that was needed; 0 for round to nearest
};

// UsageError for options that mean nothing.
void require_options(const GptqOptions& options);

// w [out, in], each value to the nearest of its grid. A last group may be short. A range whose step would not
// be a normal float counts as all zero. UsageError for a grid that means nothing.
QuantizedWeight round_to_nearest(const Tensor& w, const WeightGrid& grid);
// w [out, in]; hessian [in, in] = (2 / samples) Σ x xᵀ in double, row-major, of which the upper triangle is
// read. Columns whose input is always zero get zero weights. Recovers from a Hessian that cannot be factored
// by raising the damping tenfold up to 1, then a diagonal floor, then rounding; warns naming `name`.
// UsageError for options that mean nothing; Error naming `name` for numbers that are not finite.
// With `drift` [in, in] = (2 / samples) Σ (x' - x) xᵀ it is GPTAQ ("GPTAQ: Efficient Finetuning-Free Quantization with
// Asymmetric Calibration"): columns after the one that is rounded also make up for what x, of the quantized network, is
// not x', of the float one. With U the Cholesky factor of H⁻¹ and α the share, column c, when its turn comes, adds its
// weight times row c of P = α triu(drift Uᵀ, 1) U to the columns after it.
QuantizedWeight gptq(const Tensor& w, std::vector<double> hessian, const GptqOptions& options, const std::string& name,
                     const Warn& warn, std::vector<double> drift = {});

}  // namespace bcq
