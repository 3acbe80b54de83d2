// Vision Transformer and DeiT as timm defines them (vision_transformer.py, deit.py; "An Image is Worth
// 16x16 Words", "Training data-efficient image transformers & distillation through attention"): class
// token, learned positions, pre-norm blocks; the distilled form has a second token and head. What timm's options
// change is in VitConfig.
#include <algorithm>
#include <cmath>

#include "engine/nn/attention.h"
#include "engine/nn/mlp.h"
#include "engine/nn/ops.h"
#include "models/families.h"
#include "models/layers.h"
#include "models/onnx_layers.h"

namespace bcq {
namespace {

// What the head is fed: the class token, the mean of the patches, or both side by side (DINOv2 in transformers).
enum class Pool { Token, Average, TokenAndAverage };

// As timm's VisionTransformer has it.
struct VitConfig {
  int64_t patch, dim, depth, heads, mlp, side;
  float eps = 1e-6f;       // of every layer norm
  bool distilled = false;  // DeiT's second token
  bool class_token = true, no_embed_class = false, qkv_bias = true, proj_bias = true, qk_norm = false;
  bool pre_norm = false;  // a norm before the blocks; the patches then have no bias
  bool layer_scale = false, final_norm = true, fc_norm = false, pool_include_prefix = false;
  bool has_positions = true;
  int64_t registers = 0;
  Pool pool = Pool::Token;
  Gelu gelu = Gelu::Erf;
  // Of positions that are resized: whether bicubic interpolation looks at more points where the grid gets coarser.
  bool antialias = true;

  bool places_registers = true;  // whether the table of positions has rows for them

  int64_t prefix() const { return class_token + distilled + registers; }  // tokens before the patches
  // Of those, the first ones that have a position.
  int64_t placed() const { return no_embed_class ? 0 : places_registers ? prefix() : 1; }
};

class Vit : public Model {
 public:
  Vit(const VitConfig& config, const Loader& file, const ModelInfo& info);

  int depth() const override { return static_cast<int>(blocks_.size()); }

  // pixels [B, 3, R, S] -> [B, N+1, D]
  Tensor embed(const Context& ctx, const Batch& batch) const override {
    require_pixels(batch);
    const Tensor x = patch_embed_.run(ctx, unfold_patches(batch.pixels, config_.patch));
    return normed(ctx.tape, norm_pre_, prepend_tokens(ctx.tape, x, tokens_, pos_embed_));
  }

  // x [B, N, D]
  Tensor block_body(const Context& ctx, int i, const Tensor& x0) const override {
    const VisionBlock& b = blocks_[at(i)];
    Tape* t = ctx.tape;
    const Tensor u = normed(t, b.norm1, x0);
    const Tensor z = run_branch(ctx, b.proj, u, [&](const Context& c, const Tensor& v) { return attention(c, b, v); });
    const Tensor x1 = add(t, x0, scale_channels(t, z, b.proj.gamma));
    const Tensor m = normed(t, b.norm2, x1);
    const Tensor y = run_branch(
        ctx, b.fc2, m, [&](const Context& c, const Tensor& v) { return mlp(c, b.fc1, b.fc2, v, config_.gelu); });
    return add(t, x1, scale_channels(t, y, b.fc2.gamma));
  }

  Tensor head(const Context& ctx, const Tensor& x) const override {  // [B, N, D] -> [B, classes]
    Tape* t = ctx.tape;
    if (head_.weight.empty()) return pooled(t, x);
    const Tensor logits = head_.run(ctx, pooled(t, x));
    if (head_dist_.weight.empty()) return logits;
    const Tensor second = head_dist_.run(ctx, normed(t, norm_, select_token(t, x, 1)));
    return scale(t, add(t, logits, second), 0.5f);
  }

  std::string onnx_part(OnnxLayers& to, int i, const std::string& x0) const override {
    if (i < 0) {
      const std::string x = to.linear(patch_embed_, to.unfold_patches(x0, info_.image, config_.patch));
      return to.layer_norm(norm_pre_, config_.eps, to.prepend_tokens(x, tokens_, pos_embed_));
    }
    if (i >= depth()) return onnx_head(to, x0);
    const VisionBlock& b = blocks_[at(i)];
    const std::string qkv = to.linear(b.qkv, to.layer_norm(b.norm1, config_.eps, x0));
    const std::string z = to.linear(b.proj, to.attend(b.matmul1, b.matmul2, qkv, {config_.heads, false, {}, {}},
                                                      config_.dim / config_.heads, b.q_norm, b.k_norm, config_.eps));
    const std::string x1 = to.add(x0, to.scale_channels(z, b.proj.gamma));
    const std::string y = to.mlp(b.fc1, b.fc2, to.layer_norm(b.norm2, config_.eps, x1), config_.gelu);
    return to.add(x1, to.scale_channels(y, b.fc2.gamma));
  }

  Part part(int i) override {
    if (i < 0) return {Part::Kind::Embedding, "patch_embed", {{{&patch_embed_}}}};
    if (i >= depth() && head_.weight.empty()) return {Part::Kind::Head, "head"};
    if (i >= depth() && !head_dist_.weight.empty()) return {Part::Kind::Head, "head", {{{&head_}}, {{&head_dist_}}}};
    const bool folds = config_.final_norm && config_.pool != Pool::TokenAndAverage;  // a mean leaves channels apart
    if (i >= depth()) return {Part::Kind::Head, "head", {{{&head_}, {folds ? &norm_ : nullptr}}}};
    VisionBlock& b = blocks_[at(i)];
    const std::string name = "blocks." + std::to_string(i);
    Point output = block_point(i, name, &b.fc2.bias, b.fc2.name + ".bias");
    output.gamma = b.fc2.gamma;
    return vision_part(b, name, output);
  }

 private:
  Tensor normed(Tape* t, const Norm& norm, const Tensor& x) const {
    return norm.weight.empty() ? x : layer_norm(t, x, norm.weight, norm.bias.loaded, config_.eps);
  }

  // u [B, N, D] -> [B, N, D]
  Tensor attention(const Context& ctx, const VisionBlock& b, const Tensor& u) const {
    Tensor qkv = b.qkv.run(ctx, u);  // [B, N, 3D]
    if (config_.qk_norm) qkv = norm_queries_and_keys(ctx.tape, b, qkv);
    return b.proj.run(ctx, attend(ctx, b.matmul1, b.matmul2, qkv, {config_.heads, false, {}, {}}));
  }

  // Each head of each query and key on its own: [B, N, 3D] -> the same.
  Tensor norm_queries_and_keys(Tape* t, const VisionBlock& b, const Tensor& qkv) const {
    const int64_t B = qkv.dim(0), N = qkv.dim(1), D = config_.dim, H = config_.heads;
    std::vector<Tensor> parts;
    for (int64_t part = 0; part < 3; ++part) {
      std::vector<int64_t> rows;
      for (int64_t n = 0; n < N; ++n) rows.push_back(3 * n + part);
      const Tensor x = gather_rows(t, qkv.reshaped({B, 3 * N, D}), rows, {B, N * H, D / H});
      parts.push_back((part == 2 ? x : normed(t, part ? b.k_norm : b.q_norm, x)).reshaped({B, N, D}));
    }
    return concat(t, parts);
  }

  // x [B, N, D] -> [B, D or 2D]. The norm is taken of one token or of a mean where that is the same or asked for.
  Tensor pooled(Tape* t, const Tensor& x) const {
    if (config_.pool == Pool::Token) return normed(t, norm_, select_token(t, x, 0));
    const Tensor y = config_.fc_norm ? x : normed(t, norm_, x);
    std::vector<int64_t> rows;
    for (int64_t n = config_.pool_include_prefix ? 0 : config_.prefix(); n < x.dim(1); ++n) rows.push_back(n);
    const Tensor patches = gather_rows(t, y, rows, {x.dim(0), static_cast<int64_t>(rows.size()), x.dim(2)});
    const Tensor mean = mean_tokens(t, patches);
    if (config_.pool == Pool::TokenAndAverage) return concat(t, {select_token(t, y, 0), mean});
    return config_.fc_norm ? normed(t, norm_, mean) : mean;
  }

  // head() and pooled() as nodes of a graph.
  std::string onnx_head(OnnxLayers& to, const std::string& x) const {
    const std::string features = onnx_pooled(to, x);
    if (head_.weight.empty()) return features;
    const std::string logits = to.linear(head_, features);
    if (head_dist_.weight.empty()) return logits;
    const std::string second = to.linear(head_dist_, to.layer_norm(norm_, config_.eps, to.select_token(x, 1)));
    return to.scale(to.add(logits, second), 0.5f);
  }

  std::string onnx_pooled(OnnxLayers& to, const std::string& x) const {
    if (config_.pool == Pool::Token) return to.layer_norm(norm_, config_.eps, to.select_token(x, 0));
    const std::string y = config_.fc_norm ? x : to.layer_norm(norm_, config_.eps, x);
    const std::string mean = to.mean_tokens(y, config_.pool_include_prefix ? 0 : config_.prefix());
    if (config_.pool == Pool::TokenAndAverage) return to.concat({to.select_token(y, 0), mean});
    return config_.fc_norm ? to.layer_norm(norm_, config_.eps, mean) : mean;
  }

  VitConfig config_;
  Tensor tokens_, pos_embed_;  // [K, D], [K+N, D]: class token, DeiT's distillation token, registers
  Layer patch_embed_;          // a convolution of stride P is a linear layer on patches: [D, 3*P*P]
  std::vector<VisionBlock> blocks_;
  Norm norm_pre_, norm_;    // empty: there is none
  Layer head_, head_dist_;  // the second: of the distillation token, where there is one; the first empty: of none
};

// How much of each of n points each of m points between them is, [m, n]: cubic interpolation as PyTorch does it, with
// antialias that of Pillow.
std::vector<double> bicubic_weights(int64_t n, int64_t m, bool antialias) {
  const double step = static_cast<double>(n) / static_cast<double>(m), a = antialias ? -0.5 : -0.75;
  const double stretch = antialias ? std::max(step, 1.0) : 1;
  const auto cubic = [a](double x) {  // Keys' kernel
    x = std::abs(x);
    return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? a * (((x - 5) * x + 8) * x - 4) : 0;
  };
  std::vector<double> weights(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    const double centre = step * (static_cast<double>(i) + 0.5) - 0.5, reach = 2 * stretch;
    double sum = 0;
    for (int pass = 0; pass < 2; ++pass)
      for (auto j = static_cast<int64_t>(std::ceil(centre - reach)); static_cast<double>(j) <= centre + reach; ++j) {
        if (antialias && (j < 0 || j >= n)) continue;  // else the border goes on
        const double w = cubic((static_cast<double>(j) - centre) / stretch);
        if (pass) weights[at(i * n + std::clamp<int64_t>(j, 0, n - 1))] += w / sum;
        sum += pass ? 0 : w;
      }
  }
  return weights;
}

// timm's resample_abs_pos_embed of a table of g x g positions after `prefix` others: [prefix + g^2, D] ->
// [prefix + side^2, D].
Tensor resized_positions(const Tensor& table, int64_t prefix, int64_t g, int64_t side, bool antialias) {
  const int64_t D = table.dim(1);
  const std::vector<double> w = bicubic_weights(g, side, antialias);
  Tensor y({prefix + side * side, D});
  std::copy_n(table.data, prefix * D, y.data);
  // Along the rows [g, g, D] -> [g, side, D], then down the columns.
  std::vector<double> wide(static_cast<size_t>(g * side * D)), line(static_cast<size_t>(D));
  for (int64_t r = 0; r < g; ++r)
    for (int64_t c = 0; c < side * g * D; ++c)
      wide[at((r * side + c / (g * D)) * D + c % D)] +=
          w[at(c / D)] * static_cast<double>(table[(prefix + r * g + c / D % g) * D + c % D]);
  for (int64_t r = 0; r < side; ++r)
    for (int64_t c = 0; c < side; ++c) {
      std::fill(line.begin(), line.end(), 0);
      for (int64_t k = 0; k < g; ++k)
        for (int64_t d = 0; d < D; ++d) line[at(d)] += w[at(r * g + k)] * wide[at((k * side + c) * D + d)];
      for (int64_t d = 0; d < D; ++d) y[(prefix + r * side + c) * D + d] = static_cast<float>(line[at(d)]);
    }
  return y;
}

// Positions of all tokens, [K+N, D]: of those that the table has none for, 0.
Tensor load_positions(const VitConfig& c, const Loader& file, Notes& notes) {
  const int64_t K = c.prefix(), placed = c.placed(), side = c.side / c.patch, D = c.dim;
  Tensor positions({K + side * side, D});
  if (!c.has_positions) return positions;
  const int64_t rows = file.has("pos_embed") && file.shape("pos_embed").size() == 3 ? file.shape("pos_embed")[1] : 0;
  const auto g = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(std::max<int64_t>(rows - placed, 0)))));
  constexpr int64_t kMostTimes = 16;  // as wide as the table's grid
  const bool other = g != side && g > 0 && g * g == rows - placed && side <= kMostTimes * g;
  Tensor table = file.get("pos_embed", {1, other ? rows : placed + side * side, D});
  table = table.reshaped({table.dim(1), D});
  if (other) {
    table = resized_positions(table, placed, g, side, c.antialias);
    notes.push_back(format("%s: positions resized from %d x %d to %d x %d", file.file().path(), g, g, side, side));
  }
  std::copy_n(table.data, placed * D, positions.data);
  std::copy_n(table.data + placed * D, side * side * D, positions.data + K * D);
  return positions;
}

Vit::Vit(const VitConfig& c, const Loader& file, const ModelInfo& info) : config_(c) {
  info_ = info;
  const int64_t D = c.dim;
  tokens_ = Tensor({c.prefix(), D});
  if (c.pool == Pool::Token) info_.read_tokens = c.class_token + c.distilled;
  float* at = tokens_.data;
  if (c.class_token) at = std::copy_n(file.get("cls_token", {1, 1, D}).data, D, at);
  if (c.distilled) at = std::copy_n(file.get("dist_token", {1, 1, D}).data, D, at);
  if (c.registers) std::copy_n(file.get("reg_token", {1, c.registers, D}).data, c.registers * D, at);
  pos_embed_ = load_positions(c, file, info_.notes);
  patch_embed_ = load_patch_embed(file, D, c.patch, !c.pre_norm);
  if (c.pre_norm) norm_pre_ = load_norm(file.sub("norm_pre"), D);
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string name = "blocks." + std::to_string(i);
    const Loader block = file.sub("blocks").sub(i);
    blocks_.push_back(load_vision_block(block, name, D, c.mlp, c.qkv_bias, c.proj_bias));
    VisionBlock& b = blocks_.back();
    if (c.qk_norm) b.q_norm = load_norm(block.sub("attn").sub("q_norm"), D / c.heads);
    if (c.qk_norm) b.k_norm = load_norm(block.sub("attn").sub("k_norm"), D / c.heads);
    if (!c.layer_scale || has_folded_layer_scale(file)) continue;
    b.proj.gamma = block.sub("ls1").get("gamma", {D});
    b.fc2.gamma = block.sub("ls2").get("gamma", {D});
  }
  if (c.final_norm) norm_ = load_norm(file.sub(c.fc_norm ? "fc_norm" : "norm"), D);
  const int64_t features = c.pool == Pool::TokenAndAverage ? 2 * D : D;
  if (info.outputs > 0)
    head_ = load_linear(file, Role::Head, "head", info.outputs, features);
  else
    info_.outputs = features;
  // Without a second head the first one decides alone (transformers' DeiTForImageClassification).
  if (c.distilled && has_linear(file.sub("head_dist")))
    head_dist_ = load_linear(file, Role::Head, "head_dist", info.outputs, D);
  // Left over in some files: timm's networks without pre_logits, and transformers' classifiers, never apply these, and
  // masks are for training.
  get_stored(*this, file);
  info_.parameters = count_parameters(file, {"pre_logits.", ".pooler.dense.", "mask_token"}, info_.name);
  info_.places = file.places();
}

// Sizes by timm architecture name; "vit_<size>_patch<P>_<form>" fixes the rest.
struct Preset {
  const char* name;
  int64_t dim, depth, heads;
  double mlp_ratio = 4;
};
constexpr Preset kPresets[] = {{"tiny", 192, 12, 3},     {"wee", 256, 14, 4, 5}, {"little", 320, 14, 5, 5.6},
                               {"small", 384, 12, 6},    {"medium", 512, 12, 8}, {"mediumd", 512, 20, 8},
                               {"betwixt", 640, 12, 10}, {"base", 768, 12, 12},  {"large", 1024, 24, 16},
                               {"huge", 1280, 32, 16}};

int64_t mlp_width(int64_t dim, double ratio) { return static_cast<int64_t>(static_cast<double>(dim) * ratio); }

// What follows the patch in a name: "_224", "_reg4_gap_256", "_clip_quickgelu_224", "_dinov2".
bool take_form(std::string_view& rest, const std::string& size, VitConfig& c) {
  if (take(rest, "_reg")) c.registers = take_number(rest, 2);
  const bool has_registers = c.registers > 0;
  if (take(rest, "_dinov2")) {
    c.layer_scale = true;
    c.no_embed_class = has_registers;
    c.side = 518;
    return true;
  }
  if (take(rest, "_gap")) {
    const bool base = size == "base" || size == "huge";
    c.class_token = false;
    c.pool = Pool::Average;
    c.no_embed_class = c.fc_norm = has_registers;
    c.layer_scale = !base;
    c.qkv_bias = base || has_registers;
  } else if (take(rest, "_clip")) {
    c.pre_norm = true;
    c.eps = 1e-5f;
    if (take(rest, "_quickgelu")) c.gelu = Gelu::Quick;
  }
  c.side = take(rest, "_") ? take_number(rest, 4) : 0;
  return !has_registers || c.pool == Pool::Average;
}

VitConfig preset_of(const std::string& architecture, const std::string& where) {
  VitConfig c{16, 64, 6, 2, 192, 160};
  if (architecture == "test_vit") return c;
  if (architecture == "test_vit2") {
    c.depth = 8;
    c.registers = 1;
    c.class_token = false;
    c.pool = Pool::Average;
    c.fc_norm = c.layer_scale = true;
    return c;
  }
  std::string_view rest = architecture;
  c = {};
  if (take(rest, "deit3_"))
    c.no_embed_class = c.layer_scale = true;
  else
    c.distilled = take(rest, "deit_");
  const bool deit = rest.size() < architecture.size();
  bool known = deit || take(rest, "vit_");
  const Preset* size = nullptr;
  for (const Preset& p : kPresets)
    if (known && take(rest, std::string(p.name) + "_")) size = &p;
  known = size != nullptr;
  c.distilled = known && c.distilled && take(rest, "distilled_");
  c.patch = take(rest, "patch") ? take_number(rest, 3) : 0;
  if (deit)
    c.side = take(rest, "_") ? take_number(rest, 4) : 0;
  else
    known = known && take_form(rest, size->name, c);
  require_input(known && c.patch > 0 && c.side > 0 && rest.empty(),
                "%s: architecture \"%s\" is not one this engine knows: vit_SIZE_patch<P>_<R>, with _clip, "
                "_clip_quickgelu, _gap or _reg<K>_gap before _<R>, or _dinov2 or _reg<K>_dinov2 in its place; "
                "deit_..., deit_..._distilled_..., deit3_..., test_vit, test_vit2, swin_...; SIZE one of tiny, wee, "
                "little, small, medium, mediumd, betwixt, base, large, huge",
                where, architecture);
  c.dim = size->dim;
  c.depth = size->depth;
  c.heads = size->heads;
  c.mlp = mlp_width(c.dim, size->mlp_ratio);
  return c;
}

// The options of the network in model_args, over those of the architecture.
void read_options(const ConfigReader& args, VitConfig& c) {
  const auto one_of = [&](const char* key, const std::string& fallback, const std::vector<std::string>& names) {
    const auto at = std::find(names.begin(), names.end(), args.text(key, fallback));
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "\"" : ", \"") + name + "\"";
    if (at == names.end()) args.refuse(key, "one of " + all);
    return at - names.begin();
  };
  for (const auto& [key, option] : {std::pair{"class_token", &c.class_token},
                                    {"no_embed_class", &c.no_embed_class},
                                    {"qkv_bias", &c.qkv_bias},
                                    {"proj_bias", &c.proj_bias},
                                    {"qk_norm", &c.qk_norm},
                                    {"pre_norm", &c.pre_norm},
                                    {"final_norm", &c.final_norm},
                                    {"pool_include_prefix", &c.pool_include_prefix}})
    *option = args.flag(key, *option);
  c.registers = args.integer({"reg_tokens"}, kRegisters, c.registers);
  if (args.has("init_values")) c.layer_scale = args.number("init_values", -1e6, 1e6, 0) != 0;
  const Pool before = c.pool;
  c.pool =
      one_of("global_pool", c.pool == Pool::Average ? "avg" : "token", {"token", "avg"}) ? Pool::Average : Pool::Token;
  if (c.pool != before) c.fc_norm = c.pool == Pool::Average;
  c.fc_norm = args.flag("fc_norm", c.fc_norm);
  const char* gelu[] = {"gelu", "gelu_tanh", "quick_gelu"};
  c.gelu = static_cast<Gelu>(one_of("act_layer", gelu[static_cast<int>(c.gelu)], {gelu[0], gelu[1], gelu[2]}));
  c.has_positions = one_of("pos_embed", "learn", {"learn", "none", ""}) == 0;
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
  c.mlp = mlp_width(c.dim, args.number("mlp_ratio", kLeastRatio, kMostRatio, ratio));
  c.side = args.side("img_size", kSide, c.side);
  read_options(args, c);
  // What changes nothing at inference, and what is fine with one value.
  args.ignore({"drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
               "weight_init", "fix_init", "dynamic_img_size"});
  args.only({{"dynamic_img_pad", "false"},
             {"in_chans", "3"},
             {"scale_attn_norm", "false"},
             {"scale_mlp_norm", "false"},
             {"norm_layer", "null"}});
  args.require_known();
  in.only({{"global_pool", c.pool == Pool::Token ? "null|\"token\"" : "null|\"avg\""}});
  c.eps = static_cast<float>(in.number("layer_norm_eps", 0, 1, static_cast<double>(c.eps)));
  require_input(c.class_token || c.pool == Pool::Average, "%s: global_pool \"token\" needs the class token",
                source.where);
  require_input(!c.distilled || (c.prefix() == 2 && c.pool == Pool::Token && !c.fc_norm),
                "%s: a distilled DeiT reads its class token and its distillation token, and has no others",
                source.where);
  if (source.is_dinov2) {
    c.places_registers = false;
    c.antialias = c.registers > 0;
    if (in.integer({"num_classes"}, {0}) > 0) c.pool = Pool::TokenAndAverage;
  }
  require_input(c.mlp > 0 && c.dim % c.heads == 0 && c.side % c.patch == 0,
                "%s: dim %d, depth %d, heads %d, patch %d, image %d do not make a ViT", source.where, c.dim, c.depth,
                c.heads, c.patch, c.side);
  read_info(source, c.side, info);
  return std::make_unique<Vit>(c, Loader(file, source.names, source.packed), info);
}

}  // namespace bcq
