#include "models/timm.h"

#include <algorithm>
#include <filesystem>
#include <regex>

namespace bcq {
namespace {

void read_floats(const json& from, const char* key, float out[3], const std::string& where) {
  const auto values = get_or(from, key, std::vector<float>{out[0], out[1], out[2]}, where);
  require_input(values.size() == 3, "%s: \"%s\" needs 3 numbers, has %d", where, key, values.size());
  std::copy(values.begin(), values.end(), out);
}

ImageConfig image_config(const json& pretrained, int64_t side, const std::string& where) {
  ImageConfig image;
  const auto size = get_or(pretrained, "input_size", std::vector<int64_t>{3, side, side}, where);
  require_input(size.size() == 3 && size[0] == 3, "%s: input_size must be [3, height, width]", where);
  image.height = size[1];
  image.width = size[2];
  require_input(image.height == side && image.width == side,
                "%s: input_size %s does not match the %d pixels of the architecture", where, to_string(size), side);
  image.crop_pct = get_or(pretrained, "crop_pct", 0.9, where);
  require_input(image.crop_pct > 0 && image.crop_pct <= 1, "%s: crop_pct must be in (0, 1]", where);
  image.interpolation = get_or<std::string>(pretrained, "interpolation", "bicubic", where);
  image.crop_mode = get_or<std::string>(pretrained, "crop_mode", "center", where);
  require_input(image.crop_mode == "center" || image.crop_mode == "squash",
                "%s: crop_mode \"%s\" is not supported (only \"center\" and \"squash\")", where, image.crop_mode);
  read_floats(pretrained, "mean", image.mean, where);
  read_floats(pretrained, "std", image.std, where);
  return image;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

// timm's name of a tensor -> transformers' names of it. `root` is "vit", "deit" or "swin".
std::vector<std::string> transformers_names(const std::string& name, const std::string& root, bool teacher) {
  if (name.rfind("head_dist.", 0) == 0) return {"distillation_classifier." + name.substr(10)};
  if (name.rfind("head.", 0) == 0) return {(teacher ? "cls_classifier." : "classifier.") + name.substr(5)};
  if (name == "cls_token") return {root + ".embeddings.cls_token"};
  if (name == "dist_token") return {root + ".embeddings.distillation_token"};
  if (name == "pos_embed") return {root + ".embeddings.position_embeddings"};
  if (name.rfind("norm.", 0) == 0) return {root + ".layernorm." + name.substr(5)};
  std::string to = name;
  to = replaced(to, "patch_embed.proj.", "embeddings.patch_embeddings.projection.");
  to = replaced(to, "patch_embed.norm.", "embeddings.norm.");
  const std::string self = root == "swin" ? "attention.self." : "attention.attention.";
  to = replaced(to, ".attn.proj.", ".attention.output.dense.");
  to = replaced(to, ".attn.qkv.", "." + self + "QKV.");
  to = replaced(to, ".attn.", "." + self);  // relative_position_bias_table
  to = replaced(to, ".mlp.fc1.", ".intermediate.dense.");
  to = replaced(to, ".mlp.fc2.", ".output.dense.");
  to = replaced(to, ".norm1.", ".layernorm_before.");
  to = replaced(to, ".norm2.", ".layernorm_after.");
  if (to.rfind("layers.", 0) == 0) to = "encoder." + to;
  if (to.rfind("blocks.", 0) == 0) to = "encoder.layer." + to.substr(7);
  to = root + "." + to;
  if (to.find("QKV") == std::string::npos) return {to};
  return {replaced(to, "QKV", "query"), replaced(to, "QKV", "key"), replaced(to, "QKV", "value")};
}

// timm's pretrained_cfg out of transformers' image processor.
json preprocessing(const std::string& folder, int64_t side) {
  const std::string path = (std::filesystem::path(folder) / "preprocessor_config.json").string();
  const json processor = std::filesystem::exists(path) ? read_json(path) : json::object();
  json out = {{"tag", ""}, {"input_size", {3, side, side}}, {"crop_mode", "squash"}};
  const auto edge = [&](const char* key) {
    const json size = processor.contains(key) ? processor[key] : json(side);
    if (size.is_number_integer()) return size.get<int64_t>();
    const int64_t height = get<int64_t>(size, "height", path), width = get<int64_t>(size, "width", path);
    require_input(height == width, "%s: %s is not square", path, key);
    return height;
  };
  const bool crops = get_or(processor, "do_center_crop", false, path);
  const int64_t resized = edge("size"), kept = crops ? edge("crop_size") : resized;
  require_input(kept == side && resized >= side, "%s: makes images of %d pixels, the network takes %d", path, kept,
                side);
  out["crop_pct"] = static_cast<double>(side) / (static_cast<double>(resized) + 0.5);  // floor() meets `resized`
  const int resample = get_or(processor, "resample", 2, path);
  require_input(resample == 2 || resample == 3, "%s: resample %d is not supported (2 bilinear, 3 bicubic)", path,
                resample);
  out["interpolation"] = resample == 2 ? "bilinear" : "bicubic";
  out["mean"] = processor.value("image_mean", json{0.5, 0.5, 0.5});
  out["std"] = processor.value("image_std", json{0.5, 0.5, 0.5});
  return out;
}

}  // namespace

VisionSource from_transformers(const json& config, const std::string& where, const std::string& folder,
                               const SafeTensors& file) {
  const auto type = get<std::string>(config, "model_type", where);
  const auto activation = get_or<std::string>(config, "hidden_act", "gelu", where);
  require_input(activation == "gelu", "%s: hidden_act \"%s\" is not supported (only \"gelu\")", where, activation);
  require_input(get_or(config, "qkv_bias", true, where), "%s: qkv_bias false is not supported", where);
  require_input(get_or(config, "num_channels", 3, where) == 3, "%s: num_channels must be 3", where);
  const int64_t side = get_or<int64_t>(config, "image_size", 224, where);
  json args = {{"img_size", side}};
  std::string architecture;
  bool teacher = false;
  if (type == "swin") {
    require_input(!get_or(config, "use_absolute_embeddings", false, where),
                  "%s: use_absolute_embeddings is not supported", where);
    architecture = "swin_tiny_patch4_window7_224";
    args["patch_size"] = get_or<int64_t>(config, "patch_size", 4, where);
    args["embed_dim"] = get<int64_t>(config, "embed_dim", where);
    args["window_size"] = get_or<int64_t>(config, "window_size", 7, where);
    args["depths"] = get<std::vector<int64_t>>(config, "depths", where);
    args["num_heads"] = get<std::vector<int64_t>>(config, "num_heads", where);
    args["mlp_ratio"] = get_or(config, "mlp_ratio", 4.0, where);
  } else {
    // DeiT's own class always has the second token; its second head came with the teacher.
    teacher = file.has("distillation_classifier.weight");
    architecture = type == "deit" ? "deit_base_distilled_patch16_224" : "vit_base_patch16_224";
    const auto dim = get<int64_t>(config, "hidden_size", where);
    args["patch_size"] = get_or<int64_t>(config, "patch_size", 16, where);
    args["embed_dim"] = dim;
    args["depth"] = get<int64_t>(config, "num_hidden_layers", where);
    args["num_heads"] = get<int64_t>(config, "num_attention_heads", where);
    args["mlp_ratio"] =
        static_cast<double>(get<int64_t>(config, "intermediate_size", where)) / static_cast<double>(dim);
  }
  const json labels = config.value("id2label", json::object());
  const int64_t classes =
      labels.empty() ? get_or<int64_t>(config, "num_labels", 1000, where) : static_cast<int64_t>(labels.size());
  VisionSource source;
  source.where = where;
  source.config = {{"architecture", architecture},
                   {"name", std::filesystem::canonical(folder).filename().string()},
                   {"num_classes", classes},
                   {"model_args", args},
                   {"layer_norm_eps", get_or(config, "layer_norm_eps", type == "swin" ? 1e-5 : 1e-12, where)},
                   {"pretrained_cfg", preprocessing(folder, side)}};
  source.names = [type, teacher](const std::string& name) { return transformers_names(name, type, teacher); };
  return source;
}

void check_model_args(const json& args, const std::set<std::string>& known, const json& fixed,
                      const std::string& where) {
  for (const auto& [key, value] : args.items()) {
    if (known.count(key)) continue;
    require_input(fixed.contains(key), "%s: model_args.%s is not supported", where, key);
    require_input(fixed.at(key) == value, "%s: model_args.%s = %s is not supported (only %s)", where, key, value.dump(),
                  fixed.at(key).dump());
  }
}

void read_info(const VisionSource& source, int64_t side, ModelInfo& info) {
  const json& config = source.config;
  // Old files have the pretrained settings at the top level.
  const json pretrained = config.contains("pretrained_cfg") ? config["pretrained_cfg"] : config;
  info.family = Family::Vision;
  info.name = get_or(config, "name", get<std::string>(config, "architecture", source.where), source.where);
  info.tag = get_or<std::string>(pretrained, "tag", "", source.where);
  info.outputs =
      get_or(config, "num_classes", get_or<int64_t>(pretrained, "num_classes", 1000, source.where), source.where);
  require_input(info.outputs > 0, "%s: num_classes must be positive", source.where);
  info.image = image_config(pretrained, side, source.where);
  info.timm = !source.names;
}

std::string tag_of_paper(const std::string& architecture) {
  static const std::pair<std::regex, const char*> rows[] = {
      {std::regex("vit_(small|base)_patch16_224|vit_base_patch16_384"), "augreg_in21k_ft_in1k"},
      {std::regex("deit_(small|base)_patch16_224|deit_base_patch16_384"), "fb_in1k"},
      {std::regex("swin_(tiny|small)_patch4_window7_224"), "ms_in1k"},
      {std::regex("swin_base_patch4_window(7_224|12_384)"), "ms_in22k_ft_in1k"}};
  for (const auto& [pattern, tag] : rows)
    if (std::regex_match(architecture, pattern)) return tag;
  return "";
}

}  // namespace bcq
