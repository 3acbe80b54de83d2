// Swin Transformer as timm and Microsoft's repository define it ("Swin Transformer: Hierarchical Vision
// Transformer using Shifted Windows"): attention inside windows, shifted in every other block, with a learned
// bias for each relative position; between stages 2x2 patches are merged.
//
// Both layouts of timm's names are read: before 0.8 the merge stood at the end of a stage and the head
// was head.weight, since then at the start of the next stage and head.fc.weight.
#include <algorithm>

#include "engine/nn/attention.h"
#include "engine/nn/mlp.h"
#include "engine/nn/ops.h"
#include "models/families.h"
#include "models/layers.h"
#include "models/onnx_layers.h"

namespace bcq {
namespace {

struct SwinConfig {
  int64_t side, patch, window, dim;
  std::vector<int64_t> depths, heads;  // of every stage
  double mlp_ratio = 4;
  float eps = 1e-5f;  // of every layer norm
};

// How the rows of an R x R grid lie in windows of w x w, shifted by s.
struct Windows {
  int64_t count, tokens;          // windows of an image, tokens of one
  std::vector<int64_t> to, back;  // permutations of the rows: into windows, and out again
  Tensor mask;                    // [count, tokens, tokens]: -100 between parts that only the shift brought together
};

struct Block : VisionBlock {
  int64_t heads;
  const Windows* windows;
  Tensor position_bias;  // [H, tokens, tokens]
};

struct Merge {
  std::vector<int64_t> index;  // of the rows, so that the four of a merged patch follow each other
  Norm norm;                   // [4C]
  Layer reduction;             // [2C, 4C], no bias
};

// One block, or the merge before a stage.
struct Step {
  std::string name;
  bool is_merge;
  Block block = {};
  Merge merge = {};
};

// Which of three bands a row (or column) of the shifted grid belongs to: only equal bands were neighbours.
int64_t band(int64_t at, int64_t R, int64_t w, int64_t shift) { return at < R - w ? 0 : at < R - shift ? 1 : 2; }

Windows make_windows(int64_t R, int64_t w, int64_t shift) {
  Windows result{(R / w) * (R / w), w * w, {}, {}, {}};
  std::vector<int64_t> label;
  for (int64_t window = 0; window < result.count; ++window)
    for (int64_t token = 0; token < result.tokens; ++token) {
      const int64_t r = window / (R / w) * w + token / w, c = window % (R / w) * w + token % w;
      result.to.push_back((r + shift) % R * R + (c + shift) % R);
      label.push_back(3 * band(r, R, w, shift) + band(c, R, w, shift));
    }
  result.back.resize(result.to.size());
  for (size_t i = 0; i < result.to.size(); ++i) result.back[at(result.to[i])] = static_cast<int64_t>(i);
  if (shift == 0) return result;
  const int64_t T = result.tokens;
  result.mask = Tensor({result.count, T, T});
  for (int64_t i = 0; i < result.mask.size(); ++i) {
    const int64_t first = i / (T * T) * T, a = first + i / T % T, b = first + i % T;
    result.mask[i] = label[at(a)] == label[at(b)] ? 0.f : -100.f;
  }
  return result;
}

// table [(2w-1)^2, H] -> [H, w^2, w^2]: one value for each offset between two tokens of a window.
Tensor position_bias(const Tensor& table, int64_t w) {
  const int64_t H = table.dim(1), T = w * w;
  Tensor bias({H, T, T});
  for (int64_t i = 0; i < bias.size(); ++i) {
    const int64_t h = i / (T * T), a = i / T % T, b = i % T;
    const int64_t row = (a / w - b / w + w - 1) * (2 * w - 1) + a % w - b % w + w - 1;
    bias[i] = table[row * H + h];
  }
  return bias;
}

// Merged patch (r, c) takes (2r, 2c), (2r+1, 2c), (2r, 2c+1), (2r+1, 2c+1), in this order.
std::vector<int64_t> merge_index(int64_t R) {
  std::vector<int64_t> index;
  for (int64_t r = 0; r < R; r += 2)
    for (int64_t c = 0; c < R; c += 2)
      for (const int64_t at : {r * R + c, (r + 1) * R + c, r * R + c + 1, (r + 1) * R + c + 1}) index.push_back(at);
  return index;
}

class Swin : public Model {
 public:
  Swin(const SwinConfig& config, const Loader& file, const ModelInfo& info);

  int depth() const override { return static_cast<int>(steps_.size()); }

  // pixels [B, 3, R, S] -> [B, N, C]
  Tensor embed(const Context& ctx, const Batch& batch) const override {
    require_pixels(batch);
    const Tensor x = patch_embed_.run(ctx, unfold_patches(batch.pixels, config_.patch));
    return layer_norm(ctx.tape, x, patch_norm_.weight, patch_norm_.bias.loaded, config_.eps);
  }

  // x [B, N, C] -> the same, or [B, N/4, 2C] when the step is a merge
  Tensor block_body(const Context& ctx, int i, const Tensor& x) const override {
    const Step& step = steps_[at(i)];
    return step.is_merge ? merge(ctx, step.merge, x) : block(ctx, step.block, x);
  }

  Tensor head(const Context& ctx, const Tensor& x) const override {  // [B, N, C] -> [B, classes]
    return head_.run(ctx, mean_tokens(ctx.tape, layer_norm(ctx.tape, x, norm_.weight, norm_.bias.loaded, config_.eps)));
  }

  std::string onnx_part(OnnxLayers& to, int i, const std::string& x0) const override {
    if (i < 0) {
      const std::string x = to.linear(patch_embed_, to.unfold_patches(x0, info_.image, config_.patch));
      return to.layer_norm(patch_norm_, config_.eps, x);
    }
    if (i >= depth()) return to.linear(head_, to.mean_tokens(to.layer_norm(norm_, config_.eps, x0)));
    const Step& step = steps_[at(i)];
    if (step.is_merge) {
      const Merge& m = step.merge;
      const auto rows = static_cast<int64_t>(m.index.size());
      const std::string four = to.gather_rows(x0, m.index, {0, rows / 4, m.norm.weight.size()});
      return to.linear(m.reduction, to.layer_norm(m.norm, config_.eps, four));
    }
    const Block& b = step.block;
    const Windows& w = *b.windows;
    const int64_t C = b.norm1.weight.size();
    const std::string u = to.layer_norm(b.norm1, config_.eps, x0);
    const std::string qkv = to.linear(b.qkv, to.gather_rows(u, w.to, {-1, w.tokens, C}));
    const std::string z =
        to.linear(b.proj, to.attend(b.matmul1, b.matmul2, qkv, {b.heads, true, b.position_bias, w.mask}, C / b.heads));
    const std::string whole = to.reshape(z, {-1, w.count * w.tokens, C});
    const std::string x1 = to.add(x0, to.gather_rows(whole, w.back, {0, w.count * w.tokens, C}));
    return to.add(x1, to.mlp(b.fc1, b.fc2, to.layer_norm(b.norm2, config_.eps, x1)));
  }

  Part part(int i) override {
    if (i < 0) return {Part::Kind::Embedding, "patch_embed", {{{&patch_embed_}}}};
    if (i >= depth()) return {Part::Kind::Head, "head", {{{&head_}, {&norm_}}}};
    Step& step = steps_[at(i)];
    Layer& last = step.is_merge ? step.merge.reduction : step.block.fc2;
    Part part = step.is_merge ? Part{Part::Kind::Merge, step.name, {{{&last}, {&step.merge.norm}}}}
                              : vision_part(step.block, step.name, {});
    part.is_sum = false;  // what attention puts out stands in windows
    part.output = block_point(i, step.name, &last.bias, last.name + ".bias");
    if (step.is_merge) part.output.kind = Point::Kind::Downsample;
    part.ends_stage = step.is_merge || i + 1 == depth();
    return part;
  }

 private:
  Tensor block(const Context& ctx, const Block& b, const Tensor& x0) const {
    Tape* t = ctx.tape;
    const Windows& w = *b.windows;
    const Tensor u = layer_norm(t, x0, b.norm1.weight, b.norm1.bias.loaded, config_.eps);
    const Tensor cut = gather_rows(t, u, w.to, {u.dim(0) * w.count, w.tokens, u.dim(2)});
    const Tensor z =
        run_branch(ctx, b.proj, cut, [&](const Context& c, const Tensor& v) { return attention(c, b, v); });
    const Tensor x1 = add(t, x0, gather_rows(t, z.reshaped(x0.shape), w.back, x0.shape));
    const Tensor m = layer_norm(t, x1, b.norm2.weight, b.norm2.bias.loaded, config_.eps);
    return add(t, x1,
               run_branch(ctx, b.fc2, m, [&](const Context& c, const Tensor& v) { return mlp(c, b.fc1, b.fc2, v); }));
  }

  // u [B*windows, tokens, C] -> the same
  Tensor attention(const Context& ctx, const Block& b, const Tensor& u) const {
    const Tensor qkv = b.qkv.run(ctx, u);  // [B*windows, tokens, 3C]
    return b.proj.run(ctx, attend(ctx, b.matmul1, b.matmul2, qkv,
                                  {b.heads, true, b.position_bias, ctx.masked ? b.windows->mask : Tensor{}}));
  }

  Tensor merge(const Context& ctx, const Merge& m, const Tensor& x) const {
    const Tensor four = gather_rows(ctx.tape, x, m.index, {x.dim(0), x.dim(1) / 4, 4 * x.dim(2)});
    return m.reduction.run(ctx, layer_norm(ctx.tape, four, m.norm.weight, m.norm.bias.loaded, config_.eps));
  }

  SwinConfig config_;
  Layer patch_embed_;
  Norm patch_norm_;
  std::vector<std::unique_ptr<Windows>> windows_;  // two a stage: unshifted and shifted
  std::vector<Step> steps_;
  Norm norm_;
  Layer head_;
};

Block load_block(const Loader& at, const std::string& name, int64_t C, int64_t heads, int64_t mlp, int64_t w,
                 const Windows* windows) {
  const Tensor table = at.sub("attn").get("relative_position_bias_table", {(2 * w - 1) * (2 * w - 1), heads});
  return {load_vision_block(at, name, C, mlp), heads, windows, position_bias(table, w)};
}

Swin::Swin(const SwinConfig& c, const Loader& file, const ModelInfo& info) : config_(c) {
  info_ = info;
  int64_t C = c.dim, R = c.side / c.patch;
  patch_embed_ = load_patch_embed(file, C, c.patch);
  patch_norm_ = load_norm(file.sub("patch_embed").sub("norm"), C);
  for (size_t s = 0; s < c.depths.size(); ++s) {
    const Loader stage = file.sub("layers").sub(static_cast<int64_t>(s));
    const std::string name = "layers." + std::to_string(s) + ".";
    if (s > 0) {
      const Loader at = stage.sub("downsample");
      Step step{name + "downsample", true};
      step.merge = {merge_index(R), load_norm(at.sub("norm"), 4 * C),
                    load_linear(at, Role::Reduction, step.name + ".reduction", 2 * C, 4 * C, false)};
      steps_.push_back(step);
      C *= 2;
      R /= 2;
    }
    // A grid no larger than the window is one window, and nothing is shifted.
    const int64_t w = std::min(R, c.window), shift = R > c.window ? w / 2 : 0;
    windows_.push_back(std::make_unique<Windows>(make_windows(R, w, 0)));
    windows_.push_back(std::make_unique<Windows>(make_windows(R, w, shift)));
    for (int64_t j = 0; j < c.depths[s]; ++j) {
      const std::string block = name + "blocks." + std::to_string(j);
      const int64_t hidden = static_cast<int64_t>(static_cast<double>(C) * c.mlp_ratio);
      const Windows* windows = windows_[2 * s + static_cast<size_t>(j % 2)].get();
      steps_.push_back(
          {block, false, load_block(stage.sub("blocks").sub(j), block, C, c.heads[s], hidden, w, windows)});
    }
  }
  norm_ = load_norm(file.sub("norm"), C);
  head_ = load_linear(file.sub("head"), Role::Head, "head.fc", info.outputs, C);
  get_stored(*this, file);
  // Older files keep what follows from the sizes.
  info_.parameters = count_parameters(file, {"relative_position_index", "attn_mask"}, info_.name);
  info_.places = file.places();
}

struct Preset {
  int64_t dim;
  std::vector<int64_t> depths, heads;
};
const Preset kPresets[] = {{96, {2, 2, 6, 2}, {3, 6, 12, 24}},  // tiny, small, base, large
                           {96, {2, 2, 18, 2}, {3, 6, 12, 24}},
                           {128, {2, 2, 18, 2}, {4, 8, 16, 32}},
                           {192, {2, 2, 18, 2}, {6, 12, 24, 48}}};

SwinConfig preset_of(const std::string& architecture, const std::string& where) {
  std::string_view rest = architecture;
  const bool known = take(rest, "swin_");
  const int size = take_size(rest);
  const int64_t patch = take(rest, "_patch") ? take_number(rest, 2) : 0;
  const int64_t window = take(rest, "_window") ? take_number(rest, 2) : 0;
  const int64_t side = take(rest, "_") ? take_number(rest, 4) : 0;
  require_input(
      known && size >= 0 && patch > 0 && window > 0 && side > 0 && rest.empty(),
      "%s: architecture \"%s\" is not one this engine knows: swin_{tiny,small,base,large}_patch4_window<W>_<R>", where,
      architecture);
  const Preset& p = kPresets[size];
  return {side, patch, window, p.dim, p.depths, p.heads};
}

void check(const SwinConfig& c, const Loader& file, const std::string& where) {
  bool fits = c.side % c.patch == 0 && static_cast<double>(c.dim) * c.mlp_ratio >= 1 && !c.depths.empty() &&
              c.depths.size() < 16 && c.depths.size() == c.heads.size();
  int64_t R = fits ? c.side / c.patch : 0, C = c.dim;
  for (size_t s = 0; fits && s < c.depths.size(); ++s, R /= 2, C *= 2) {
    fits = C % c.heads[s] == 0 && R > 0 && R % std::min(R, c.window) == 0 && (s + 1 == c.depths.size() || R % 2 == 0);
  }
  require_input(fits,
                "%s: dim %d, patch %d, window %d, image %d and the depths and heads given do not make a Swin "
                "whose grids divide into windows",
                where, c.dim, c.patch, c.window, c.side);
  // The biases and masks of windows are made from little in the file: w^4 values from (2w-1)^2, and w^2 for a patch.
  constexpr int64_t kMaxWindow = 48, kMaxGrid = 2048, kMaxMask = 1 << 25;
  R = c.side / c.patch;
  const int64_t w = std::min(R, c.window);
  require_input(w <= kMaxWindow && R <= kMaxGrid && R * R <= kMaxMask / (w * w),
                "%s: windows of %d on a grid of %d patches are too large", where, w, R);
  file.sub("layers").sub(0).sub("blocks").sub(0).sub("attn").get("relative_position_bias_table",
                                                                 {(2 * w - 1) * (2 * w - 1), c.heads[0]});
}

// Names of today's layout -> the one before timm 0.8, then through `next` if there is one.
NameMap from_old_layout(const NameMap& next) {
  return [next](const std::string& name) {
    std::string old = name;
    std::string_view rest = name;
    if (take(rest, "head.fc.")) old = "head." + std::string(rest);
    if (take(rest, "layers.")) {
      const int64_t stage = take_number(rest, 9);
      if (stage > 0 && rest.substr(0, 12) == ".downsample.")
        old = "layers." + std::to_string(stage - 1) + std::string(rest);
    }
    return next ? next(old) : std::vector<std::string>{old};
  };
}

}  // namespace

std::unique_ptr<Model> load_swin(const VisionSource& source, const SafeTensors& file, ModelInfo info) {
  const ConfigReader in(*source.config, source.where), args = in.object("model_args");
  SwinConfig c = preset_of(in.text("architecture", ""), source.where);
  c.side = args.side("img_size", kSide, c.side);
  c.patch = args.side("patch_size", kPatch, c.patch);
  c.window = args.side("window_size", kSide, c.window);
  c.dim = args.integer({"embed_dim"}, kWidth, c.dim);
  c.depths = args.integers("depths", kDepth, c.depths);
  c.heads = args.integers("num_heads", kHeads, c.heads);
  c.mlp_ratio = args.number("mlp_ratio", kLeastRatio, kMostRatio, c.mlp_ratio);
  // What changes nothing at inference, and what is fine with one value.
  args.ignore({"drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "strict_img_size"});
  args.only({{"dynamic_img_size", "false"},
             {"always_partition", "false"},
             {"qkv_bias", "true"},
             {"global_pool", "\"avg\""},
             {"in_chans", "3"},
             {"ape", "false"},
             {"patch_norm", "true"},
             {"head_dim", "null"},
             {"norm_layer", "null"}});
  args.require_known();
  in.only({{"global_pool", "null|\"avg\""}});
  c.eps = static_cast<float>(in.number("layer_norm_eps", 0, 1, static_cast<double>(c.eps)));
  read_info(source, c.side, info);
  const bool new_layout = has_linear(Loader(file, source.names, source.packed).sub("head").sub("fc"));
  const NameMap names = new_layout ? source.names : from_old_layout(source.names);
  check(c, Loader(file, names), source.where);  // what it asks for is not counted twice
  return std::make_unique<Swin>(c, Loader(file, names, source.packed), info);
}

}  // namespace bcq
