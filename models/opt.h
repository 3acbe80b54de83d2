// OPT as Hugging Face transformers defines it (modeling_opt.py): learned positions offset by 2, decoder blocks
// with the norms before (pre-norm) or after (post-norm, the 350M) attention and MLP, ReLU or what the config names,
// an embedding narrower than the blocks where the config has one, logits through the embedding.
// Reads names with and without "model.", and the tied embedding under either name.
#pragma once
#include "engine/file/json_fwd.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

// config: a Hugging Face config.json with model_type "opt", read from `where`; root: all tensors. Throws InputError.
std::unique_ptr<Model> load_opt(const json& config, const std::string& where, const Loader& root, ModelInfo info);

}  // namespace bcq
