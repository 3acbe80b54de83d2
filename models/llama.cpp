// LLaMA and the families that share its blocks, as Hugging Face transformers defines them (modeling_llama.py, _mistral,
// _qwen2, _qwen3): RMSNorm before attention and MLP, rotary positions (default, linear, llama3), grouped-query
// attention, SwiGLU, a head of its own or the embedding. Qwen2 has biases at query, key and value, Qwen3 norms of each
// head's queries and keys. Attention looks back at all tokens: a text is at most as long as a sliding window.
// Reads names with and without "model.".
#include <algorithm>
#include <cmath>

#include "engine/file/json.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "engine/nn/rotary.h"
#include "models/families.h"
#include "models/language.h"
#include "models/layers.h"

namespace bcq {
namespace {

struct LlamaConfig {
  int64_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, positions, window;
  float eps;
  bool qkv_bias, o_bias, mlp_bias;
  bool head_norms;  // of each head's queries and keys
  Rotary rotary;
};

struct Block {
  Norm input_layernorm, post_attention_layernorm;
  Norm q_norm, k_norm;  // empty where there are none
  Layer q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

class Llama : public Model {
 public:
  // head: [V, D], which may be the embedding.
  Llama(const LlamaConfig& config, const Loader& decoder, const Weight& embedding, const Weight& head,
        const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  // ids [B, T] -> [B, T, D]
  Tensor embed(const Context& ctx, const Batch& batch) const override {
    const int64_t last = ctx.first_position() + batch.length;
    require_input(last <= info_.max_length, "a window of %d tokens, but %s has %d positions", last, info_.name,
                  info_.max_length);
    return look_up(embed_tokens_, batch, info_.name);
  }

  // x [B, T, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const Block& b = blocks_[at(i)];
    const Tensor angles = rotary_angles(frequencies_, ctx.first_position(), x0.dim(1));

    const Tensor u = norm(ctx, b.input_layernorm, x0);
    const Tensor q = b.q_proj.run(ctx, u), k = b.k_proj.run(ctx, u), v = b.v_proj.run(ctx, u);
    const Tensor q1 = rotate(norm_heads(ctx, b.q_norm, q), angles), k1 = rotate(norm_heads(ctx, b.k_norm, k), angles);
    const float s = 1.f / std::sqrt(static_cast<float>(config_.head_dim));
    const Tensor x1 = add(nullptr, x0, b.o_proj.run(ctx, attention(ctx, i, q1, k1, v, config_.heads, s)));

    const Tensor m = norm(ctx, b.post_attention_layernorm, x1);
    const Tensor gate = b.gate_proj.run(ctx, m), up = b.up_proj.run(ctx, m);  // [B, T, F]
    return add(nullptr, x1, b.down_proj.run(ctx, swiglu(gate, up)));
  }

  Tensor head(const Context& ctx, const Tensor& x) const override {  // [B, T, D] -> [B, T, V]; never quantized
    return linear(nullptr, norm(ctx, norm_, x), head_, Tensor{});
  }

  Part part(int i) override {
    if (i < 0 || i >= depth()) return {i < 0 ? Part::Kind::Embedding : Part::Kind::Head};
    Block& b = blocks_[at(i)];
    Part part{Part::Kind::Block, "layers." + std::to_string(i)};
    // A value that several heads mix is several channels of what o_proj is fed, which have no scale each.
    Layer* values = config_.kv_heads == config_.heads ? &b.v_proj : nullptr;
    part.groups = {{{&b.q_proj, &b.k_proj, &b.v_proj}, {&b.input_layernorm}},
                   {{&b.o_proj}, {nullptr, values, {}}},
                   {{&b.gate_proj, &b.up_proj}, {&b.post_attention_layernorm}},
                   {{&b.down_proj}, {nullptr, &b.up_proj, {}}}};
    part.is_sum = true;
    part.output = block_point(i, part.name, &b.down_proj.bias, b.down_proj.name + ".bias");
    return part;
  }

 private:
  Tensor norm(const Context& ctx, const Norm& n, const Tensor& x) const {
    return rms_norm(x, n.weight, n.bias.in(ctx.precision), config_.eps);
  }
  Tensor norm_heads(const Context& ctx, const Norm& n, const Tensor& x) const {  // x [B, T, H*d]
    const int64_t d = config_.head_dim;
    return n.weight.empty() ? x : norm(ctx, n, x.reshaped({x.rows(), x.dim(2) / d, d})).reshaped(x.shape);
  }

  LlamaConfig config_;
  std::vector<float> frequencies_;
  Weight embed_tokens_, head_;  // [V, D]
  std::vector<Block> blocks_;
  Norm norm_;
};

// Without a shift, which folding may make.
Norm load_rms_norm(const Loader& at, int64_t D) { return {at.get("weight", {D}), {Tensor({D}), {}}, at.name(), false}; }

Llama::Llama(const LlamaConfig& c, const Loader& decoder, const Weight& embedding, const Weight& head,
             const ModelInfo& info)
    : config_(c), frequencies_(rotary_frequencies(c.rotary, c.head_dim)), embed_tokens_(embedding), head_(head) {
  info_ = info;
  const int64_t D = c.hidden, Q = c.heads * c.head_dim, KV = c.kv_heads * c.head_dim;
  for (int64_t i = 0; i < c.layers; ++i) {
    const Loader at = decoder.sub("layers").sub(i), attn = at.sub("self_attn"), mlp = at.sub("mlp");
    const std::string name = "layers." + std::to_string(i) + ".";
    Block b;
    b.input_layernorm = load_rms_norm(at.sub("input_layernorm"), D);
    b.q_proj = load_linear(attn, Role::Query, name + "self_attn.q_proj", Q, D, c.qkv_bias);
    b.k_proj = load_linear(attn, Role::Key, name + "self_attn.k_proj", KV, D, c.qkv_bias);
    b.v_proj = load_linear(attn, Role::Value, name + "self_attn.v_proj", KV, D, c.qkv_bias);
    b.o_proj = load_linear(attn, Role::Proj, name + "self_attn.o_proj", D, Q, c.o_bias);
    if (c.head_norms) {
      b.q_norm = load_rms_norm(attn.sub("q_norm"), c.head_dim);
      b.k_norm = load_rms_norm(attn.sub("k_norm"), c.head_dim);
    }
    b.post_attention_layernorm = load_rms_norm(at.sub("post_attention_layernorm"), D);
    b.gate_proj = load_linear(mlp, Role::Fc1, name + "mlp.gate_proj", c.ffn, D, c.mlp_bias);
    b.up_proj = load_linear(mlp, Role::Fc1, name + "mlp.up_proj", c.ffn, D, c.mlp_bias);
    b.down_proj = load_linear(mlp, Role::Fc2, name + "mlp.down_proj", D, c.ffn, c.mlp_bias);
    blocks_.push_back(b);
    block_added_.push_back(get_bc(at, D));
  }
  norm_ = load_rms_norm(decoder.sub("norm"), D);
  info_.parameters = count_parameters(decoder, {"rotary_emb.inv_freq"}, info_.name);  // of older files
}

// rope_scaling of older files, with rope_theta beside it; rope_parameters of newer ones, with rope_theta in it.
Rotary read_rotary(const ConfigReader& in, int64_t positions) {
  const bool newer = in.has("rope_parameters");
  require_input(!newer || !in.has("rope_scaling") || in.value("rope_scaling") == in.value("rope_parameters"),
                "%s: rope_scaling and rope_parameters differ", in.where());
  const ConfigReader rope = in.object(newer ? "rope_parameters" : "rope_scaling");
  constexpr double kMost = 1e12;
  Rotary r;
  r.theta = rope.number("rope_theta", 1, kMost, in.number("rope_theta", 1, kMost, r.theta));
  const std::string type = rope.text("rope_type", rope.text("type", "default"));
  require_input(rope.text("type", type) == type, "%s: rope_type and type of a rotary embedding differ", in.where());
  rope.only({{"partial_rotary_factor", "null|1|1.0"}});
  if (type == "linear" || type == "llama3") {
    r.scaling = type == "linear" ? Rotary::Scaling::Linear : Rotary::Scaling::Llama3;
    if (!rope.has("factor")) rope.refuse("factor", "a number");
    r.factor = rope.number("factor", 1, kMost, 1);
  } else {
    require_input(type == "default", "%s: rope_type %s is not supported (default, linear, llama3)", in.where(),
                  quoted(type));
  }
  if (type == "llama3") {
    for (const char* key : {"low_freq_factor", "high_freq_factor"})
      if (!rope.has(key)) rope.refuse(key, "a number");
    r.low = rope.number("low_freq_factor", 1e-6, kMost, 1);
    r.high = rope.number("high_freq_factor", 1e-6, kMost, 4);
    require_input(r.low < r.high, "%s: high_freq_factor must be above low_freq_factor", in.where());
    r.original = rope.number("original_max_position_embeddings", 1, kMost, static_cast<double>(positions));
  }
  rope.require_known();
  return r;
}

// Tokens a block looks back at, the least of all blocks; 0: all of them.
int64_t read_window(const ConfigReader& in, const std::string& type, bool given, int64_t layers) {
  if (type == "llama") {
    in.only({{"sliding_window", "null"}});
    return 0;
  }
  const int64_t window = in.integer({"sliding_window"}, {}, given ? 0 : 4096);  // null: none
  if (type == "mistral") return window;
  const int64_t first = in.integer({"max_window_layers"}, {0}, 28);
  const std::vector<std::string> types = in.texts("layer_types");
  if (!in.flag("use_sliding_window", false)) return 0;
  const bool slides = types.empty() ? first < layers : std::count(types.begin(), types.end(), "sliding_attention") > 0;
  return slides ? window : 0;
}

// Keys that say nothing of the network, and such as have one value that is run here. All others were asked for.
void require_known(const ConfigReader& in) {
  in.ignore({"_name_or_path", "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id",
             "initializer_range", "is_llama_config", "max_sequence_length", "model_type", "pad_token_id",
             "quantization_config", "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
             "use_cache"});
  in.only({{"hidden_act", "\"silu\""},
           {"partial_rotary_factor", "null|1.0"},
           {"pretraining_tp", "null|1"},
           {"rope_interleaved", "null|false"},
           {"use_mrope", "null|false"}});
  in.require_known();
}

LlamaConfig read_config(const json& config, const ConfigReader& in, const std::string& type) {
  const bool llama = type == "llama", mistral = type == "mistral", qwen2 = type == "qwen2", qwen3 = type == "qwen3";
  LlamaConfig c;
  c.hidden = in.integer({"hidden_size"}, kWidth);
  c.layers = in.integer({"num_hidden_layers"}, kDepth);
  c.heads = in.integer({"num_attention_heads"});
  c.ffn = in.integer({"intermediate_size"});
  c.vocab = in.integer({"vocab_size"}, kVocabulary);
  c.positions = in.integer({"max_position_embeddings"}, {1, 1 << 24}, llama ? 2048 : mistral ? 4096 * 32 : 32768);
  c.eps = static_cast<float>(in.number("rms_norm_eps", 0, 1, 1e-6));
  const bool as_queries = llama || config.contains("num_key_value_heads");  // null
  c.kv_heads = in.integer({"num_key_value_heads"}, {}, as_queries ? c.heads : mistral ? 8 : 32);
  require_input(c.heads % c.kv_heads == 0, "%s: num_attention_heads = %d is not a multiple of num_key_value_heads = %d",
                in.where(), c.heads, c.kv_heads);
  if (!qwen3 && !in.has("head_dim")) require_heads(c.hidden, c.heads, in.where());
  c.head_dim = in.integer({"head_dim"}, {}, qwen3 ? 128 : c.hidden / c.heads);
  require_input(c.head_dim % 2 == 0, "%s: heads of %d channels cannot be turned in pairs", in.where(), c.head_dim);
  c.head_norms = qwen3;
  c.o_bias = (llama || qwen3) && in.flag("attention_bias", false);
  c.qkv_bias = c.o_bias || qwen2;
  c.mlp_bias = llama && in.flag("mlp_bias", false);
  c.rotary = read_rotary(in, c.positions);
  c.window = read_window(in, type, config.contains("sliding_window"), c.layers);
  return c;
}

}  // namespace

bool is_llama(const std::string& type) {
  return type == "llama" || type == "mistral" || type == "qwen2" || type == "qwen3";
}

std::unique_ptr<Model> load_llama(const json& config, const std::string& where, const Loader& root, ModelInfo info) {
  const ConfigReader in(config, where);
  const LlamaConfig c = read_config(config, in, in.text("model_type", "llama"));
  const bool tied = in.flag("tie_word_embeddings", false);
  require_known(in);
  info.outputs = c.vocab;
  info.max_length = c.window > 0 ? std::min(c.window, c.positions) : c.positions;
  if (info.max_length < c.positions)
    info.notes.push_back(
        format("%s: texts of at most %d tokens, its sliding window, instead of %d: attention here looks "
               "back at all tokens",
               where, c.window, c.positions));

  const std::string prefix = find_prefix(root.file(), {"model.", ""}, "layers.0.input_layernorm.weight", "LLaMA");
  const Loader decoder = prefix.empty() ? root : root.sub("model");
  const Shape shape = {c.vocab, c.hidden};
  const Weight embedding = tied ? load_tied_embedding(root, prefix + "embed_tokens.weight", shape, in)
                                : decoder.get_weight("embed_tokens.weight", shape);
  return std::make_unique<Llama>(c, decoder, embedding, tied ? embedding : root.get_weight("lm_head.weight", shape),
                                 info);
}

}  // namespace bcq
