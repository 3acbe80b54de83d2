#include "models/model.h"

#include <filesystem>

#include "engine/json.h"
#include "engine/ops.h"
#include "engine/packed_file.h"
#include "models/bloom.h"
#include "models/opt.h"
#include "models/swin.h"
#include "models/vit.h"

namespace bcq {
namespace fs = std::filesystem;

Tensor Model::block(const Context& ctx, int i, const Tensor& x) const {
  Tensor y = block_body(ctx, i, x);
  const Tensor* bc = i < static_cast<int>(block_bc.size()) ? &block_bc[static_cast<size_t>(i)] : nullptr;
  if (ctx.precision == Precision::Fake && bc && !bc->empty()) add_broadcast(y, *bc);
  return y;
}

void Model::require_pixels(const Batch& batch) const {
  const Tensor& pixels = batch.pixels;
  require_input(pixels.rank() == 4 && pixels.dim(1) == 3 && pixels.dim(2) == info_.image.height &&
                    pixels.dim(3) == info_.image.width,
                "%s takes pixels of shape [B, 3, %lld, %lld], got %s", info_.name.c_str(),
                static_cast<long long>(info_.image.height), static_cast<long long>(info_.image.width),
                to_string(pixels.shape).c_str());
}

Tensor Model::forward(const Context& ctx, const Batch& batch) const {
  Tensor x = embed(ctx, batch);
  for (int i = 0; i < depth(); ++i) x = block(ctx, i, x);
  return head(ctx, x);
}

std::vector<Site*> Model::all_sites() {
  std::vector<Site*> all;
  for (int i = -1; i <= depth(); ++i)
    for (Site* site : sites(i)) all.push_back(site);
  return all;
}

Model::BlockEnd Model::block_end(int i) {
  Site& last = *sites(i).back();
  return {last.name + ".bias", &last.bias, &last.bias_hat};
}

void Model::clear() {
  for (Site* site : all_sites()) site->clear();
  clear_compensation();
}

void Model::clear_compensation() {
  for (Site* site : all_sites()) site->bias_hat = site->bc = Tensor{};
  for (int i = 0; i < depth(); ++i) *block_end(i).bias_hat = Tensor{};
  block_bc.clear();
}

namespace {

// The weights that belong to a folder: model.safetensors, its index, or the only candidate.
std::string weights_of(const std::string& directory) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"})
    if (fs::exists(fs::path(directory) / name)) return (fs::path(directory) / name).string();
  std::vector<std::string> found;
  bool pickle = false;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".safetensors") found.push_back(entry.path().string());
    pickle |= extension == ".bin" || extension == ".pth" || extension == ".pt";
  }
  require_input(found.size() <= 1, "%s: %zu .safetensors files and no index: give --model the one to read",
                directory.c_str(), found.size());
  require_input(!found.empty(), "%s: no model.safetensors%s", directory.c_str(),
                pickle ? " (there is a PyTorch pickle: convert it with safetensors.torch.save_file, or download the "
                         "safetensors revision of the repository)"
                       : "");
  return found[0];
}

}  // namespace

std::unique_ptr<Model> load_model(const std::string& path) {
  require_input(fs::exists(path), "%s: no such file or folder", path.c_str());
  const bool is_folder = fs::is_directory(path);
  const fs::path folder = is_folder ? fs::path(path) : fs::absolute(path).parent_path();
  const std::string config_path = (folder / "config.json").string();
  require_input(fs::exists(config_path), "%s: config.json is missing: it belongs beside the weights",
                folder.string().c_str());
  const json config = read_json(config_path);
  SafeTensors file = SafeTensors::open(is_folder ? weights_of(path) : path);

  ModelInfo info;
  info.directory = folder.string();
  info.weights = file.path();
  info.name = fs::canonical(folder).filename().string();
  const std::string type = get_or<std::string>(config, "model_type", "", config_path);
  if (type == "opt" || type == "bloom") {
    file.packed = read_packed_format(config, config_path, folder.string(), file);
    info.packed = file.packed != nullptr;
    info.family = Family::Language;
    return type == "opt" ? load_opt(config, config_path, file, info) : load_bloom(config, config_path, file, info);
  }
  VisionSource source{config, config_path, nullptr};
  if (type == "vit" || type == "deit" || type == "swin")
    source = from_transformers(config, config_path, folder.string(), file);
  else
    require_input(type.empty(),
                  "%s: model_type \"%s\" is not supported: this engine reads \"opt\", \"bloom\", \"vit\", \"deit\", "
                  "\"swin\", and "
                  "timm's models (a config.json with \"architecture\")",
                  config_path.c_str(), type.c_str());
  const auto architecture = get<std::string>(source.config, "architecture", config_path);
  return architecture.rfind("swin_", 0) == 0 ? load_swin(source, file, info) : load_vit(source, file, info);
}

}  // namespace bcq
