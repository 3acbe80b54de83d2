#include "eval/save.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/file/new_folder.h"
#include "engine/file/onnx_graph.h"
#include "engine/grid/affine.h"
#include "eval/run.h"
#include "models/layers.h"
#include "models/stored.h"
#include "quant/allocation.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;
using Kind = PackedFormat::Kind;
using Tensors = std::map<std::string, TensorInfo>;

constexpr const char* kOnnxKey = "bcq_onnx";  // of a configuration: how the ONNX file beside it was made

bool is_packed(const Layer& layer) { return layer.packed() || layer.binarized(); }

// Where a block ends in a norm, the shift of which takes the compensation of its output.
Bias* last_norm(const Part& part) {
  return part.output.tensor == part.layers().back()->name + ".bias" ? nullptr : part.output.folds_into.at(0);
}

Kind kind_of(Model& model, const SaveOptions& save) {
  if (!save.is_gptq()) return Kind::Own;
  // v1 cannot hold a zero point of 0, and readers refuse it for asymmetric weights.
  const std::vector<Layer*> layers = model.all_layers();
  const bool symmetric = std::all_of(layers.begin(), layers.end(),
                                     [](Layer* l) { return !l->packed() || is_symmetric(l->packed()->grid()); });
  return symmetric ? Kind::GptqV1 : Kind::GptqV2;
}

// What precedes the names of layers in a file: "model.decoder." of "model.decoder.layers.0.fc1.weight".
std::string prefix_of(Model& model, const SafeTensors& source) {
  const std::string wanted = model.layers(0).front()->name + ".weight";
  for (const auto& entry : source.tensors()) {
    const std::string& name = entry.first;
    if (name.ends_with(wanted) && (name.size() == wanted.size() || name[name.size() - wanted.size() - 1] == '.'))
      return name.substr(0, name.size() - wanted.size());
  }
  throw InputError(format("%s: no tensor is called %s", source.path(), quoted(wanted)));
}

// ---- GPTQ's conventions -------------------------------------------------------------------------

std::string type_of(const json& config) { return get_or<std::string>(config, "model_type", "", "config.json"); }

// The full names transformers gives the tensors of a causal language model, which are what GPTQ's readers look for.
struct FullNames {
  std::string top, embedding;  // what all names but the head's begin with; the embedding
  bool tied;                   // it is the head, too
  std::string operator()(const std::string& name) const {
    return name.rfind(top, 0) == 0 || name.rfind("lm_head.", 0) == 0 ? name : top + name;
  }
};
FullNames full_names(const json& config) {
  const std::string type = type_of(config);
  if (type == "bloom") return {"transformer.", "transformer.word_embeddings.weight", true};
  if (type == "opt") return {"model.", "model.decoder.embed_tokens.weight", true};
  return {"model.", "model.embed_tokens.weight", get_or<bool>(config, "tie_word_embeddings", false, "config.json")};
}

// The key of a configuration that gives this layer a bias, and others with it; null: the family has none.
const char* bias_key(const std::string& type, const Layer& layer) {
  const bool is_mlp = layer.role == Role::Fc1 || layer.role == Role::Fc2;
  if (type == "llama") return is_mlp ? "mlp_bias" : "attention_bias";
  if (type == "qwen3" && !is_mlp) return "attention_bias";
  return type == "opt" ? "enable_bias" : nullptr;
}

// Biases of zeros where keys that compensated layers need give others one, too; and these keys. `tensors`: of the
// layers, by their names.
void add_biases(Model& model, json& config, Tensors& tensors) {
  const std::string type = type_of(config);
  const std::vector<Layer*> layers = model.all_layers();
  for (const Layer* layer : layers)
    if (layer->bias.loaded.empty() && !layer->bias.compensated.empty()) config[bias_key(type, *layer)] = true;
  for (const Layer* layer : layers) {
    const char* key = bias_key(type, *layer);
    if (!key || !get_or<bool>(config, key, false, "config.json") || !layer->bias.in(Precision::Fake).empty()) continue;
    const std::string name = layer->name + ".bias";
    tensors[name] = store(Tensor({layer->weight.dim(0)}), DType::F16, name);
  }
}

void to_full_names(const FullNames& full, Tensors& tensors) {
  Tensors renamed;
  for (auto& [name, tensor] : tensors) renamed[full(name)] = std::move(tensor);
  const auto head = renamed.find("lm_head.weight");
  if (full.tied && head != renamed.end()) {
    renamed.emplace(full.embedding, head->second);
    renamed.erase(head);
  }
  tensors = std::move(renamed);
}

// Norms scales were folded into, by their names in checkpoints without what precedes the blocks.
std::map<std::string, Norm*> folded_norms(Model& model, int i) {
  std::map<std::string, Norm*> norms;
  const Part part = model.part(i);
  for (const LayerGroup& group : part.groups)
    if (Norm* norm = group.source.norm; norm && model.is_folded())
      norms[norm->name.substr(norm->name.find(part.name + "."))] = norm;
  return norms;
}

// ---- Configuration ------------------------------------------------------------------------------

std::string escaped(const std::string& name) {
  std::string pattern;
  for (const char c : name) pattern += c == '.' ? "\\." : std::string(1, c);
  return pattern;
}

// "quantization_config". `name` makes the full name of a layer.
json quantization_config(Model& model, Kind kind, const std::function<std::string(const std::string&)>& name,
                         const json& facts) {
  const bool own = kind == Kind::Own;
  const int bits = facts.at("wbits").get<int>();
  json dynamic = json::object();
  bool scattered = false, symmetric = true;
  int64_t positions = 0;
  json group = facts.at("groupsize");
  for (const Layer* layer : model.all_layers()) {
    const std::string pattern = "^" + escaped(name(layer->name)) + "$";
    if (!is_packed(*layer)) {
      dynamic["-:" + pattern] = json::object();
      continue;
    }
    if (const BinaryPlanes* planes = layer->binarized()) {
      group = planes->block;
      continue;
    }
    const Affine grid = layer->packed()->grid();
    if (grid.bits != bits) dynamic["+:" + pattern] = {{"bits", grid.bits}};
    scattered |= !grid.column_group.empty();
    symmetric &= is_symmetric(grid);
  }
  for (const Point& point : model.all_points())
    for (const Tensor* added : point.added)
      if (!added->empty()) positions = added->dim(0);

  json config = {{"quant_method", own ? "bcq" : "gptq"},
                 {"bits", bits},
                 {"group_size", group},
                 {"desc_act", scattered},
                 {"sym", symmetric}};
  if (!dynamic.empty()) config["dynamic"] = dynamic;
  if (own) {
    config["format_version"] = 1;
    if (positions > 0) config["bc_positions"] = positions;
  } else {
    config["checkpoint_format"] = kind == Kind::GptqV1 ? "gptq" : "gptq_v2";
    config["pack_dtype"] = "int32";
    config["lm_head"] = false;
  }
  config["meta"] = {{"quantizer", json::array({std::string("bcq:") + version()})}};
  for (const char* key : {"percdamp", "static_groups", "true_sequential", "mse"})
    if (facts.contains(key) && !facts[key].is_null())
      config["meta"][std::string(key) == "percdamp" ? "damp_percent" : key] = facts[key];
  return config;
}

// ---- Folders ------------------------------------------------------------------------------------

// Written by this program: its configuration says so.
bool is_ours(const fs::path& folder) {
  try {
    const json config = read_json((folder / "config.json").string());
    const json& about = config.at(config.contains(kOnnxKey) ? kOnnxKey : "quantization_config");
    return about.at("meta").at("quantizer").at(0).get<std::string>().rfind("bcq:", 0) == 0;
  } catch (const std::exception&) {
    return false;
  }
}

void copy_preprocessing(const fs::path& from, const fs::path& to) {
  const char* name = "preprocessor_config.json";
  if (fs::exists(from / name)) write_file((to / name).string(), read_file((from / name).string()));
}

fs::path target_of(const SaveOptions& save) {
  fs::path target = fs::absolute(save.directory).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();
  return fs::is_symlink(target) ? fs::weakly_canonical(target) : target;  // a link stays
}

}  // namespace

void put_block(Model& model, int i, Kind kind, Tensors& tensors) {
  const DType bias_type = kind == Kind::Own ? DType::F32 : DType::F16;
  const Part part = model.part(i);
  for (const Layer* layer : part.layers()) {
    const std::string& name = layer->name;
    const Tensor& bias = model.is_folded() ? layer->bias.in(Precision::Fake) : layer->bias.compensated;
    if (const BinaryPlanes* planes = layer->binarized())
      put_binary(name, *planes, tensors);
    else if (is_packed(*layer))
      put_packed(name, *layer->packed(), kind, tensors);
    else if (model.is_folded())
      tensors[name + ".weight"] = store(layer->weight.values(), DType::F32, name + ".weight");
    if (!bias.empty()) tensors[name + ".bias"] = store(bias, bias_type, name + ".bias");
    if (!layer->added.empty()) tensors[name + ".bc"] = store(layer->added, DType::F32, name + ".bc");
  }
  for (const auto& [name, norm] : folded_norms(model, i)) {
    tensors[name + ".weight"] = store(norm->weight, DType::F32, name + ".weight");
    if (norm->centred) tensors[name + ".bias"] = store(norm->bias.loaded, DType::F32, name + ".bias");
  }
  const Bias* norm = last_norm(part);
  if (norm && !norm->compensated.empty())
    tensors[part.output.tensor] = store(norm->compensated, DType::F32, part.output.tensor);
  const Tensor& added = *part.output.added.at(0);
  if (!added.empty()) tensors[part.name + ".bc"] = store(added, DType::F32, part.name + ".bc");
}

void get_block(Model& model, int i, const Loader& from) {
  const Part part = model.part(i);
  for (Layer* layer : part.layers()) {
    const Loader at = from.sub(layer->name);
    const int64_t out = layer->weight.dim(0);
    if (has_packed(at)) quantize_packed(at, *layer, out, layer->weight.dim(1));
    if (at.has("bias")) layer->bias.compensated = at.get("bias", {out});
    layer->added = get_bc(at, out);
  }
  const int64_t D = part.layers().back()->weight.dim(0);
  Bias* norm = last_norm(part);
  if (norm && from.has(part.output.tensor)) norm->compensated = from.get(part.output.tensor, {D});
  *part.output.added.at(0) = get_bc(from.sub(part.name), D);
}

std::string partial_folder(const SaveOptions& save) { return target_of(save).string() + ".partial"; }

void check_target(const SaveOptions& save, const std::string& source) {
  const fs::path target = target_of(save);
  require_usage(fs::is_directory(target.parent_path()), "--save %s: %s is not a folder", save.directory,
                target.parent_path());
  require(::access(target.parent_path().c_str(), W_OK | X_OK) == 0, "--save %s: nothing can be written into %s",
          save.directory, target.parent_path());
  if (!fs::exists(target)) return;
  require_usage(fs::is_directory(target), "--save %s: exists and is not a folder", save.directory);
  const fs::path from = fs::weakly_canonical(source);
  for (fs::path p = from; p.has_relative_path(); p = p.parent_path())
    require_usage(p != fs::weakly_canonical(target), "--save %s: the model itself is in this folder", save.directory);
  require_usage(fs::is_empty(target) || is_ours(target) || save.force,
                "--save %s: exists and was not written by this program; --force replaces it", save.directory);
}

void check_format(const SaveOptions& save, Model& model, const Recipe& recipe) {
  const LayerBits bits = allocate_bits(model, recipe.layer_bits, recipe.exclude);  // refuses bad rules
  if (!save.is_gptq()) return;
  const char* const remedy = "--format bcq can";
  const int64_t groupsize = recipe.weights.groupsize;
  const std::string type = type_of(read_json((fs::path(model.info().directory) / "config.json").string()));
  const std::vector<std::string> sites = split(recipe.bc_sites);
  const auto compensates_a = [&](const char* site) {
    return compensates(recipe) && std::find(sites.begin(), sites.end(), site) != sites.end();
  };
  std::set<const Bias*> of_blocks;
  for (int i = 0; i < model.depth() && compensates_a("block"); ++i)
    of_blocks.insert(model.part(i).output.folds_into.at(0));
  require_usage(recipe.bc != BcForm::Position,
                "--format gptq cannot hold a bias per position; --bc channel can be folded, and %s", remedy);
  constexpr int64_t kGroups[] = {-1, 16, 32, 64, 128, 256, 512, 1024};  // that its readers have kernels for
  require_usage(std::find(std::begin(kGroups), std::end(kGroups), groupsize) != std::end(kGroups),
                "--format gptq cannot hold --groupsize %d: its readers take -1 and powers of two from 16 to 1024; %s",
                groupsize, remedy);
  for (const Layer* layer : model.all_layers()) {
    const int b = bits_of(*layer, bits, recipe.weights.bits);
    const bool gets_bias = of_blocks.count(&layer->bias) || (b > 0 && compensates_a("linear"));
    require_usage(!gets_bias || !layer->bias.loaded.empty() || bias_key(type, *layer),
                  "--format gptq cannot hold the bias that --bc gives %s: in transformers' %s models it has none; %s, "
                  "and --bc none leaves it without",
                  layer->name, type, remedy);
    if (b == 0) continue;
    const int64_t out = layer->weight.dim(0), in = layer->weight.dim(1);
    require_usage(b == 2 || b == 3 || b == 4 || b == 8,
                  "--format gptq cannot hold the %d bits of %s: it has 2, 3, 4 and 8; %s", b, layer->name, remedy);
    require_usage(out % 32 == 0 && in % 32 == 0 && (groupsize < 0 || in % groupsize == 0),
                  "--format gptq cannot hold %s of %d inputs and %d outputs with --groupsize %d: both must be "
                  "multiples of 32, and the inputs of the group; %s",
                  layer->name, in, out, groupsize, remedy);
  }
}

void round_to_gptq(Model& model) {
  const SafeTensors source = SafeTensors::open(model.info().weights);
  const std::string prefix = prefix_of(model, source);
  const auto as_stored = [&](const std::string& name, const Tensor& x) {
    return load(store(x, source.tensors().at(prefix + name).dtype, name), name);
  };
  for (Layer* layer : model.all_layers()) {
    const Tensor& bias = layer->bias.in(Precision::Fake);
    const std::string name = layer->name + ".bias";
    const bool stored = is_packed(*layer) || model.is_folded() || !layer->bias.compensated.empty();  // see put_block()
    if (stored && !bias.empty()) layer->bias.compensated = load(store(bias, DType::F16, name), name);
    if (!is_packed(*layer) && layer->is_linear() && model.is_folded())
      layer->weight = as_stored(layer->name + ".weight", layer->weight.values());
  }
  for (int i = 0; i < model.depth(); ++i) {
    for (const auto& [name, norm] : folded_norms(model, i)) {
      norm->weight = as_stored(name + ".weight", norm->weight);
      if (norm->centred) norm->bias.loaded = as_stored(name + ".bias", norm->bias.loaded);
    }
    const Part part = model.part(i);
    Bias* norm = last_norm(part);
    const std::string& name = part.output.tensor;
    if (norm && !norm->compensated.empty()) norm->compensated = as_stored(name, norm->compensated);
  }
}

Saved save_model(Model& model, const SaveOptions& save, const json& facts) {
  const SafeTensors source = SafeTensors::open(model.info().weights);
  const std::string prefix = prefix_of(model, source);
  const Kind kind = kind_of(model, save);
  if (save.is_gptq()) round_to_gptq(model);

  Tensors made;
  for (int i = 0; i < model.depth(); ++i) put_block(model, i, kind, made);
  Saved saved;
  Tensors tensors = source.tensors();
  for (const auto& [name, t] : tensors) saved.bytes_before += static_cast<int64_t>(t.size());
  double weights = 0, bits = 0;
  for (const Layer* layer : model.all_layers()) {
    if (!is_packed(*layer)) continue;
    tensors.erase(prefix + layer->name + ".weight");
    weights += static_cast<double>(layer->weight.size());
  }
  for (auto& [name, t] : made) {
    const bool adds = !tensors.count(prefix + name);  // a bias or a norm that was there is only replaced
    if (adds) bits += 8.0 * static_cast<double>(t.size());
    const auto before = tensors.find(prefix + name);
    // Norms are stored as the source has them: they are rounded already.
    if (save.is_gptq() && t.dtype == DType::F32 && before != tensors.end())
      t = store(load(t, name), before->second.dtype, name);
    tensors[prefix + name] = t;
  }
  saved.bits_per_weight = bits / weights;

  const fs::path folder = fs::path(model.info().directory);
  json config = read_json((folder / "config.json").string());
  std::map<std::string, std::string> metadata = source.metadata();
  metadata["bcq"] = facts.dump(-1, ' ', false, json::error_handler_t::replace);
  const FullNames full = full_names(config);
  if (save.is_gptq()) {
    Tensors zeros;
    add_biases(model, config, zeros);
    for (const auto& [name, tensor] : zeros) tensors[prefix + name] = tensor;
    to_full_names(full, tensors);
    // What readers compute in: of another type they would round the scales once more.
    config["torch_dtype"] = "float16";
    if (config.contains("dtype")) config["dtype"] = "float16";  // its name from transformers 5 on
  }
  const json quantization = quantization_config(
      model, kind, [&](const std::string& site) { return save.is_gptq() ? full(prefix + site) : prefix + site; },
      facts);
  config["quantization_config"] = quantization;
  for (const auto& entry : tensors) saved.bytes += static_cast<int64_t>(entry.second.size());

  NewFolder out(target_of(save));
  write_safetensors((out.path() / "model.safetensors").string(), tensors, metadata);
  write_file((out.path() / "config.json").string(), dump(config, 2) + "\n");
  if (save.is_gptq()) write_file((out.path() / "quantize_config.json").string(), dump(quantization, 2) + "\n");
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                           "special_tokens_map.json", "added_tokens.json", "generation_config.json"})
    if (fs::exists(folder / name)) write_file((out.path() / name).string(), read_file((folder / name).string()));
  out.commit();
  return saved;
}

Saved save_vision(Model& model, const SaveOptions& save, const Recipe& recipe) {
  const ModelInfo& info = model.info();
  const SafeTensors source = SafeTensors::open(info.weights);
  const StoredModel stored = put_stored(model, source);
  Saved saved;
  saved.bits_per_weight = stored.bits_per_weight;
  for (const auto& entry : source.tensors()) saved.bytes_before += static_cast<int64_t>(entry.second.size());
  for (const auto& entry : stored.tensors) saved.bytes += static_cast<int64_t>(entry.second.size());

  const fs::path folder = info.directory;
  json config = read_json((folder / "config.json").string());
  json& quantization = config["quantization_config"] = stored.about;
  quantization.update(
      {{"quant_method", "bcq"},
       {"format", "grids"},
       {"format_version", 1},
       {"method", name_of(recipe)},
       {"recipe", to_json(recipe)},
       {"meta",
        {{"quantizer", json::array({std::string("bcq:") + version()})}, {"model", info.name}, {"tag", info.tag}}}});
  NewFolder out(target_of(save));
  write_safetensors((out.path() / "model.safetensors").string(), stored.tensors, source.metadata());
  write_file((out.path() / "config.json").string(), dump(config, 2) + "\n");
  copy_preprocessing(folder, out.path());
  out.commit();
  return saved;
}

Saved save_onnx(Model& model, const SaveOptions& save, const Recipe& recipe) {
  const ModelInfo& info = model.info();
  Saved saved;
  const SafeTensors source = SafeTensors::open(info.weights);
  for (const auto& entry : source.tensors()) saved.bytes_before += static_cast<int64_t>(entry.second.size());
  const json made = to_json(recipe);
  const std::string bytes =
      onnx_bytes(model.onnx(quantizes(recipe) ? Precision::Fake : Precision::Float), {{"producer_name", "bcq"},
                                                                                      {"producer_version", version()},
                                                                                      {"bcq.model", info.name},
                                                                                      {"bcq.tag", info.tag},
                                                                                      {"bcq.recipe", dump(made)}});
  saved.bytes = static_cast<int64_t>(bytes.size());

  const fs::path folder = info.directory;
  json config = read_json((folder / "config.json").string());
  config[kOnnxKey] = {{"method", name_of(recipe)},
                      {"recipe", made},
                      {"meta", {{"quantizer", json::array({std::string("bcq:") + version()})}}}};
  if (config.contains("quantization_config")) {  // of tensors that are not here
    config[kOnnxKey]["stored"] = config["quantization_config"].value("recipe", json());
    config.erase("quantization_config");
  }
  NewFolder out(target_of(save));
  write_file((out.path() / "model.onnx").string(), bytes);
  write_file((out.path() / "config.json").string(), dump(config, 2) + "\n");
  copy_preprocessing(folder, out.path());
  out.commit();
  return saved;
}

json to_json(const SaveOptions& save, const Saved& saved) {
  json record = {{"folder", save.directory},
                 {"format", save.format},
                 {"bytes", saved.bytes},
                 {"bytes_before", saved.bytes_before}};
  if (saved.bits_per_weight > 0) record["bits_per_weight"] = saved.bits_per_weight;
  return record;
}

std::string saved_text(const SaveOptions& save, const Saved& saved) {
  return format("saved to %s (%s): %.1f MB, was %.1f MB", save.directory, save.format,
                static_cast<double>(saved.bytes) / 1e6, static_cast<double>(saved.bytes_before) / 1e6) +
         (saved.bits_per_weight > 0 ? format("; %.3f bits per quantized weight", saved.bits_per_weight) : "");
}

}  // namespace bcq
