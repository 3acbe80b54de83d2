// OPT as Hugging Face transformers defines it (modeling_opt.py): learned positions offset by 2, decoder blocks
// with the norms before (pre-norm) or after (post-norm, the 350M) attention and MLP, ReLU or what the config names,
// an embedding narrower than the blocks where the config has one, logits through the embedding.
// Reads names with and without "model.", and the tied embedding under either name.
#include <algorithm>
#include <cmath>

#include "engine/kernels/kernels.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "models/families.h"
#include "models/language.h"
#include "models/layers.h"

namespace bcq {
namespace {

constexpr float kEps = 1e-5f;
constexpr int64_t kPositionOffset = 2;  // OPTLearnedPositionalEmbedding keeps two unused rows in front

struct OptConfig {
  int64_t hidden, layers, heads, ffn, vocab, positions, embedding;
  bool pre_norm = true;     // do_layer_norm_before
  bool final_norm = true;   // after the blocks
  bool has_bias = true;     // of the linear layers
  bool affine_norm = true;  // norms have a weight and a bias
  Activation activation = relu;
};

struct Block {
  Norm self_attn_layer_norm, final_layer_norm;
  Layer q_proj, k_proj, v_proj, out_proj, fc1, fc2;
};

class Opt : public Model {
 public:
  Opt(const OptConfig& config, const Loader& decoder, const Weight& embedding, const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  // ids [B, T] -> [B, T, D]
  Tensor embed(const Context& ctx, const Batch& batch) const override {
    const int64_t T = batch.length, D = config_.hidden, first = ctx.cache ? ctx.cache->length : 0;
    require_input(first + T <= config_.positions, "a window of %d tokens, but %s has %d positions", first + T,
                  info_.name, config_.positions);
    Tensor x = look_up(embed_tokens_, batch, info_.name);
    if (!project_in_.empty()) x = linear(nullptr, x, project_in_, Tensor{});
    for (int64_t i = 0; i < batch.windows * T; ++i)
      kernels().add(x.data + i * D, embed_positions_.data + (first + i % T + kPositionOffset) * D, x.data + i * D, D);
    return x;
  }

  // x [B, T, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const Block& b = blocks_[at(i)];
    const Norm &ln_a = b.self_attn_layer_norm, &ln_b = b.final_layer_norm;
    const bool pre = config_.pre_norm;

    const Tensor u = pre ? norm(ctx, ln_a, x0) : x0;
    const Tensor q = b.q_proj.run(ctx, u), k = b.k_proj.run(ctx, u), v = b.v_proj.run(ctx, u);
    const float s = 1.f / std::sqrt(static_cast<float>(config_.hidden / config_.heads));
    Tensor x1 = add(nullptr, x0, b.out_proj.run(ctx, attention(ctx, i, q, k, v, config_.heads, s)));
    if (!pre) x1 = norm(ctx, ln_a, x1);

    const Tensor h = config_.activation(b.fc1.run(ctx, pre ? norm(ctx, ln_b, x1) : x1));  // [B, T, F]
    const Tensor x2 = add(nullptr, x1, b.fc2.run(ctx, h));
    return pre ? x2 : norm(ctx, ln_b, x2);
  }

  Tensor head(const Context& ctx, const Tensor& x) const override {  // [B, T, D] -> [B, T, V]; never quantized
    Tensor y = config_.final_norm ? norm(ctx, final_layer_norm_, x) : x;
    if (!project_out_.empty()) y = linear(nullptr, y, project_out_, Tensor{});
    return linear(nullptr, y, embed_tokens_, Tensor{});
  }

  Part part(int i) override {
    if (i < 0 || i >= depth()) return {i < 0 ? Part::Kind::Embedding : Part::Kind::Head};
    Block& b = blocks_[at(i)];
    Part part{Part::Kind::Block, "layers." + std::to_string(i)};
    // After the norms of post-norm blocks the residual branches off: nothing can be folded into them, nor into norms
    // without parameters.
    const bool folds = config_.pre_norm && config_.affine_norm;
    Norm *ln_a = folds ? &b.self_attn_layer_norm : nullptr, *ln_b = folds ? &b.final_layer_norm : nullptr;
    part.groups = {{{&b.q_proj, &b.k_proj, &b.v_proj}, {ln_a}},
                   {{&b.out_proj}, {nullptr, &b.v_proj, {}}},
                   {{&b.fc1}, {ln_b}},
                   {{&b.fc2}, {nullptr, config_.activation == Activation(relu) ? &b.fc1 : nullptr, {}}}};
    part.is_sum = config_.pre_norm;
    part.output = config_.pre_norm
                      ? block_point(i, part.name, &b.fc2.bias, b.fc2.name + ".bias")
                      : block_point(i, part.name, &b.final_layer_norm.bias, part.name + ".final_layer_norm.bias");
    return part;
  }

 private:
  static Tensor norm(const Context& ctx, const Norm& n, const Tensor& x) {
    return layer_norm(nullptr, x, n.weight, n.bias.in(ctx.precision), kEps);
  }
  Norm read_norm(const Loader& at) const;

  OptConfig config_;
  Weight embed_tokens_;              // [V, E]
  Weight project_in_, project_out_;  // [D, E], [E, D]; empty where E = D
  Tensor embed_positions_;           // [positions + 2, D]
  std::vector<Block> blocks_;
  Norm final_layer_norm_;
};

Norm Opt::read_norm(const Loader& at) const {
  const int64_t D = config_.hidden;
  if (config_.affine_norm) return load_norm(at, D);
  Norm plain{Tensor({D}), {Tensor({D}), {}}};
  std::fill_n(plain.weight.data, D, 1.f);
  return plain;
}

Opt::Opt(const OptConfig& c, const Loader& decoder, const Weight& embedding, const ModelInfo& info)
    : config_(c), embed_tokens_(embedding) {
  info_ = info;
  const int64_t D = c.hidden, E = c.embedding;
  if (E != D) {
    project_in_ = decoder.get_weight("project_in.weight", {D, E});
    project_out_ = decoder.get_weight("project_out.weight", {E, D});
  }
  embed_positions_ = decoder.get("embed_positions.weight", {c.positions + kPositionOffset, D});
  for (int64_t i = 0; i < c.layers; ++i) {
    const Loader at = decoder.sub("layers").sub(i), attn = at.sub("self_attn");
    const std::string name = "layers." + std::to_string(i) + ".";
    Block b;
    b.self_attn_layer_norm = read_norm(at.sub("self_attn_layer_norm"));
    b.q_proj = load_linear(attn, Role::Query, name + "self_attn.q_proj", D, D, c.has_bias);
    b.k_proj = load_linear(attn, Role::Key, name + "self_attn.k_proj", D, D, c.has_bias);
    b.v_proj = load_linear(attn, Role::Value, name + "self_attn.v_proj", D, D, c.has_bias);
    b.out_proj = load_linear(attn, Role::Proj, name + "self_attn.out_proj", D, D, c.has_bias);
    b.final_layer_norm = read_norm(at.sub("final_layer_norm"));
    b.fc1 = load_linear(at, Role::Fc1, name + "fc1", c.ffn, D, c.has_bias);
    b.fc2 = load_linear(at, Role::Fc2, name + "fc2", D, c.ffn, c.has_bias);
    blocks_.push_back(b);
    block_added_.push_back(get_bc(at, D));
  }
  if (c.final_norm) final_layer_norm_ = read_norm(decoder.sub("final_layer_norm"));
  // "version" is fairseq's; a final norm that the config removes is left over from an older conversion.
  const std::vector<std::string> ignored = {"decoder.version", "decoder.final_layer_norm."};
  info_.parameters = count_parameters(decoder, ignored, info_.name);
}

}  // namespace

std::unique_ptr<Model> load_opt(const json& config, const std::string& where, const Loader& root, ModelInfo info) {
  const ConfigReader in(config, where);
  OptConfig c;
  c.hidden = in.integer({"hidden_size"}, kWidth);
  c.layers = in.integer({"num_hidden_layers"}, kDepth);
  c.heads = in.integer({"num_attention_heads"});
  c.ffn = in.integer({"ffn_dim"});
  c.vocab = in.integer({"vocab_size"}, kVocabulary);
  c.positions = in.integer({"max_position_embeddings"});
  c.embedding = in.integer({"word_embed_proj_dim"}, kWidth, c.hidden);
  c.pre_norm = in.flag("do_layer_norm_before", true);
  c.final_norm = c.pre_norm && !in.flag("_remove_final_layer_norm", false);
  c.has_bias = in.flag("enable_bias", true);
  c.affine_norm = in.flag("layer_norm_elementwise_affine", true);
  c.activation = activation(in.text("activation_function", "relu"), where);
  require_heads(c.hidden, c.heads, where);
  info.outputs = c.vocab;
  info.max_length = c.positions;

  const std::string prefix = find_prefix(root.file(), {"model.decoder.", "decoder."}, "embed_positions.weight", "OPT");
  const Weight embedding = load_tied_embedding(root, prefix + "embed_tokens.weight", {c.vocab, c.embedding}, in);
  return std::make_unique<Opt>(c, root.sub(prefix.substr(0, prefix.size() - 1)), embedding, info);
}

}  // namespace bcq
