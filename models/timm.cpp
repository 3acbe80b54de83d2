#include "models/timm.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

// timm's name of a tensor -> transformers' names of it. `root` is "vit", "deit", "swin", "dinov2..." or, of a model
// without a classifier, empty.
std::vector<std::string> transformers_names(const std::string& name, const std::string& root, bool dinov2,
                                            bool teacher) {
  if (name.rfind("head_dist.", 0) == 0) return {"distillation_classifier." + name.substr(10)};
  if (name.rfind("head.", 0) == 0) return {(teacher ? "cls_classifier." : "classifier.") + name.substr(5)};
  const std::string prefix = root.empty() ? "" : root + ".";
  if (name == "cls_token") return {prefix + "embeddings.cls_token"};
  if (name == "dist_token") return {prefix + "embeddings.distillation_token"};
  if (name == "reg_token") return {prefix + "embeddings.register_tokens"};
  if (name == "pos_embed") return {prefix + "embeddings.position_embeddings"};
  if (name.rfind("norm.", 0) == 0) return {prefix + "layernorm." + name.substr(5)};
  std::string to = name;
  to = replace_all(to, "patch_embed.proj.", "embeddings.patch_embeddings.projection.");
  to = replace_all(to, "patch_embed.norm.", "embeddings.norm.");
  const std::string self = root == "swin" ? "attention.self." : "attention.attention.";
  to = replace_all(to, ".attn.proj.", ".attention.output.dense.");
  to = replace_all(to, ".attn.qkv.", "." + self + "QKV.");
  to = replace_all(to, ".attn.", "." + self);  // relative_position_bias_table
  if (dinov2) {
    to = replace_all(to, ".ls1.gamma", ".layer_scale1.lambda1");
    to = replace_all(to, ".ls2.gamma", ".layer_scale2.lambda1");
  } else {
    to = replace_all(to, ".mlp.fc1.", ".intermediate.dense.");
    to = replace_all(to, ".mlp.fc2.", ".output.dense.");
    to = replace_all(to, ".norm1.", ".layernorm_before.");
    to = replace_all(to, ".norm2.", ".layernorm_after.");
  }
  if (to.rfind("layers.", 0) == 0) to = "encoder." + to;
  if (to.rfind("blocks.", 0) == 0) to = "encoder.layer." + to.substr(7);
  to = prefix + to;
  if (to.find("QKV") == std::string::npos) return {to};
  return {replace_all(to, "QKV", "query"), replace_all(to, "QKV", "key"), replace_all(to, "QKV", "value")};
}

// The names of the classes in "id2label", whose keys are "0" to "n-1"; empty when there is none.
std::vector<std::string> labels_of(const ConfigReader& in, Notes& notes) {
  std::vector<std::string> labels;
  const json& by_id = in.value("id2label");
  if (by_id.is_null() || (by_id.is_object() && by_id.empty())) return labels;
  if (!by_id.is_object()) in.refuse("id2label", "an object of names by number");
  for (size_t i = 0; i < by_id.size(); ++i) {
    const auto at = by_id.find(std::to_string(i));
    if (at == by_id.end() || !at->is_string())
      in.refuse("id2label", format("names by number, from \"0\" to \"%d\" without a gap", by_id.size() - 1));
    labels.push_back(at->get<std::string>());
  }
  if (!in.has("label2id")) return labels;
  for (const auto& [name, id] : in.value("label2id").items()) {
    const json& label = by_id.value(id.is_string() ? id.get<std::string>() : dump(id), json());
    if (label == name) continue;
    notes.push_back(format("%s: label2id and id2label disagree on %s: id2label is obeyed", in.where(), quoted(name)));
    break;
  }
  return labels;
}

// Without id2label transformers makes num_labels classes, by default two; what the head has decides.
int64_t classes_of(const ConfigReader& in, const SafeTensors& file, const std::string& head, Notes& notes) {
  if (in.has("num_labels")) return in.integer({"num_labels"});
  const auto weight = file.tensors().find(head);
  const bool known = weight != file.tensors().end() && weight->second.shape.size() == 2;
  const int64_t rows = known ? weight->second.shape[0] : 2;
  notes.push_back(format("%s: no id2label: %d classes, %s", in.where(), rows,
                         known ? "as many as the head has rows" : "the default of transformers"));
  return rows;
}

// An mlp_ratio of which int(width * ratio) is `hidden`: the quotient alone may give one less.
double mlp_ratio(int64_t hidden, int64_t width) {
  const auto w = static_cast<double>(width), h = static_cast<double>(hidden);
  return w * (h / w) < h ? std::nextafter(h / w, h) : h / w;
}

}  // namespace

VisionSource from_transformers(const json& config, const std::string& where, const std::string& folder,
                               const SafeTensors& file, bool has_own_names) {
  const ConfigReader in(config, where);
  const std::string type = in.text("model_type", "");
  VisionSource source;
  source.where = where;
  if (type == "timm_wrapper") {  // timm's own config.json, in which transformers left its keys
    source.config = std::make_shared<const json>(config);
    const auto has_prefix = [](const auto& entry) { return entry.first.rfind("timm_model.", 0) == 0; };
    if (std::any_of(file.tensors().begin(), file.tensors().end(), has_prefix))
      source.names = [](const std::string& name) { return std::vector{"timm_model." + name}; };
    return source;
  }
  in.only({{"hidden_act", "\"gelu\""},
           {"num_channels", "3"},
           {"use_absolute_embeddings", "false"},
           {"use_swiglu_ffn", "false"}});
  const bool swin = type == "swin", dinov2 = source.is_dinov2 = type.rfind("dinov2", 0) == 0;
  source.image = transformers_preprocessing(folder, type, in.side("image_size", kSide, 224), source.notes, dinov2);
  json args = {{"img_size", source.image->height},
               {"patch_size", in.side("patch_size", kPatch,
                                      swin               ? 4
                                      : type == "dinov2" ? 14
                                                         : 16)},
               {"qkv_bias", in.flag("qkv_bias", true)}};
  if (swin) {
    args["embed_dim"] = in.integer({"embed_dim"}, kWidth, 96);
    args["window_size"] = in.side("window_size", kSide, 7);
    args["depths"] = in.integers("depths", kDepth, {2, 2, 6, 2});
    args["num_heads"] = in.integers("num_heads", kHeads, {3, 6, 12, 24});
    args["mlp_ratio"] = in.number("mlp_ratio", kLeastRatio, kMostRatio, 4.0);
  } else {
    const int64_t width = in.integer({"hidden_size"}, kWidth);
    args["embed_dim"] = width;
    args["depth"] = in.integer({"num_hidden_layers"}, kDepth);
    args["num_heads"] = in.integer({"num_attention_heads"}, kHeads);
    args["mlp_ratio"] = dinov2 ? in.number("mlp_ratio", kLeastRatio, kMostRatio, 4.0)
                               : mlp_ratio(in.integer({"intermediate_size"}), width);
  }
  if (dinov2) args["init_values"] = 1.0;  // its value at the start of training: there is a LayerScale
  if (type == "dinov2_with_registers") args["reg_tokens"] = in.integer({"num_register_tokens"}, kRegisters, 4);
  // DeiT's own class always has the second token; its second head came with the teacher.
  const bool teacher = file.has("distillation_classifier.weight");
  const std::string own = swin ? "head.fc" : "head";
  const std::string head = !has_own_names              ? teacher ? "cls_classifier.weight" : "classifier.weight"
                           : file.has(own + ".weight") ? own + ".weight"
                                                       : own + ".qweight";
  const bool classifies = !dinov2 || file.has(head);  // else it is a Dinov2Model
  const std::vector<std::string> labels = classifies ? labels_of(in, source.notes) : std::vector<std::string>{};
  json timm = {{"architecture", swin             ? "swin_tiny_patch4_window7_224"
                                : type == "deit" ? "deit_base_distilled_patch16_224"
                                                 : "vit_base_patch16_224"},
               {"name", std::filesystem::canonical(folder).filename().string()},
               {"model_args", args},
               {"layer_norm_eps", in.number("layer_norm_eps", 0, 1,
                                            swin     ? 1e-5
                                            : dinov2 ? 1e-6
                                                     : 1e-12)},
               {"pretrained_cfg", json::object()}};
  timm["num_classes"] = !classifies      ? 0
                        : labels.empty() ? classes_of(in, file, head, source.notes)
                                         : static_cast<int64_t>(labels.size());
  if (!labels.empty()) timm["label_names"] = labels;
  source.config = std::make_shared<const json>(timm);
  if (has_own_names) return source;
  const std::string root = file.has(type + ".embeddings.cls_token") || !dinov2 ? type : "";
  source.names = [=](const std::string& name) { return transformers_names(name, root, dinov2, teacher); };
  return source;
}

bool take(std::string_view& name, std::string_view word) {
  const bool found = name.substr(0, word.size()) == word;
  if (found) name.remove_prefix(word.size());
  return found;
}

int64_t take_number(std::string_view& name, size_t digits) {
  int64_t number = 0;
  if (name.empty() || name[0] == '0') return 0;
  const char* const end = std::from_chars(name.data(), name.data() + std::min(digits, name.size()), number).ptr;
  name.remove_prefix(static_cast<size_t>(end - name.data()));
  return std::max<int64_t>(number, 0);  // "-1" is a number to from_chars
}

int take_size(std::string_view& name) {
  const char* const sizes[] = {"tiny", "small", "base", "large"};
  for (int i = 0; i < 4; ++i)
    if (take(name, sizes[i])) return i;
  return -1;
}

void read_info(const VisionSource& source, int64_t side, ModelInfo& info) {
  const ConfigReader in(*source.config, source.where);
  // Old files have the pretrained settings at the top level.
  const bool flat = !in.has("pretrained_cfg");
  const ConfigReader pretrained = flat ? in : in.object("pretrained_cfg");
  info.family = Family::Vision;
  info.name = in.text("name", in.text("architecture", ""));
  info.tag = pretrained.text("tag", "");
  info.outputs = in.integer({"num_classes"}, {0}, pretrained.integer({"num_classes"}, {0}, 1000));
  info.notes = source.notes;
  info.timm = !source.image;
  for (const auto& [where, key] :
       {std::pair{&in, "label_names"}, {&pretrained, "label_names"}, {&pretrained, "labels"}})
    if (info.labels.empty()) info.labels = where->texts(key);
  require_input(info.labels.empty() || static_cast<int64_t>(info.labels.size()) == info.outputs,
                "%s: label_names has %d names, but num_classes is %d", source.where, info.labels.size(), info.outputs);
  if (source.image) {
    info.image = *source.image;
    return;
  }
  info.image = timm_preprocessing(pretrained, side, info.notes);
  if (flat) return;  // among the keys of the network
  pretrained.ignore(
      {"url",          "file",        "hf_hub_id",      "source",         "license",          "hf_hub_filename",
       "architecture", "custom_load", "pool_size",      "min_input_size", "fixed_input_size", "label_descriptions",
       "label_names",  "labels",      "test_pool_size", "first_conv",     "classifier",       "description",
       "origin_url",   "paper_name",  "paper_ids",      "notes"});
  pretrained.only({{"state_dict", "null"}, {"label_offset", "null|0"}});
  pretrained.require_known();
}

std::string tag_of_paper(const std::string& architecture) {
  constexpr struct {
    const char *tag, *architectures[3];
  } rows[] = {{"augreg_in21k_ft_in1k", {"vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch16_384"}},
              {"fb_in1k", {"deit_small_patch16_224", "deit_base_patch16_224", "deit_base_patch16_384"}},
              {"ms_in1k", {"swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"}},
              {"ms_in22k_ft_in1k", {"swin_base_patch4_window7_224", "swin_base_patch4_window12_384"}}};
  for (const auto& row : rows)
    for (const char* name : row.architectures)
      if (name && architecture == name) return row.tag;
  return "";
}

}  // namespace bcq
