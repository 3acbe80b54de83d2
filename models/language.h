// What OPT and BLOOM share: tokens become rows of an embedding, which is also the head.
#pragma once
#include <string>

#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "models/model.h"

namespace bcq {

// The first of `prefixes` ("model.decoder.", "decoder.") under which the file has a tensor called `name`. InputError
// when there is none: not a checkpoint of that family in Hugging Face's names.
std::string find_prefix(const SafeTensors& file, std::initializer_list<const char*> prefixes, const std::string& name,
                        const char* family);

// The embedding [V, E] a file keeps under `name`, under lm_head.weight, or under both; files converted to
// safetensors keep one name of shared tensors and note the others as aliases in their metadata.
// InputError when it is nowhere, or when the two differ.
Weight load_tied_embedding(const Loader& file, const std::string& name, const Shape& shape);

// The rows of a batch's tokens: [B, T, E]. InputError for ids that are not in the vocabulary.
Tensor look_up(const Weight& embedding, const Batch& batch, const std::string& model);

// causal_attention() of block i, after the tokens in ctx.cache where there is one.
Tensor attention(const Context& ctx, int i, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                 float scale, const std::vector<float>& slopes = {});

// By transformers' name. InputError naming `where` for one that is not here.
using Activation = Tensor (*)(const Tensor& x);
Activation activation(const std::string& name, const std::string& where);

void require_tied(const json& config, const std::string& where);              // InputError for a head of its own
void require_heads(int64_t hidden, int64_t heads, const std::string& where);  // InputError unless hidden is divisible
// A positive number a config keeps under one of several keys. InputError naming the first when there is none.
int64_t get_size(const json& config, std::initializer_list<const char*> keys, const std::string& where);

}  // namespace bcq
