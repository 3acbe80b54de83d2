// What the vision families share: reading timm's config.json, the map from Hugging Face transformers' form of the same
// networks (ViTForImageClassification, DeiT..., Swin...) to timm's, and how a checkpoint's images become pixels.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/file/config.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

constexpr Range kSide = {1, 8192};       // pixels
using Notes = std::vector<std::string>;  // what a person should know of how a model was read

// A checkpoint in timm's terms, wherever it came from.
struct VisionSource {
  std::shared_ptr<const json> config;  // timm's config.json: architecture, model_args, pretrained_cfg, num_classes
  std::string where;                   // the file it was read from, for messages
  NameMap names;                       // where timm's tensor names stand in the file; empty: as they are
  std::optional<ImageConfig> image;    // where pretrained_cfg does not say it
  std::shared_ptr<const PackedFormat> packed = nullptr;  // of a model that was saved quantized; its names are timm's
  bool is_dinov2 = false;  // transformers' Dinov2, with a head and positions of its own kind
  Notes notes;
};

// The same from transformers' config.json (model_type vit, deit, swin, dinov2, dinov2_with_registers or timm_wrapper)
// and the preprocessor_config.json in `folder`. InputError on what the forward passes lack. has_own_names: the tensors
// are called as the engine calls them, as those of a saved model are.
VisionSource from_transformers(const json& config, const std::string& where, const std::string& folder,
                               const SafeTensors& file, bool has_own_names);

// timm's rule (data/config.py, resolve_data_config with the test sizes, as validate.py has it) for a network that takes
// side x side pixels. As below, every key is obeyed or refused with an InputError that names file and key; what is
// missing has the default its library documents, and a note says so.
ImageConfig timm_preprocessing(const ConfigReader& pretrained, int64_t side, Notes& notes);

// preprocessor_config.json in `folder`, as transformers' image processor of that name does it in numpy and Pillow;
// without the file the defaults of model_type ("vit", "deit", "swin", "dinov2"), at the network's size. Images of
// another size than `side` are an InputError, unless the network takes squares of any size.
ImageConfig transformers_preprocessing(const std::string& folder, const std::string& model_type, int64_t side,
                                       Notes& notes, bool any_side = false);

// Ranges of what a network is made of; their products do not overflow.
constexpr Range kPatch = {1, 1024}, kHeads = {1, 4096}, kRegisters = {0, 1024};
constexpr double kLeastRatio = 1e-3, kMostRatio = 1e3;  // of an MLP's width to the network's

// Of a name from its front: a word, a number without a leading zero of up to `digits` digits (0: there is none).
bool take(std::string_view& name, std::string_view word);
int64_t take_number(std::string_view& name, size_t digits);
// One of tiny, small, base, large, as an index; -1: none.
int take_size(std::string_view& name);

// Fill name, tag, family, outputs, labels, notes and the preprocessing from the config; side: pixels the network takes.
void read_info(const VisionSource& source, int64_t side, ModelInfo& info);

// The checkpoint tag the paper's row of this architecture was measured with, "" when it has no such row.
std::string tag_of_paper(const std::string& architecture);

}  // namespace bcq
