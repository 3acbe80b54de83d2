// What the vision families share: reading timm's config.json, and the map from Hugging Face
// transformers' form of the same networks (ViTForImageClassification, DeiT..., Swin...) to timm's.
#pragma once
#include <set>
#include <string>

#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

// A checkpoint in timm's terms, wherever it came from.
struct VisionSource {
  json config;        // timm's config.json: architecture, model_args, pretrained_cfg, num_classes
  std::string where;  // the file it was read from, for messages
  NameMap names;      // where timm's tensor names stand in the file; empty: as they are
};

// The same from transformers' config.json (model_type vit, deit or swin) and the preprocessor_config.json in
// `folder` (ImageNet's usual transform when there is none). InputError on what the forward passes lack.
VisionSource from_transformers(const json& config, const std::string& where, const std::string& folder,
                               const SafeTensors& file);

// model_args may hold `known` keys and those of `fixed` with exactly that value. InputError otherwise.
void check_model_args(const json& args, const std::set<std::string>& known, const json& fixed,
                      const std::string& where);

// Fill name, tag, family, outputs and the preprocessing from the config; side: pixels the network takes.
void read_info(const VisionSource& source, int64_t side, ModelInfo& info);

// The checkpoint tag the paper's row of this architecture was measured with, "" when it has no such row.
std::string tag_of_paper(const std::string& architecture);

}  // namespace bcq
