#include "models/language.h"

#include <algorithm>
#include <cstring>

#include "engine/core/check.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"

namespace bcq {

std::string find_prefix(const SafeTensors& file, std::initializer_list<const char*> prefixes, const std::string& name,
                        const char* family) {
  std::string tried;
  for (const char* prefix : prefixes) {
    if (file.has(prefix + name)) return prefix;
    tried += (tried.empty() ? "neither " : " nor ") + (prefix + name);
  }
  throw InputError(format("%s: %s is there: not a %s checkpoint in Hugging Face's names", file.path(), tried, family));
}

namespace {

// Whether two tensors have the same values, whatever they are stored as.
bool equal(const SafeTensors& file, const std::string& a, const std::string& b) {
  const TensorInfo &x = file.tensors().at(a), &y = file.tensors().at(b);
  if (x.shape != y.shape) return false;
  if (x.dtype == y.dtype) return std::memcmp(x.bytes, y.bytes, x.size()) == 0;
  const Tensor s = file.get(a), t = file.get(b);
  return std::equal(s.data, s.data + s.size(), t.data);
}

}  // namespace

Weight load_tied_embedding(const Loader& file, const std::string& name, const Shape& shape,
                           const ConfigReader& config) {
  const std::string head = "lm_head.weight";
  const bool both = file.has(name) && file.has(head);
  require_input(both || config.flag("tie_word_embeddings", true),
                "%s: tie_word_embeddings is false, but %s does not have both %s and %s: a head of its own is not "
                "supported",
                config.where(), file.file().path(), name, head);
  require_input(!both || equal(file.file(), name, head),
                "%s: lm_head.weight differs from %s: this engine runs models that tie them", file.file().path(), name);
  if (both) file.ignore(head);
  if (file.has(name)) return file.get_weight(name, shape);
  const auto& metadata = file.file().metadata();
  for (const std::string& dropped : {name, head}) {
    const auto alias = metadata.find(dropped);
    if (alias != metadata.end() && file.has(alias->second)) return file.get_weight(alias->second, shape);
  }
  return file.get_weight(file.has(head) ? head : name, shape);
}

Tensor look_up(const Weight& embedding, const Batch& batch, const std::string& model) {
  require(static_cast<int64_t>(batch.ids.size()) == batch.windows * batch.length && batch.length > 0,
          "%d ids are not %d windows of %d", batch.ids.size(), batch.windows, batch.length);
  const int64_t V = embedding.dim(0), E = embedding.dim(1);
  Tensor x = Tensor::uninitialized({batch.windows, batch.length, E}), scratch;
  for (size_t i = 0; i < batch.ids.size(); ++i) {
    const int32_t id = batch.ids[i];
    require_input(id >= 0 && id < V, "token id %d is not in the vocabulary of %s (%d entries)", id, model, V);
    std::memcpy(x.data + static_cast<int64_t>(i) * E, embedding.rows(id, id + 1, scratch),
                static_cast<size_t>(E) * sizeof(float));
  }
  return x;
}

Tensor attention(const Context& ctx, int i, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                 float scale, const std::vector<float>& slopes) {
  if (ctx.is_done()) return Tensor(q.shape);
  return ctx.cache ? cached_attention(*ctx.cache, i, q, k, v, heads, scale, slopes)
                   : causal_attention(q, k, v, heads, scale, slopes);
}

Activation activation(const std::string& name, const std::string& where) {
  if (name == "relu") return relu;
  if (name == "gelu") return [](const Tensor& x) { return gelu_erf(nullptr, x); };
  require_input(name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh",
                "%s: activation_function \"%s\" is not supported (relu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh)",
                where, name);
  return gelu_tanh;
}

void require_heads(int64_t hidden, int64_t heads, const std::string& where) {
  require_input(hidden % heads == 0, "%s: a hidden size of %d is not a multiple of num_attention_heads = %d", where,
                hidden, heads);
}

}  // namespace bcq
