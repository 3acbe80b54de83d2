// Weight quantizers of language models: round to nearest, and GPTQ ("GPTQ: Accurate
// Post-Training Quantization for Generative Pre-trained Transformers"; semantics of the
// official gptq.py and quant.py, deviations named where they occur).
#pragma once
#include <string>
#include <vector>

#include "engine/grid.h"
#include "engine/progress.h"

namespace bcq {

struct GptqOptions {
  int bits = 4;             // 2..8
  int64_t groupsize = -1;   // columns that share a scale; -1: a whole row
  double percdamp = 0.01;   // damping, as a share of the Hessian's mean diagonal
  int64_t blocksize = 128;  // columns between two lazy updates of the rest
};

// A quantized weight: integer codes, the grid they stand on, and their values.
struct QuantizedWeight {
  std::vector<uint8_t> codes;  // [out, in]
  Affine grid;
  Tensor values;         // [out, in] = scale (code - zero)
  double damp = 0;       // the percdamp that was needed; 0 for round to nearest
  bool rounded = false;  // GPTQ could not factor the Hessian and fell back to rounding
};

// UsageError for options that mean nothing.
void require_options(const GptqOptions& options);

// Scale and zero point of rows [0, out) over columns [begin, end) of w [out, in]: asymmetric, zero always on
// the grid (find_params of the official Quantizer with perchannel=True, sym=False). Those of row r go to
// scale[r * stride] and zero[r * stride]. A range whose step would not be a normal float counts as all zero.
void find_params(const Tensor& w, int64_t begin, int64_t end, int bits, float* scale, float* zero, int64_t stride);

// w [out, in], each value to the nearest of its grid. A last group may be short. UsageError for bits or a
// group size that mean nothing.
QuantizedWeight round_to_nearest(const Tensor& w, int bits, int64_t groupsize);
// w [out, in]; hessian [in, in] = (2 / samples) Σ x xᵀ in double, row-major, of which the upper triangle is
// read. Columns whose input is always zero get zero weights. Recovers from a Hessian that cannot be factored
// by raising the damping tenfold up to 1, then a diagonal floor, then rounding; warns naming `name`.
// UsageError for options that mean nothing; Error naming `name` for numbers that are not finite.
QuantizedWeight gptq(const Tensor& w, std::vector<double> hessian, const GptqOptions& options, const std::string& name,
                     const Warn& warn);

}  // namespace bcq
