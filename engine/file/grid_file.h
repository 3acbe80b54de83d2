// How a saved vision model keeps what its layers are rounded to: every kind of grid by its registry row, and weights as
// codes. Tensors go by the engine's own names, whatever the checkpoint called them.
//
// In config.json, "quantization_config":
//   "quant_method": "bcq", "format": "grids", "format_version": 1, "meta": {"quantizer": ["bcq:VERSION"], ...},
//   "method", "recipe" (how it was made), "folded_layer_scale" (true: LayerScale stands in the weights),
//   "layers": {NAME: {"left": GRID, "right": GRID, "renormalized": true}}, each where there is one:
//             "left" the grid of a layer's input, "right" that of its weight or, of q kᵀ and A v, of the other operand
//   GRID:     {"grid": its row in engine/grid/registry.cpp, and those of its fields that are integers}
//
// Tensors of a layer NAME beside those of the checkpoint:
//   NAME.left.FIELD, NAME.right.FIELD: fields that are numbers [] or arrays [n]: U8 where all are bytes, else F32
//
//   NAME.qweight: I32 [out, ceil(in/32) bits], in place of NAME.weight: codes u of x̂ = scale (u - zero point), a row a
//                 stream of bits (engine/gemm/gemm_packed.h): 8 codes of 4 bits a word, 32 of 3 bits three words
//   NAME.bias:    F32 [out], what is added: compensations per channel are in it
//   NAME.bc:      F32, a compensation that cannot be folded: the output's shape less the batch, 1 where it is shared;
//                 of a block, too
//
//   BLOCK.linear.weight, BLOCK.linear.bias: F32 [D, D] and [D], a linear layer beside the block
//
// Weights that stayed float, norms and all else are as in the source where quantization left them alone, else F32.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "engine/file/packed_file.h"
#include "engine/grid/grid.h"

namespace bcq {

// What config.json, read from `where`, says of a vision model: null when it is not quantized. InputError for formats
// and versions that are not read here, by name, and for keys that are not known.
std::shared_ptr<const PackedFormat> read_grid_format(const json& config, const std::string& where);
// Whether the file at this place is one of a saved vision model.
inline bool holds_grids(const Loader& at) { return at.packed() && at.packed()->kind == PackedFormat::Kind::Grids; }

// GRID of a grid that rounds, and its tensors, each called `name`.FIELD.
json put_grid(const std::string& name, const Grid& grid, std::map<std::string, TensorInfo>& tensors);
// The grid back: not quantized where `about`, GRID, is null. InputError, naming file and tensor, for a kind that does
// not exist, and fields that are missing, out of range, or not those of this kind.
Grid get_grid(const Loader& at, const json& about);

// A weight [out, in] that is rounded to the grid as `name`.qweight. Error when it has values that are not on it.
void put_codes(const std::string& name, const Grid& grid, const Weight& weight,
               std::map<std::string, TensorInfo>& tensors);
// Its values, decoded on all threads. InputError when the grid is none of weights or does not fit [out, in], or when
// the codes are missing or of another shape.
Tensor get_codes(const Loader& at, const Grid& grid, int64_t out, int64_t in);

}  // namespace bcq
