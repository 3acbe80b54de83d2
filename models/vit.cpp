#include "models/vit.h"

#include <cmath>
#include <cstdio>
#include <set>

#include "engine/ops.h"
#include "models/layers.h"

namespace bcq {
namespace {

constexpr float kEps = 1e-6f;  // of every layer norm of timm's ViT

struct VitConfig {
  int64_t patch, dim, depth, heads, mlp, classes;
  int64_t grid_rows, grid_cols;  // patches of an image
};

struct Block {
  Norm norm1, norm2;
  Site qkv, matmul1, matmul2, proj, fc1, fc2;
};

class Vit : public Model {
 public:
  Vit(const VitConfig& config, const Loader& file, const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  // pixels [B, 3, R, S] -> [B, N+1, D]
  Tensor embed(const Context& ctx, const Batch& batch) const override {
    const Tensor& pixels = batch.pixels;
    require_input(pixels.rank() == 4 && pixels.dim(1) == 3 && pixels.dim(2) == info_.image.height &&
                      pixels.dim(3) == info_.image.width,
                  "%s takes pixels of shape [B, 3, %lld, %lld], got %s", info_.name.c_str(),
                  static_cast<long long>(info_.image.height), static_cast<long long>(info_.image.width),
                  to_string(pixels.shape).c_str());
    const Tensor x = patch_embed_.run(ctx, unfold_patches(pixels, config_.patch));
    return prepend_token(ctx.tape, x, cls_token_, pos_embed_);
  }

  // x [B, N, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const Block& b = blocks_[static_cast<size_t>(i)];
    Tape* t = ctx.tape;
    const int64_t H = config_.heads;

    const Tensor qkv = b.qkv.run(ctx, layer_norm(t, x0, b.norm1.weight, b.norm1.bias, kEps));  // [B, N, 3D]
    const Tensor q = split_heads(t, qkv, H, 0, 3), k = split_heads(t, qkv, H, 1, 3), v = split_heads(t, qkv, H, 2, 3);
    const Tensor scores = b.matmul1.run(ctx, q, k);  // [B, H, N, N], scaled after the product
    const Tensor a = softmax(t, scale(t, scores, 1.f / std::sqrt(static_cast<float>(config_.dim / H))));
    const Tensor context = merge_heads(t, b.matmul2.run(ctx, a, v));  // [B, N, D]
    const Tensor x1 = add(t, x0, b.proj.run(ctx, context));

    const Tensor h = gelu_erf(t, b.fc1.run(ctx, layer_norm(t, x1, b.norm2.weight, b.norm2.bias, kEps)));  // [B, N, 4D]
    return add(t, x1, b.fc2.run(ctx, h));
  }

  Tensor head(const Context& ctx, const Tensor& x) const override {  // [B, N, D] -> [B, classes]
    const Tensor cls = select_token(ctx.tape, x, 0);
    return head_.run(ctx, layer_norm(ctx.tape, cls, norm_.weight, norm_.bias, kEps));
  }

  std::vector<Site*> sites(int i) override {
    if (i < 0) return {&patch_embed_};
    if (i >= depth()) return {&head_};
    Block& b = blocks_[static_cast<size_t>(i)];
    return {&b.qkv, &b.matmul1, &b.matmul2, &b.proj, &b.fc1, &b.fc2};
  }

 private:
  VitConfig config_;
  Tensor cls_token_, pos_embed_;  // [D], [N+1, D]
  Site patch_embed_;              // a convolution of stride P is a linear layer on patches: [D, 3*P*P]
  std::vector<Block> blocks_;
  Norm norm_;
  Site head_;
};

Vit::Vit(const VitConfig& c, const Loader& file, const ModelInfo& info) : config_(c) {
  info_ = info;
  const int64_t D = c.dim;
  const int64_t tokens = c.grid_rows * c.grid_cols + 1;
  cls_token_ = file.get("cls_token", {1, 1, D}).reshaped({D});
  pos_embed_ = file.get("pos_embed", {1, tokens, D}).reshaped({tokens, D});
  const Loader patch = file.sub("patch_embed").sub("proj");
  patch_embed_.name = "patch_embed.proj";
  patch_embed_.role = Role::Patch;
  patch_embed_.weight = patch.get("weight", {D, 3, c.patch, c.patch}).reshaped({D, 3 * c.patch * c.patch});
  patch_embed_.bias = patch.get("bias", {D});
  for (int64_t i = 0; i < c.depth; ++i) {
    const Loader at = file.sub("blocks").sub(i), attn = at.sub("attn"), mlp = at.sub("mlp");
    const std::string name = "blocks." + std::to_string(i) + ".";
    Block b;
    b.norm1 = load_norm(at.sub("norm1"), D);
    b.qkv = load_linear(attn, Role::QKV, name + "attn.qkv", 3 * D, D);
    b.matmul1 = product_site(Role::QK, name + "attn.matmul1");
    b.matmul2 = product_site(Role::AV, name + "attn.matmul2");
    b.proj = load_linear(attn, Role::Proj, name + "attn.proj", D, D);
    b.norm2 = load_norm(at.sub("norm2"), D);
    b.fc1 = load_linear(mlp, Role::Fc1, name + "mlp.fc1", c.mlp, D);
    b.fc2 = load_linear(mlp, Role::Fc2, name + "mlp.fc2", D, c.mlp);
    blocks_.push_back(b);
  }
  norm_ = load_norm(file.sub("norm"), D);
  head_ = load_linear(file, Role::Head, "head", c.classes, D);
  for (const std::string& unused : file.unused()) {
    if (unused.rfind("pre_logits.", 0) == 0) continue;  // left over in old files, never applied by timm's eval models
    throw InputError(format("%s: tensor %s is not part of %s: this checkpoint needs a forward pass that is not here",
                            file.file().path().c_str(), unused.c_str(), info_.name.c_str()));
  }
  for (const auto& [name, tensor] : file.file().tensors())
    if (name.rfind("pre_logits.", 0) != 0) info_.parameters += numel(tensor.shape);
}

// Sizes by timm architecture name; "vit_<size>_patch<P>_<R>" fixes the rest.
struct Preset {
  const char* size;
  int64_t dim, depth, heads;
};
constexpr Preset kPresets[] = {
    {"tiny", 192, 12, 3}, {"small", 384, 12, 6}, {"base", 768, 12, 12}, {"large", 1024, 24, 16}};

// Keys of model_args that this forward pass obeys, or that do not change it at inference.
const std::set<std::string> kKnownArgs = {"img_size",  "patch_size", "embed_dim",      "depth",      "num_heads",
                                          "mlp_ratio", "drop_rate",  "drop_path_rate", "weight_init"};
// Keys that are fine with exactly one value.
const std::pair<const char*, json> kFixedArgs[] = {
    {"qkv_bias", true},  {"class_token", true},     {"global_pool", "token"}, {"in_chans", 3},
    {"pre_norm", false}, {"no_embed_class", false}, {"qk_norm", false},       {"init_values", nullptr},
    {"reg_tokens", 0},   {"fc_norm", nullptr}};

VitConfig preset_of(const std::string& architecture, int64_t* image, const std::string& where) {
  char size[32] = "";
  int patch = 0, side = 0, end = 0;
  const bool parsed = std::sscanf(architecture.c_str(), "vit_%31[a-z]_patch%d_%d%n", size, &patch, &side, &end) == 3 &&
                      end == static_cast<int>(architecture.size());
  for (const Preset& p : kPresets)
    if (parsed && architecture == format("vit_%s_patch%d_%d", p.size, patch, side)) {
      *image = side;
      return {patch, p.dim, p.depth, p.heads, 4 * p.dim, 1000, 0, 0};
    }
  throw InputError(
      format("%s: architecture \"%s\" is not one this engine knows: vit_{tiny,small,base,large}_patch<P>_<R>",
             where.c_str(), architecture.c_str()));
}

void apply_model_args(const json& args, VitConfig& c, int64_t* image, const std::string& where) {
  for (const auto& [key, value] : args.items()) {
    bool fixed = false;
    for (const auto& [name, allowed] : kFixedArgs) {
      if (key != name) continue;
      fixed = true;
      require_input(value == allowed, "%s: model_args.%s = %s is not supported (only %s)", where.c_str(), key.c_str(),
                    value.dump().c_str(), allowed.dump().c_str());
    }
    require_input(fixed || kKnownArgs.count(key), "%s: model_args.%s is not supported", where.c_str(), key.c_str());
  }
  c.dim = get_or(args, "embed_dim", c.dim, where);
  c.depth = get_or(args, "depth", c.depth, where);
  c.heads = get_or(args, "num_heads", c.heads, where);
  c.patch = get_or(args, "patch_size", c.patch, where);
  c.mlp = static_cast<int64_t>(static_cast<double>(c.dim) * get_or(args, "mlp_ratio", 4.0, where));
  *image = get_or(args, "img_size", *image, where);
}

void read_floats(const json& from, const char* key, float out[3], const std::string& where) {
  const auto values = get_or(from, key, std::vector<float>{out[0], out[1], out[2]}, where);
  require_input(values.size() == 3, "%s: \"%s\" needs 3 numbers, has %zu", where.c_str(), key, values.size());
  std::copy(values.begin(), values.end(), out);
}

ImageConfig image_config(const json& pretrained, int64_t side, const std::string& where) {
  ImageConfig image;
  const auto size = get_or(pretrained, "input_size", std::vector<int64_t>{3, side, side}, where);
  require_input(size.size() == 3 && size[0] == 3, "%s: input_size must be [3, height, width]", where.c_str());
  image.height = size[1];
  image.width = size[2];
  require_input(image.height == side && image.width == side,
                "%s: input_size %s does not match the %lld pixels of the architecture", where.c_str(),
                to_string(size).c_str(), static_cast<long long>(side));
  image.crop_pct = get_or(pretrained, "crop_pct", 0.9, where);
  require_input(image.crop_pct > 0 && image.crop_pct <= 1, "%s: crop_pct must be in (0, 1]", where.c_str());
  image.interpolation = get_or<std::string>(pretrained, "interpolation", "bicubic", where);
  const auto crop_mode = get_or<std::string>(pretrained, "crop_mode", "center", where);
  require_input(crop_mode == "center", "%s: crop_mode \"%s\" is not supported (only \"center\")", where.c_str(),
                crop_mode.c_str());
  read_floats(pretrained, "mean", image.mean, where);
  read_floats(pretrained, "std", image.std, where);
  return image;
}

}  // namespace

std::unique_ptr<Model> load_vit(const json& config, const std::string& where, const SafeTensors& file, ModelInfo info) {
  info.family = Family::Vision;
  info.name = get<std::string>(config, "architecture", where);
  int64_t side = 0;
  VitConfig c = preset_of(info.name, &side, where);
  if (config.contains("model_args")) apply_model_args(config["model_args"], c, &side, where);
  // Old files have the pretrained settings at the top level.
  const json pretrained = config.contains("pretrained_cfg") ? config["pretrained_cfg"] : config;
  c.classes = get_or(config, "num_classes", get_or<int64_t>(pretrained, "num_classes", 1000, where), where);
  const auto pool = get_or<std::string>(config, "global_pool", "token", where);
  require_input(pool == "token", "%s: global_pool \"%s\" is not supported (only \"token\")", where.c_str(),
                pool.c_str());
  require_input(c.patch > 0 && c.dim > 0 && c.depth > 0 && c.mlp > 0 && c.classes > 0 && c.heads > 0 &&
                    c.dim % c.heads == 0 && side > 0 && side % c.patch == 0,
                "%s: dim %lld, depth %lld, heads %lld, patch %lld, image %lld, classes %lld do not make a ViT",
                where.c_str(), static_cast<long long>(c.dim), static_cast<long long>(c.depth),
                static_cast<long long>(c.heads), static_cast<long long>(c.patch), static_cast<long long>(side),
                static_cast<long long>(c.classes));
  info.image = image_config(pretrained, side, where);
  info.tag = get_or<std::string>(pretrained, "tag", "", where);
  info.outputs = c.classes;
  c.grid_rows = c.grid_cols = side / c.patch;
  return std::make_unique<Vit>(c, Loader(file), info);
}

}  // namespace bcq
