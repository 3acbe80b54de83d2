// Vision Transformer as timm defines it (vision_transformer.py; "An Image is Worth
// 16x16 Words"): class token, learned positions, pre-norm blocks, no pooling.
// Refuses what would need another forward pass: average pooling, LayerScale,
// register tokens, qk-norm, distillation tokens.
#pragma once
#include "engine/json.h"
#include "engine/safetensors.h"
#include "models/model.h"

namespace bcq {

// config: a timm hub config.json, read from config_path. Throws InputError.
std::unique_ptr<Model> load_vit(const json& config, const std::string& config_path, const SafeTensors& file,
                                ModelInfo info);

}  // namespace bcq
