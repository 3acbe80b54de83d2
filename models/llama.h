// LLaMA and the families that share its blocks, as Hugging Face transformers defines them (modeling_llama.py, _mistral,
// _qwen2, _qwen3): RMSNorm before attention and MLP, rotary positions (default, linear, llama3), grouped-query
// attention, SwiGLU, a head of its own or the embedding. Qwen2 has biases at query, key and value, Qwen3 norms of each
// head's queries and keys. Attention looks back at all tokens: a text is at most as long as a sliding window.
// Reads names with and without "model.".
#pragma once
#include "engine/file/json_fwd.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

bool is_llama(const std::string& model_type);  // "llama", "mistral", "qwen2" or "qwen3"

// config: a Hugging Face config.json with such a model_type, read from `where`; a key that is missing has the value
// transformers gives it in that family. root: all tensors. Throws InputError.
std::unique_ptr<Model> load_llama(const json& config, const std::string& where, const Loader& root, ModelInfo info);

}  // namespace bcq
