// How checkpoints keep packed weights: the format of GPTQ (AutoGPTQ, GPTQModel, transformers, vLLM), and this
// engine's own, which is the same with room for what that one has not: 5, 6 and 7 bits, sizes that are no
// multiples of 32, scales in float32, compensations per position.
//
// A linear layer X of K inputs and N outputs whose columns form G groups, b bits (words as in
// engine/gemm/gemm_packed.h):
//               GPTQ                                     own
//   X.qweight   I32 [K/32 b, N]                          I32 [N, ceil(K/32) b]
//   X.qzeros    I32 [G, N/32 b]; in v1 less 1            I32 [G, ceil(N/32) b]
//   X.scales    F16 [G, N]                               F16 where that is exact, else F32 [N, G]
//   X.g_idx     I32 [K]; may be absent when in order     I32 [K] where columns are not in order
//   X.bias      F16 [N]                                  F32 [N]
//   X.bc        -                                        F32 [T, N], a compensation per position, of a block too
// Binarized ones (engine/grid/binary.h) are in its own format alone, in place of qweight, qzeros and scales:
//   X.signs     I32 [N, ceil(K/32)], X.parts the same, X.salient I32 [ceil(K/32)], X.levels F16 [N, blocks, 8]
// The rest of the model is stored as in any checkpoint. Facts from the packing and dequantizing code of
// GPTQModel and AutoGPTQ (nn_modules/qlinear).
#pragma once
#include <map>
#include <memory>
#include <string>

#include "engine/file/json_fwd.h"
#include "engine/file/safetensors.h"
#include "engine/gemm/gemm_packed.h"
#include "engine/grid/binary.h"

namespace bcq {

struct PackedFormat {
  enum class Kind { Own, GptqV1, GptqV2, Grids };  // Grids: engine/file/grid_file.h
  Kind kind = Kind::Own;
  int bits = 4;
  int64_t group = -1;     // columns that share a scale; -1: a whole row
  bool by_layer = false;  // some layers differ ("dynamic"); what they have follows from their tensors
  // What "sym" says: all zero points are 2^(bits-1). Unknown: nothing says it for all layers.
  enum class Symmetry { Unknown, Yes, No };
  Symmetry symmetry = Symmetry::Unknown;
  int64_t positions = 0;                        // T of compensations per position; 0: there are none
  std::string where;                            // the file that says so, for messages
  std::shared_ptr<const json> grids = nullptr;  // of Grids: the quantization_config
};

// How `file` keeps packed weights, as "quantization_config" of config.json, or quantize_config.json in the same folder,
// says; null when there is neither. InputError for formats that are not read here, by name, and when file and
// configuration disagree on whether weights are packed, or the two configurations on how.
std::shared_ptr<const PackedFormat> read_packed_format(const json& config, const std::string& where,
                                                       const std::string& folder, const SafeTensors& file);

// Whether the layer at this place is packed.
bool has_packed(const Loader& at);
// Its packed weight [out, in]. InputError, naming file and tensor, when a tensor is missing, does not fit the others or
// the configuration, or counts groups that do not exist. Zero points of a symmetric quantization are read as they are
// stored, less 1 or not, whatever the name of the format says: the two are told apart by their value.
PackedWeight get_packed(const Loader& at, int64_t out, int64_t in);

// Whether what is packed at this place is binarized; it [out, in]. InputError as of get_packed().
bool has_binary(const Loader& at);
std::shared_ptr<const BinaryPlanes> get_binary(const Loader& at, int64_t out, int64_t in);

// The compensation per position [T, width] of the layer or block at this place; empty when there is none.
Tensor get_bc(const Loader& at, int64_t width);

// The tensors of layer `name`, as above, into `tensors`. Error when the format cannot hold it.
void put_packed(const std::string& name, const PackedWeight& weight, PackedFormat::Kind kind,
                std::map<std::string, TensorInfo>& tensors);
void put_binary(const std::string& name, const BinaryPlanes& planes, std::map<std::string, TensorInfo>& tensors);

}  // namespace bcq
