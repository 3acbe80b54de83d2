#include "models/vit.h"

#include "engine/nn/attention.h"
#include "engine/nn/mlp.h"
#include "engine/nn/ops.h"
#include "models/layers.h"

namespace bcq {
namespace {

struct VitConfig {
  int64_t patch, dim, depth, heads, mlp, side;
  float eps = 1e-6f;       // of every layer norm
  bool distilled = false;  // DeiT's second token
};

class Vit : public Model {
 public:
  Vit(const VitConfig& config, const Loader& file, const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  // pixels [B, 3, R, S] -> [B, N+1, D]
  Tensor embed(const Context& ctx, const Batch& batch) const override {
    require_pixels(batch);
    const Tensor x = patch_embed_.run(ctx, unfold_patches(batch.pixels, config_.patch));
    return prepend_tokens(ctx.tape, x, tokens_, pos_embed_);
  }

  // x [B, N, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const VisionBlock& b = blocks_[static_cast<size_t>(i)];
    Tape* t = ctx.tape;
    const Tensor u = layer_norm(t, x0, b.norm1.weight, b.norm1.bias.loaded, config_.eps);
    const Tensor x1 =
        add(t, x0, run_branch(ctx, b.proj, u, [&](const Context& c, const Tensor& v) { return attention(c, b, v); }));
    const Tensor m = layer_norm(t, x1, b.norm2.weight, b.norm2.bias.loaded, config_.eps);
    return add(t, x1,
               run_branch(ctx, b.fc2, m, [&](const Context& c, const Tensor& v) { return mlp(c, b.fc1, b.fc2, v); }));
  }

  Tensor head(const Context& ctx, const Tensor& x) const override {  // [B, N, D] -> [B, classes]
    const auto logits_of = [&](const Layer& head, int64_t token) {
      const Tensor one = select_token(ctx.tape, x, token);
      return head.run(ctx, layer_norm(ctx.tape, one, norm_.weight, norm_.bias.loaded, config_.eps));
    };
    const Tensor logits = logits_of(head_, 0);
    if (head_dist_.weight.empty()) return logits;
    return scale(ctx.tape, add(ctx.tape, logits, logits_of(head_dist_, 1)), 0.5f);
  }

  Part part(int i) override {
    if (i < 0) return {Part::Kind::Embedding, "patch_embed", {{{&patch_embed_}}}};
    if (i >= depth() && head_dist_.weight.empty()) return {Part::Kind::Head, "head", {{{&head_}, {&norm_}}}};
    if (i >= depth()) return {Part::Kind::Head, "head", {{{&head_}}, {{&head_dist_}}}};
    VisionBlock& b = blocks_[static_cast<size_t>(i)];
    const std::string name = "blocks." + std::to_string(i);
    return vision_part(b, name, block_point(i, name, &b.fc2.bias, b.fc2.name + ".bias"));
  }

 private:
  // u [B, N, D] -> [B, N, D]
  Tensor attention(const Context& ctx, const VisionBlock& b, const Tensor& u) const {
    const Tensor qkv = b.qkv.run(ctx, u);  // [B, N, 3D]
    return b.proj.run(ctx, attend(ctx, b.matmul1, b.matmul2, qkv, {config_.heads, false, {}, {}}));
  }

  VitConfig config_;
  Tensor tokens_, pos_embed_;  // [K, D], [K+N, D]: the class token, and DeiT's distillation token
  Layer patch_embed_;          // a convolution of stride P is a linear layer on patches: [D, 3*P*P]
  std::vector<VisionBlock> blocks_;
  Norm norm_;
  Layer head_, head_dist_;  // the second: of the distillation token, where there is one
};

Vit::Vit(const VitConfig& c, const Loader& file, const ModelInfo& info) : config_(c) {
  info_ = info;
  const int64_t D = c.dim, K = c.distilled ? 2 : 1, N = K + (c.side / c.patch) * (c.side / c.patch);
  tokens_ = Tensor({K, D});
  info_.read_tokens = K;
  std::copy_n(file.get("cls_token", {1, 1, D}).data, D, tokens_.data);
  if (c.distilled) std::copy_n(file.get("dist_token", {1, 1, D}).data, D, tokens_.data + D);
  pos_embed_ = file.get("pos_embed", {1, N, D}).reshaped({N, D});
  patch_embed_ = load_patch_embed(file, D, c.patch);
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string name = "blocks." + std::to_string(i);
    blocks_.push_back(load_vision_block(file.sub("blocks").sub(i), name, D, c.mlp));
  }
  norm_ = load_norm(file.sub("norm"), D);
  head_ = load_linear(file, Role::Head, "head", info.outputs, D);
  // Without a second head the first one decides alone (transformers' DeiTForImageClassification).
  if (c.distilled && file.has("head_dist.weight"))
    head_dist_ = load_linear(file, Role::Head, "head_dist", info.outputs, D);
  // Left over in some files: timm's networks without pre_logits, and transformers' classifiers, never apply these.
  info_.parameters = count_parameters(file, {"pre_logits.", ".pooler.dense."}, info_.name);
}

// Sizes by timm architecture name; "vit_<size>_patch<P>_<R>" fixes the rest.
struct Preset {
  int64_t dim, depth, heads;
};
constexpr Preset kPresets[] = {{192, 12, 3}, {384, 12, 6}, {768, 12, 12}, {1024, 24, 16}};  // tiny, small, base, large

VitConfig preset_of(const std::string& architecture, const std::string& where) {
  if (architecture == "test_vit") return {16, 64, 6, 2, 192, 160};
  std::string_view rest = architecture;
  const bool deit = take(rest, "deit_"), known = deit || take(rest, "vit_");
  const int size = take_size(rest);
  const bool distilled = deit && take(rest, "_distilled");
  const int64_t patch = take(rest, "_patch") ? take_number(rest, 3) : 0;
  const int64_t side = take(rest, "_") ? take_number(rest, 4) : 0;
  require_input(known && size >= 0 && patch > 0 && side > 0 && rest.empty(),
                "%s: architecture \"%s\" is not one this engine knows: vit_{tiny,small,base,large}_patch<P>_<R>, "
                "deit_..., deit_..._distilled_..., test_vit, swin_...",
                where, architecture);
  const Preset& p = kPresets[size];
  return {patch, p.dim, p.depth, p.heads, 4 * p.dim, side, 1e-6f, distilled};
}

}  // namespace

std::unique_ptr<Model> load_vit(const VisionSource& source, const SafeTensors& file, ModelInfo info) {
  const ConfigReader in(*source.config, source.where), args = in.object("model_args");
  VitConfig c = preset_of(in.text("architecture", ""), source.where);
  const double ratio = static_cast<double>(c.mlp) / static_cast<double>(c.dim);
  c.dim = args.integer({"embed_dim"}, kWidth, c.dim);
  c.depth = args.integer({"depth"}, kDepth, c.depth);
  c.heads = args.integer({"num_heads"}, kHeads, c.heads);
  c.patch = args.side("patch_size", kPatch, c.patch);
  c.mlp = static_cast<int64_t>(static_cast<double>(c.dim) * args.number("mlp_ratio", kLeastRatio, kMostRatio, ratio));
  c.side = args.side("img_size", kSide, c.side);
  // What changes nothing at inference, and what is fine with one value.
  args.only({{"drop_rate", ""},
             {"pos_drop_rate", ""},
             {"patch_drop_rate", ""},
             {"proj_drop_rate", ""},
             {"attn_drop_rate", ""},
             {"drop_path_rate", ""},
             {"weight_init", ""},
             {"fix_init", ""},
             {"dynamic_img_size", ""},
             {"dynamic_img_pad", "false"},
             {"qkv_bias", "true"},
             {"proj_bias", "true"},
             {"class_token", "true"},
             {"global_pool", "\"token\""},
             {"pos_embed", "\"learn\""},
             {"in_chans", "3"},
             {"pre_norm", "false"},
             {"final_norm", "true"},
             {"no_embed_class", "false"},
             {"qk_norm", "false"},
             {"scale_attn_norm", "false"},
             {"scale_mlp_norm", "false"},
             {"pool_include_prefix", "false"},
             {"init_values", "null"},
             {"reg_tokens", "0"},
             {"fc_norm", "null"},
             {"norm_layer", "null"},
             {"act_layer", "null"}});
  args.require_known();
  in.only({{"global_pool", "null|\"token\""}});
  c.eps = static_cast<float>(in.number("layer_norm_eps", 0, 1, static_cast<double>(c.eps)));
  require_input(c.mlp > 0 && c.dim % c.heads == 0 && c.side % c.patch == 0,
                "%s: dim %d, depth %d, heads %d, patch %d, image %d do not make a ViT", source.where, c.dim, c.depth,
                c.heads, c.patch, c.side);
  read_info(source, c.side, info);
  return std::make_unique<Vit>(c, Loader(file, source.names), info);
}

}  // namespace bcq
