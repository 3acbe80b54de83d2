#include "eval/run.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "data/image/cache.h"
#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "quant/allocation.h"
#include "quant/calibrate.h"
#include "quant/dfq.h"
#include "quant/qwt.h"

namespace bcq {

namespace fs = std::filesystem;

namespace {

BcOptions bc_options(const Recipe& r) {
  BcOptions o;
  o.shape = r.bc == BcForm::Channel ? BcShape::Channel : BcShape::Position;
  const std::vector<std::string> names = split(r.bc_sites);
  for (const BcSite& site : kBcSites) o.*site.chosen = std::find(names.begin(), names.end(), site.name) != names.end();
  o.stream = r.bc_stream;
  o.held_out = r.bc_held_out;
  o.masked_attention = !r.official_mask;
  return o;
}

// The layers of the blocks that have other bits than the rest, with 32 for those that stayed float.
json layer_bits(Model& model, int bits) {
  json exceptions = json::object();
  for (int i = 0; i < model.depth(); ++i)
    for (const Layer* layer : model.layers(i)) {
      if (!layer->is_linear()) continue;
      const Grid binary = layer->quantized ? layer->quantized->right : Grid{};
      const int own = layer->packed() ? layer->packed()->bits() : binary.is_identity() ? 32 : binary->bits;
      if (own != bits) exceptions[layer->name] = own;
    }
  return exceptions;
}

}  // namespace

Outcome quantize(Task& task, const Recipe& r, const Progress& progress, const Warn& warn, PartStore* store) {
  Outcome outcome;
  Model& model = task.model;
  if (!quantizes(r) || r.method == MethodName::Stored) return outcome;
  require_usage(!model.info().packed, "%s is quantized already", model.info().name);
  model.clear();
  task.before_quantization(progress);
  const bool vision = r.family == Family::Vision;
  const LayerBits bits = vision ? LayerBits{} : allocate_bits(model, r.layer_bits, r.exclude);
  const MethodRow& row = row_of(r);
  const std::unique_ptr<Method> method = row.make(r, bits, warn);
  BiasCompensation compensation(bc_options(r));
  std::vector<Method*> methods = {method.get()};
  if (in_one_walk(r) && !vision) methods.push_back(&compensation);  // the joint method of vision fits biases itself
  Qwt qwt;
  if (vision && r.qwt) methods.push_back(&qwt);
  std::vector<Batch> data;
  if (row.calibrates) data = task.calibration(r);
  if (vision) data = vision_batches(model, data.at(0).pixels);
  if (row.fold) {
    const std::unique_ptr<Method> folding = row.fold(r, bits, warn);
    calibrate(model, data, {folding.get()}, {"scales", progress, nullptr, static_cast<int>(r.prefill_bits)});
  }
  outcome.solved = calibrate(model, data, methods,
                             {vision ? "calibration" : "GPTQ", progress, store, static_cast<int>(r.prefill_bits)});
  outcome.fitted = outcome.solved.fitted();
  return outcome;
}

void compensate(Task& task, const Recipe& r, Outcome& outcome, const Progress& progress, PartStore* store,
                bool report) {
  Model& model = task.model;
  if (in_one_walk(r) || r.method == MethodName::Stored) return;
  static const std::vector<Batch> kNone;
  const std::vector<Batch>& data = measures_errors(r) || report ? task.compensation(r) : kNone;
  model.clear_compensation();
  outcome.compensated = {};
  if (report) outcome.before = output_errors(model, data, progress);
  if (measures_errors(r))
    outcome.compensated = compensate(model, data, bc_options(r), progress, store, static_cast<int>(r.prefill_bits));
  outcome.fitted = outcome.compensated.fitted();
  if (r.bc == BcForm::DataFree) outcome.fitted = correct_biases(model);
  if (report) outcome.after = output_errors(model, data, progress);
}

bool set_stored_method(const Model& model, Recipe& r) {
  const ModelInfo& info = model.info();
  require_usage(info.packed || r.method != MethodName::Stored,
                "--recipe: the recipe is of a model that was stored quantized, %s is not", info.name);
  if (!info.packed) return false;
  require_usage((!quantizes(r) || r.method == MethodName::Stored) && !compensates(r),
                "%s is quantized already: it is evaluated as it is stored, without --method and --bc", info.name);
  r.method = MethodName::Stored;
  return true;
}

Precision precision_of(const Recipe& r) {
  return !quantizes(r) ? Precision::Float : r.integer ? Precision::Integer : Precision::Fake;
}

double bits_per_weight(Model& model) {
  double bits = 0, weights = 0;
  for (const Layer* layer : model.all_layers())
    if (layer->is_linear()) {
      const Grid grid = layer->packed() ? layer->packed()->grid() : layer->quantized ? layer->quantized->right : Grid{};
      bits += storage_bits(grid, layer->weight.shape());
      weights += static_cast<double>(layer->weight.size());
    }
  return bits / weights;
}

int most_common(const std::map<int, int64_t>& counts) {
  const auto fewer = [](const auto& a, const auto& b) { return a.second < b.second; };
  return std::max_element(counts.begin(), counts.end(), fewer)->first;
}

const char* op_name(Role role) {
  constexpr const char* names[] = {"patch",   "qkv",  "q",   "k",   "v",         "matmul1",
                                   "matmul2", "proj", "fc1", "fc2", "reduction", "head"};  // in the order of Role
  static_assert(std::size(names) == static_cast<size_t>(Role::Head) + 1);
  return names[static_cast<size_t>(role)];
}

namespace {

uint64_t add_file(const fs::path& file, uint64_t hash) {
  std::vector<char> piece(1 << 20);
  std::ifstream in(file, std::ios::binary);
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0)
    hash = checksum({piece.data(), static_cast<size_t>(in.gcount())}, hash);
  require_input(in.eof(), "%s: cannot be read", file);
  return hash;
}

}  // namespace

std::string file_hash(const std::string& path) { return format("%016x", add_file(path, 0)); }

std::string fingerprint(const std::string& model) {
  const fs::path folder = fs::is_directory(model) ? fs::path(model) : fs::path(model).parent_path();
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder.empty() ? "." : folder))
    if (entry.path().extension() == ".safetensors" || entry.path().extension() == ".json")
      files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  uint64_t hash = 0;
  for (const fs::path& file : files) hash = add_file(file, checksum(file.filename().string(), hash));
  return format("%016x", hash);
}

void require_same_files(const std::string& model, const std::string& data_hash) {
  if (ranks() > 1)
    require_same_in_ranks(format("%s with hash %s and data with hash %s", model, fingerprint(model), data_hash));
}

json flat_recipe(Model& model, const Recipe& r) {
  json flat = {{"wbits", 32}, {"abits", 32}, {"groupsize", nullptr}};
  for (const Option& option : recipe_options(r.family))
    if (option.applies(r))
      flat[option.key] = option.get(r);
    else if (!flat.contains(option.key))
      flat[option.key] = nullptr;
  if (r.family == Family::Language && quantizes(r)) flat["layer_bits"] = layer_bits(model, r.weights.bits);
  flat["recipe"] = to_json(r);
  return flat;
}

json model_record(Model& model, const Recipe& recipe, int64_t fitted) {
  const ModelInfo& info = model.info();
  const int64_t added = added_values(model);
  json record = flat_recipe(model, recipe);
  record.update({{"model", info.name},
                 {"tag", info.tag},
                 {"parameters", info.parameters},
                 {"bc_parameters", fitted},
                 {"bc_parameters_added", added},
                 {"bc_bytes", 4 * added},
                 {"bc_share", static_cast<double>(added) / static_cast<double>(info.parameters)},
                 {"bits_per_weight", bits_per_weight(model)}});
  return record;
}

std::string bc_text(Model& model, int64_t fitted) {
  const int64_t added = added_values(model);
  return format("%d values, %d parameters and %d bytes added: %.2f %% of the model's", fitted, added, 4 * added,
                100.0 * static_cast<double>(added) / static_cast<double>(model.info().parameters));
}

}  // namespace bcq
