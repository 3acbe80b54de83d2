// BLOOM as Hugging Face transformers defines it (modeling_bloom.py): no positions but ALiBi's, a norm after the
// embedding, query, key and value fused head by head, pre-norm blocks with GELU, logits through the embedding.
// Reads names with and without "transformer.", the tied embedding under either name, and old and new keys of
// the config.
#pragma once
#include "engine/file/json_fwd.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

// ALiBi's slope of every head: with c the largest power of two <= heads, 2^(-8 i / c) for i = 1 ... c, then
// every other one of 2c heads, 2^(-4 i / c) for i = 1, 3, 5, ...
std::vector<float> alibi_slopes(int64_t heads);

// config: a Hugging Face config.json with model_type "bloom", read from `where`; root: all tensors. Throws InputError.
std::unique_ptr<Model> load_bloom(const json& config, const std::string& where, const Loader& root, ModelInfo info);

}  // namespace bcq
