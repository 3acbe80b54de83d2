#include "models/opt.h"

#include <cmath>
#include <cstring>

#include "engine/kernels.h"
#include "engine/ops.h"
#include "engine/parallel.h"
#include "models/layers.h"

namespace bcq {
namespace {

constexpr float kEps = 1e-5f;
constexpr int64_t kPositionOffset = 2;  // OPTLearnedPositionalEmbedding keeps two unused rows in front

struct OptConfig {
  int64_t hidden, layers, heads, ffn, vocab, positions;
};

struct Block {
  Norm self_attn_layer_norm, final_layer_norm;
  Site q_proj, k_proj, v_proj, out_proj, fc1, fc2;
};

class Opt : public Model {
 public:
  Opt(const OptConfig& config, const Loader& decoder, const Tensor& embedding, const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  // ids [B, T] -> [B, T, D]
  Tensor embed(const Context&, const Batch& batch) const override {
    const int64_t T = batch.length, D = config_.hidden;
    require(static_cast<int64_t>(batch.ids.size()) == batch.windows * T && T > 0,
            "%zu ids are not %lld windows of %lld", batch.ids.size(), static_cast<long long>(batch.windows),
            static_cast<long long>(T));
    require_input(T <= config_.positions, "a window of %lld tokens, but %s has %lld positions",
                  static_cast<long long>(T), info_.name.c_str(), static_cast<long long>(config_.positions));
    Tensor x = Tensor::uninitialized({batch.windows, T, D});
    for (int64_t i = 0; i < batch.windows * T; ++i) {
      const int32_t id = batch.ids[static_cast<size_t>(i)];
      require_input(id >= 0 && id < config_.vocab, "token id %d is not in the vocabulary of %s (%lld entries)", id,
                    info_.name.c_str(), static_cast<long long>(config_.vocab));
      kernels().add(embed_tokens_.data + id * D, embed_positions_.data + (i % T + kPositionOffset) * D, x.data + i * D,
                    D);
    }
    return x;
  }

  // x [B, T, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const Block& b = blocks_[static_cast<size_t>(i)];
    const Norm &ln_a = b.self_attn_layer_norm, &ln_b = b.final_layer_norm;

    const Tensor u = layer_norm(nullptr, x0, ln_a.weight, ln_a.bias, kEps);
    const Tensor q = b.q_proj.run(ctx, u), k = b.k_proj.run(ctx, u), v = b.v_proj.run(ctx, u);
    const float s = 1.f / std::sqrt(static_cast<float>(config_.hidden / config_.heads));
    const Tensor x1 = add(nullptr, x0, b.out_proj.run(ctx, causal_attention(q, k, v, config_.heads, s)));

    const Tensor h = relu(b.fc1.run(ctx, layer_norm(nullptr, x1, ln_b.weight, ln_b.bias, kEps)));  // [B, T, F]
    return add(nullptr, x1, b.fc2.run(ctx, h));
  }

  Tensor head(const Context&, const Tensor& x) const override {  // [B, T, D] -> [B, T, V]; never quantized
    return linear(nullptr, layer_norm(nullptr, x, final_layer_norm_.weight, final_layer_norm_.bias, kEps),
                  embed_tokens_, Tensor{});
  }

  std::vector<Site*> sites(int i) override {
    if (i < 0 || i >= depth()) return {};
    Block& b = blocks_[static_cast<size_t>(i)];
    return {&b.q_proj, &b.k_proj, &b.v_proj, &b.out_proj, &b.fc1, &b.fc2};
  }

 private:
  OptConfig config_;
  Tensor embed_tokens_, embed_positions_;  // [V, D], [positions + 2, D]
  std::vector<Block> blocks_;
  Norm final_layer_norm_;
};

Opt::Opt(const OptConfig& c, const Loader& decoder, const Tensor& embedding, const ModelInfo& info)
    : config_(c), embed_tokens_(embedding) {
  info_ = info;
  const int64_t D = c.hidden;
  embed_positions_ = decoder.get("embed_positions.weight", {c.positions + kPositionOffset, D});
  info_.parameters = embed_tokens_.size() + embed_positions_.size() + 2 * D;
  for (int64_t i = 0; i < c.layers; ++i) {
    const Loader at = decoder.sub("layers").sub(i), attn = at.sub("self_attn");
    const std::string name = "layers." + std::to_string(i) + ".";
    Block b;
    b.self_attn_layer_norm = load_norm(at.sub("self_attn_layer_norm"), D);
    b.q_proj = load_linear(attn, Role::Query, name + "self_attn.q_proj", D, D);
    b.k_proj = load_linear(attn, Role::Key, name + "self_attn.k_proj", D, D);
    b.v_proj = load_linear(attn, Role::Value, name + "self_attn.v_proj", D, D);
    b.out_proj = load_linear(attn, Role::Proj, name + "self_attn.out_proj", D, D);
    b.final_layer_norm = load_norm(at.sub("final_layer_norm"), D);
    b.fc1 = load_linear(at, Role::Fc1, name + "fc1", c.ffn, D);
    b.fc2 = load_linear(at, Role::Fc2, name + "fc2", D, c.ffn);
    info_.parameters += 4 * D;
    for (const Site* s : {&b.q_proj, &b.k_proj, &b.v_proj, &b.out_proj, &b.fc1, &b.fc2})
      info_.parameters += s->weight.size() + s->bias.size();
    blocks_.push_back(b);
  }
  final_layer_norm_ = load_norm(decoder.sub("final_layer_norm"), D);
  for (const std::string& unused : decoder.unused())
    throw InputError(format("%s: tensor %s is not part of an OPT with %lld layers", decoder.file().path().c_str(),
                            unused.c_str(), static_cast<long long>(c.layers)));
}

// The embedding, which is also the head: files keep it under one name, the other, or both.
Tensor tied_embedding(const Loader& file, const std::string& decoder, const Shape& shape) {
  const std::string name = decoder + "embed_tokens.weight";
  if (file.has(name)) {
    const Tensor embedding = file.get(name, shape);
    if (file.has("lm_head.weight")) {
      const Tensor head = file.get("lm_head.weight", shape);
      require_input(std::memcmp(head.data, embedding.data, static_cast<size_t>(head.size()) * 4) == 0,
                    "%s: lm_head.weight differs from %s: OPT ties them", file.file().path().c_str(), name.c_str());
    }
    return embedding;
  }
  // Converted files keep the alphabetically first name of shared tensors and note the dropped one.
  const auto& metadata = file.file().metadata();
  const auto alias = metadata.find(name);
  if (alias != metadata.end() && file.has(alias->second)) return file.get(alias->second, shape);
  return file.get(file.has("lm_head.weight") ? "lm_head.weight" : name, shape);
}

void refuse_other_forms(const json& config, const std::string& where) {
  const std::pair<const char*, json> only[] = {
      {"do_layer_norm_before", true}, {"_remove_final_layer_norm", false},     {"activation_function", "relu"},
      {"enable_bias", true},          {"layer_norm_elementwise_affine", true}, {"tie_word_embeddings", true}};
  for (const auto& [key, value] : only) {
    const json found = config.value(key, value);
    require_input(found == value, "%s: %s = %s is not supported (only %s)", where.c_str(), key, found.dump().c_str(),
                  value.dump().c_str());
  }
}

}  // namespace

std::unique_ptr<Model> load_opt(const json& config, const std::string& where, const SafeTensors& file, ModelInfo info) {
  refuse_other_forms(config, where);
  require_input(!config.contains("quantization_config"),
                "%s: this checkpoint is already quantized (quantization_config)", where.c_str());
  OptConfig c;
  c.hidden = get<int64_t>(config, "hidden_size", where);
  c.layers = get<int64_t>(config, "num_hidden_layers", where);
  c.heads = get<int64_t>(config, "num_attention_heads", where);
  c.ffn = get<int64_t>(config, "ffn_dim", where);
  c.vocab = get<int64_t>(config, "vocab_size", where);
  c.positions = get<int64_t>(config, "max_position_embeddings", where);
  const int64_t embed_dim = get_or(config, "word_embed_proj_dim", c.hidden, where);
  require_input(embed_dim == c.hidden,
                "%s: word_embed_proj_dim %lld differs from hidden_size %lld: that form is not supported", where.c_str(),
                static_cast<long long>(embed_dim), static_cast<long long>(c.hidden));
  require_input(
      c.hidden > 0 && c.layers > 0 && c.heads > 0 && c.hidden % c.heads == 0 && c.ffn > 0 && c.vocab > 0 &&
          c.positions > 0,
      "%s: hidden_size %lld, num_hidden_layers %lld, num_attention_heads %lld, ffn_dim %lld do not make an OPT",
      where.c_str(), static_cast<long long>(c.hidden), static_cast<long long>(c.layers),
      static_cast<long long>(c.heads), static_cast<long long>(c.ffn));
  info.family = Family::Language;
  info.outputs = c.vocab;
  info.max_length = c.positions;

  const bool prefixed = file.has("model.decoder.embed_positions.weight");
  const std::string prefix = prefixed ? "model.decoder." : "decoder.";
  require_input(
      file.has(prefix + "embed_positions.weight"),
      "%s: neither model.decoder.embed_positions.weight nor decoder.embed_positions.weight is there: not an OPT "
      "checkpoint in Hugging Face's names",
      file.path().c_str());
  const Loader root(file);
  const Tensor embedding = tied_embedding(root, prefix, {c.vocab, c.hidden});
  return std::make_unique<Opt>(c, prefixed ? root.sub("model").sub("decoder") : root.sub("decoder"), embedding, info);
}

}  // namespace bcq
