// OPT as Hugging Face transformers defines it (modeling_opt.py): learned positions
// offset by 2, pre-norm decoder blocks with ReLU, logits through the embedding.
// Reads names with and without "model.", and the tied embedding under either name.
// Refuses the post-norm form (350m).
#pragma once
#include "engine/json.h"
#include "engine/safetensors.h"
#include "models/model.h"

namespace bcq {

// config: a Hugging Face config.json with model_type "opt", read from config_path. Throws InputError.
std::unique_ptr<Model> load_opt(const json& config, const std::string& config_path, const SafeTensors& file,
                                ModelInfo info);

}  // namespace bcq
