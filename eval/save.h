// A quantized model written as a folder that can be loaded in its place: weights as packed codes, the rest as in the
// model it was made from. See engine/file/packed_file.h for the two formats of language models, and
// engine/file/grid_file.h for that of vision models; or a vision model as an ONNX file, for other programs.
#pragma once
#include <map>
#include <string>

#include "engine/file/json_fwd.h"
#include "engine/file/packed_file.h"
#include "models/model.h"
#include "quant/recipe.h"

namespace bcq {

struct SaveOptions {
  std::string directory;       // empty: nothing is saved
  std::string format = "bcq";  // bcq: this engine's own, which holds everything; language: gptq, GPTQ's; vision: onnx
  bool force = false;          // replace a folder that this program did not write

  bool is_gptq() const { return format == "gptq"; }
  bool is_onnx() const { return format == "onnx"; }
};

// The tensors that hold what quantization made of block i, by the names of its layers and points: packed
// weights, biases that are not those of the float model, compensations per position. Biases are F32 in the own
// format; in GPTQ's a layer's are F16 and must be that already, see round_to_gptq().
void put_block(Model& model, int i, PackedFormat::Kind kind, std::map<std::string, TensorInfo>& tensors);
// Put them back into a float model. InputError when they are not this block's.
void get_block(Model& model, int i, const Loader& from);

// DIR.partial, where an unfinished run keeps its blocks.
std::string partial_folder(const SaveOptions& save);

// Before anything is computed: UsageError unless the folder may be written. `source`: of the model's weights.
void check_target(const SaveOptions& save, const std::string& source);
// UsageError unless the format can hold the model once it is quantized and compensated as the recipe says. GPTQ's
// format itself takes any bias, but transformers gives a layer one only where the family has it, or a key of its
// configuration, which is set then (biases that no compensation made are zeros).
void check_format(const SaveOptions& save, Model& model, const Recipe& recipe);

// Round in a quantized model what GPTQ's format rounds: a layer's bias to 16 bits, other tensors as the file the model
// was loaded from has them. save_model() does it, too.
void round_to_gptq(Model& model);

struct Saved {
  int64_t bytes_before = 0, bytes = 0;  // of all tensors
  // Of the quantized weights: codes, scales, zero points, groups, compensations; 0: not counted.
  double bits_per_weight = 0;
};
// Write a quantized model, with the rest of the file it was loaded from, whole or not at all. What storage rounds
// (biases in GPTQ's format) is rounded in `model` too, which thereby becomes what the folder holds. `facts` goes into
// the tensors' metadata: how it was made.
Saved save_model(Model& model, const SaveOptions& save, const json& facts);
// The same of a vision model: packed codes, all grids and compensations (engine/file/grid_file.h), with the recipe it
// was made by. Error when a weight has values that are not on its grid.
Saved save_vision(Model& model, const SaveOptions& save, const Recipe& recipe);

// A vision model, float or quantized as the recipe says, as DIR/model.onnx (engine/file/onnx_graph.h) with its own
// configuration, labels and preprocessing beside it. The file's metadata has the program, the recipe and the model.
// UsageError as onnx_bytes() and Model::onnx() have it; Error when a weight has values that are not on its grid.
Saved save_onnx(Model& model, const SaveOptions& save, const Recipe& recipe);

json to_json(const SaveOptions& save, const Saved& saved);  // of a record
// "saved to DIR (bcq): 0.5 MB, was 4.0 MB; 4.123 bits per quantized weight"; the last where that is known
std::string saved_text(const SaveOptions& save, const Saved& saved);

}  // namespace bcq
