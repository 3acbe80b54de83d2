// What language models share: tokens become rows of an embedding, which may also be the head.
#pragma once
#include <string>

#include "engine/file/config.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

// The first of `prefixes` ("model.decoder.", "decoder.") under which the file has a tensor called `name`. InputError
// when there is none: not a checkpoint of that family in Hugging Face's names.
std::string find_prefix(const SafeTensors& file, std::initializer_list<const char*> prefixes, const std::string& name,
                        const char* family);

// Entries of a vocabulary (BLOOM has 250,880).
constexpr Range kVocabulary = {1, 1 << 24};

// The embedding [V, E] a file keeps under `name`, under lm_head.weight, or under both; files converted to
// safetensors keep one name of shared tensors and note the others as aliases in their metadata.
// InputError when it is nowhere, or when the two differ; with tie_word_embeddings false both must be there.
Weight load_tied_embedding(const Loader& file, const std::string& name, const Shape& shape, const ConfigReader& config);

// The rows of a batch's tokens: [B, T, E]. InputError for ids that are not in the vocabulary.
Tensor look_up(const Weight& embedding, const Batch& batch, const std::string& model);

// causal_attention() of block i, after the tokens in ctx.cache where there is one.
Tensor attention(const Context& ctx, int i, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                 float scale, const std::vector<float>& slopes = {});

// By transformers' name. InputError naming `where` for one that is not here.
using Activation = Tensor (*)(const Tensor& x);
Activation activation(const std::string& name, const std::string& where);

void require_heads(int64_t hidden, int64_t heads, const std::string& where);  // InputError unless hidden is divisible

}  // namespace bcq
