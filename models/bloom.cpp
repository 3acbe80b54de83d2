// BLOOM as Hugging Face transformers defines it (modeling_bloom.py): no positions but ALiBi's, a norm after the
// embedding, query, key and value fused head by head, pre-norm blocks with GELU, logits through the embedding.
// Reads names with and without "transformer.", the tied embedding under either name, and old and new keys of
// the config.
#include <bit>
#include <cmath>
#include <limits>

#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "models/families.h"
#include "models/language.h"
#include "models/layers.h"

namespace bcq {
namespace {

struct BloomConfig {
  int64_t hidden, layers, heads, vocab;
  float eps = 1e-5f;
  bool residual_after_norm = false;  // the residuals are what the norms give, not what they get
};

struct Block {
  Norm input_layernorm, post_attention_layernorm;
  Layer query_key_value, dense, dense_h_to_4h, dense_4h_to_h;
};

class Bloom : public Model {
 public:
  Bloom(const BloomConfig& config, const Loader& file, const Weight& embedding, const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  Tensor embed(const Context&, const Batch& batch) const override {  // ids [B, T] -> [B, T, D]
    return norm(word_embeddings_layernorm_, look_up(word_embeddings_, batch, info_.name));
  }

  // x [B, T, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const Block& b = blocks_[at(i)];
    const int64_t H = config_.heads;

    const Tensor u = norm(b.input_layernorm, x0), qkv = b.query_key_value.run(ctx, u);
    const Tensor q = select_part(qkv, H, 0, 3), k = select_part(qkv, H, 1, 3), v = select_part(qkv, H, 2, 3);
    const float s = 1.f / std::sqrt(static_cast<float>(config_.hidden / H));
    const Tensor a = b.dense.run(ctx, attention(ctx, i, q, k, v, H, s, slopes_));
    const Tensor x1 = add(nullptr, config_.residual_after_norm ? u : x0, a);

    const Tensor m = norm(b.post_attention_layernorm, x1);
    const Tensor h = gelu_tanh(b.dense_h_to_4h.run(ctx, m));  // [B, T, 4D]
    return add(nullptr, config_.residual_after_norm ? m : x1, b.dense_4h_to_h.run(ctx, h));
  }

  Tensor head(const Context&, const Tensor& x) const override {  // [B, T, D] -> [B, T, V]; never quantized
    return linear(nullptr, norm(ln_f_, x), word_embeddings_, Tensor{});
  }

  Part part(int i) override {
    if (i < 0 || i >= depth()) return {i < 0 ? Part::Kind::Embedding : Part::Kind::Head};
    Block& b = blocks_[at(i)];
    Part part{Part::Kind::Block, "h." + std::to_string(i)};
    part.groups = {{{&b.query_key_value}, {&b.input_layernorm}},
                   {{&b.dense}, rows_of(b.query_key_value, 2, config_.heads)},
                   {{&b.dense_h_to_4h}, {&b.post_attention_layernorm}},
                   {{&b.dense_4h_to_h}}};
    if (config_.residual_after_norm)  // what the norms give goes on beside these layers
      for (LayerGroup& group : part.groups) group.source.norm = nullptr;
    part.output = block_point(i, part.name, &b.dense_4h_to_h.bias, b.dense_4h_to_h.name + ".bias");
    part.is_sum = !config_.residual_after_norm;
    return part;
  }

 private:
  Tensor norm(const Norm& n, const Tensor& x) const {
    return layer_norm(nullptr, x, n.weight, n.bias.loaded, config_.eps);
  }

  BloomConfig config_;
  std::vector<float> slopes_;
  Weight word_embeddings_;  // [V, D]
  Norm word_embeddings_layernorm_, ln_f_;
  std::vector<Block> blocks_;
};

Bloom::Bloom(const BloomConfig& c, const Loader& file, const Weight& embedding, const ModelInfo& info)
    : config_(c), slopes_(alibi_slopes(c.heads)), word_embeddings_(embedding) {
  info_ = info;
  const int64_t D = c.hidden;
  word_embeddings_layernorm_ = load_norm(file.sub("word_embeddings_layernorm"), D);
  for (int64_t i = 0; i < c.layers; ++i) {
    const Loader at = file.sub("h").sub(i), attention = at.sub("self_attention"), mlp = at.sub("mlp");
    const std::string name = "h." + std::to_string(i) + ".";
    Block b;
    b.input_layernorm = load_norm(at.sub("input_layernorm"), D);
    b.query_key_value = load_linear(attention, Role::QKV, name + "self_attention.query_key_value", 3 * D, D);
    b.dense = load_linear(attention, Role::Proj, name + "self_attention.dense", D, D);
    b.post_attention_layernorm = load_norm(at.sub("post_attention_layernorm"), D);
    b.dense_h_to_4h = load_linear(mlp, Role::Fc1, name + "mlp.dense_h_to_4h", 4 * D, D);
    b.dense_4h_to_h = load_linear(mlp, Role::Fc2, name + "mlp.dense_4h_to_h", D, 4 * D);
    blocks_.push_back(b);
    block_added_.push_back(get_bc(at, D));
  }
  ln_f_ = load_norm(file.sub("ln_f"), D);
  info_.parameters = count_parameters(file, {"scale_mask_softmax.causal_mask"}, info_.name);  // of older files
}

}  // namespace

std::vector<float> alibi_slopes(int64_t heads) {
  const auto c = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<float> slopes;
  for (int64_t i = 1; i <= c; ++i)
    slopes.push_back(static_cast<float>(std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(c))));
  for (int64_t i = 1; i < 2 * (heads - c); i += 2)
    slopes.push_back(static_cast<float>(std::exp2(-4.0 * static_cast<double>(i) / static_cast<double>(c))));
  return slopes;
}

std::unique_ptr<Model> load_bloom(const json& config, const std::string& where, const Loader& root, ModelInfo info) {
  const ConfigReader in(config, where);
  BloomConfig c;
  c.hidden = in.integer({"hidden_size", "n_embed"}, kWidth);
  c.layers = in.integer({"n_layer", "num_hidden_layers"}, kDepth);
  c.heads = in.integer({"n_head", "num_attention_heads"});
  c.vocab = in.integer({"vocab_size"}, kVocabulary);
  c.eps = static_cast<float>(in.number("layer_norm_epsilon", 0, 1, static_cast<double>(c.eps)));
  c.residual_after_norm = in.flag("apply_residual_connection_post_layernorm", false);
  require_heads(c.hidden, c.heads, where);
  info.outputs = c.vocab;
  info.max_length = std::numeric_limits<int32_t>::max();  // ALiBi has no last position

  const std::string prefix =
      find_prefix(root.file(), {"transformer.", ""}, "word_embeddings_layernorm.weight", "BLOOM");
  const Weight embedding = load_tied_embedding(root, prefix + "word_embeddings.weight", {c.vocab, c.hidden}, in);
  return std::make_unique<Bloom>(c, prefix.empty() ? root : root.sub("transformer"), embedding, info);
}

}  // namespace bcq
