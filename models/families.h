// The families of networks, each in the file of its name: what a checkpoint's config says becomes a Model. All throw
// InputError.
#pragma once
#include "models/timm.h"

namespace bcq {

std::unique_ptr<Model> load_vit(const VisionSource& source, const SafeTensors& file, ModelInfo info);
std::unique_ptr<Model> load_swin(const VisionSource& source, const SafeTensors& file, ModelInfo info);

// Of language models; config: a Hugging Face config.json, read from `where`; root: all tensors.
// model_type "opt"
std::unique_ptr<Model> load_opt(const json& config, const std::string& where, const Loader& root, ModelInfo info);
// "bloom"
std::unique_ptr<Model> load_bloom(const json& config, const std::string& where, const Loader& root, ModelInfo info);
// One of is_llama(); a key that is missing has the value transformers gives it in that family.
std::unique_ptr<Model> load_llama(const json& config, const std::string& where, const Loader& root, ModelInfo info);
bool is_llama(const std::string& model_type);  // "llama", "mistral", "qwen2" or "qwen3"

// ALiBi's slope of every head: with c the largest power of two <= heads, 2^(-8 i / c) for i = 1 ... c, then
// every other one of 2c heads, 2^(-4 i / c) for i = 1, 3, 5, ...
std::vector<float> alibi_slopes(int64_t heads);

}  // namespace bcq
