#include "eval/resume.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/file/packed_file.h"
#include "eval/save.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;

// The numbers of a record, which must come back as they were: infinity and the last bit included.
constexpr std::pair<const char*, double LayerRecord::*> kNumbers[] = {{"damp", &LayerRecord::damp},
                                                                      {"ridge", &LayerRecord::ridge},
                                                                      {"signal", &LayerRecord::signal},
                                                                      {"rounded", &LayerRecord::rounded},
                                                                      {"solved", &LayerRecord::solved},
                                                                      {"refined", &LayerRecord::refined},
                                                                      {"compensated", &LayerRecord::compensated}};

json to_json(const PartRecord& record) {
  json layers = json::array();
  for (const LayerRecord& r : record.layers) {
    json layer = {{"site", r.layer}, {"bits", r.bits}, {"group", r.group}};
    for (const auto& [key, number] : kNumbers) layer[key] = format("%a", r.*number);
    layers.push_back(layer);
  }
  return {{"layers", layers}, {"fitted", record.fitted}};
}

PartRecord from_json(const json& object, const std::string& where) {
  PartRecord record;
  for (const json& layer : get<json>(object, "layers", where)) {
    LayerRecord r;
    r.layer = get<std::string>(layer, "site", where);
    r.bits = get<int>(layer, "bits", where);
    r.group = get<int64_t>(layer, "group", where);
    for (const auto& [key, number] : kNumbers)
      r.*number = std::strtod(get<std::string>(layer, key, where).c_str(), nullptr);
    record.layers.push_back(r);
  }
  record.fitted = get<int64_t>(object, "fitted", where);
  return record;
}

}  // namespace

BlockFiles::BlockFiles(std::string folder, const json& fingerprint, bool resume) : folder_(std::move(folder)) {
  const std::string run = folder_ + "/run.json";
  if (fs::exists(folder_)) {
    require_usage(resume, "%s holds the blocks of an interrupted run: continue it with --resume, or remove the folder",
                  folder_);
    const json found = fs::exists(run) ? read_json(run) : json::object();
    for (const auto& [key, value] : fingerprint.items())
      require_usage(found.contains(key) && found[key] == value,
                    "%s holds the blocks of another run, with %s %s instead of %s: remove it to start anew", folder_,
                    key, found.value(key, json()).dump(), value.dump());
    return;
  }
  std::error_code error;
  require(fs::create_directory(folder_, error), "%s: cannot be created: %s", folder_, error.message());
  write_file(run, dump(fingerprint, 2) + "\n");
}

std::string BlockFiles::path(const std::string& walk, int i) const {
  std::string name = walk;
  for (char& c : name)
    if (c == ' ' || c == '/') c = '-';
  return folder_ + "/" + name + format("-%04d.safetensors", i);
}

bool BlockFiles::load(const std::string& walk, Model& model, int i, PartRecord& record) {
  const std::string where = path(walk, i);
  if (!fs::exists(where)) return false;
  const SafeTensors file = SafeTensors::open(where);
  const json about = parse_json(file.metadata().at("block"), where);
  PackedFormat format;
  format.by_layer = true;
  format.group = get<int64_t>(about, "group", where);
  format.positions = get<int64_t>(about, "positions", where);
  format.where = where;
  get_block(model, i, Loader(file, nullptr, std::make_shared<const PackedFormat>(format)));
  record = from_json(about, where);
  return true;
}

void BlockFiles::done(const std::string& walk, Model& model, int i, const PartRecord& record) {
  std::map<std::string, TensorInfo> tensors;
  put_block(model, i, PackedFormat::Kind::Own, tensors);
  json about = to_json(record);
  about["group"] = -1;
  about["positions"] = 0;
  for (const Layer* layer : model.layers(i))
    if (layer->packed() && layer->packed()->groups() > 1) about["group"] = layer->packed()->group();
  for (const auto& [name, tensor] : tensors)
    if (name.ends_with(".bc")) about["positions"] = tensor.shape[0];
  write_safetensors(path(walk, i), tensors, {{"block", dump(about, 2) + "\n"}});
}

void BlockFiles::remove() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

}  // namespace bcq
