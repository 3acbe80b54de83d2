#include "models/model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "engine/core/parallel.h"
#include "engine/file/json.h"
#include "engine/file/packed_file.h"
#include "engine/gemm/gemm_float.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "models/families.h"
#include "models/layers.h"
#include "models/onnx_layers.h"
#include "models/stored.h"

namespace bcq {
namespace fs = std::filesystem;

namespace {

// Samples [begin, end) of a batch.
Batch part_of(const Batch& batch, int64_t begin, int64_t end) {
  if (!batch.pixels.empty()) return {.pixels = batch.pixels.slice(begin, end)};
  Batch part;
  part.windows = end - begin;
  part.length = batch.length;
  part.ids.assign(batch.ids.begin() + begin * batch.length, batch.ids.begin() + end * batch.length);
  return part;
}

void divide_row(Tensor& w, int64_t row, float by) {
  kernels().scale(w.data + row * w.dim(1), 1 / by, w.data + row * w.dim(1), w.dim(1));
}

bool shifts(const std::vector<float>& shift) {
  return std::any_of(shift.begin(), shift.end(), [](float s) { return s != 0; });
}

// Channels a layer, or rows of it, makes: w_c / scale_c, b_c / scale_c - shift_c. A weight that is rounded stays on its
// grid, which has a scale a row.
void fold_rows(Layer& layer, const std::vector<int64_t>& rows, const std::vector<float>& scale,
               const std::vector<float>& shift) {
  Tensor w = layer.weight.values().clone();
  if (shifts(shift) && layer.bias.loaded.empty()) layer.bias.loaded = Tensor({w.dim(0)});
  std::vector<Tensor*> biases;
  for (Tensor* bias : {&layer.bias.loaded, &layer.bias.compensated})
    if (!bias->empty()) biases.push_back(bias);
  for (Tensor* bias : biases) *bias = bias->clone();
  Quantized q = layer.quantized ? *layer.quantized : Quantized{};
  const Affine* affine = q.right.as<Affine>();
  require(!q.packed && (q.right.is_identity() || (affine && affine->scale.dim(1) == 1)),
          "%s: rounded already, and not on a grid with a scale a row: its rows cannot be scaled", layer.name);
  Tensor rounded, steps;
  if (affine) rounded = q.weight.values().clone(), steps = affine->scale.clone();
  for (size_t c = 0; c < scale.size(); ++c) {
    const int64_t row = rows.empty() ? static_cast<int64_t>(c) : rows[c];
    divide_row(w, row, scale[c]);
    for (Tensor* bias : biases) bias->data[row] = bias->data[row] / scale[c] - shift[c];
    if (!affine) continue;
    const float before = steps[row];
    steps[row] = before / scale[c];
    for (int64_t i = row * w.dim(1); i < (row + 1) * w.dim(1); ++i)
      rounded[i] = steps[row] * std::nearbyint(rounded[i] / before);
  }
  layer.weight = w;
  if (!affine) return;
  q.right = Affine(affine->bits, affine->group, steps, affine->zero);
  q.weight = rounded;
  layer.quantize(std::move(q));
}

// W' = W diag(scale), b' = b + W' shift.
void unfold_columns(Layer& layer, const std::vector<float>& scale, const std::vector<float>& shift) {
  const int64_t out = layer.weight.dim(0), in = layer.weight.dim(1);
  Tensor w = layer.weight.values().clone(), b = layer.bias.loaded.empty() ? Tensor({out}) : layer.bias.loaded.clone();
  for (int64_t r = 0; r < out; ++r) {
    double sum = b[r];
    for (int64_t c = 0; c < in; ++c) {
      w[r * in + c] *= scale[at(c)];
      sum += static_cast<double>(w[r * in + c]) * shift[at(c)];
    }
    b[r] = static_cast<float>(sum);
  }
  layer.weight = w;
  if (shifts(shift)) layer.bias.loaded = b;
}

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
  require_input(found.size() <= 1, "%s: %d .safetensors files and no index: give --model the one to read", directory,
                found.size());
  require_input(!found.empty(), "%s: no model.safetensors%s", directory,
                pickle ? " (there is a PyTorch pickle: convert it with safetensors.torch.save_file, or download the "
                         "safetensors revision of the repository)"
                       : "");
  return found[0];
}

}  // namespace

std::vector<Layer*> Part::layers() const {
  std::vector<Layer*> all;
  for (const LayerGroup& group : groups) all.insert(all.end(), group.layers.begin(), group.layers.end());
  return all;
}

const LayerGroup& Part::group_of(const Layer& layer) const {
  for (const LayerGroup& group : groups)
    if (std::find(group.layers.begin(), group.layers.end(), &layer) != group.layers.end()) return group;
  throw Error(format("%s is not a layer of %s", layer.name, name));
}

Tensor Model::block(const Context& ctx, int i, const Tensor& x) const {
  Tensor y = block_body(ctx, i, x);
  if (ctx.precision != Precision::Float && !block_linear_.empty() && !ctx.is_done()) {
    const auto& [weight, bias] = block_linear_[at(i)];
    if (!weight.empty()) y = add(nullptr, y, linear(nullptr, x, weight, bias));
  }
  if (!block_added_.empty()) add_compensation(ctx, block_added_[at(i)], y);
  return y;
}

Tensor Model::run(const Context& ctx, int i, const Batch& batch, const Tensor& x) const {
  return i < 0 ? embed(ctx, batch) : i < depth() ? block(ctx, i, x) : head(ctx, x);
}

void Model::require_pixels(const Batch& batch) const {
  const Tensor& pixels = batch.pixels;
  require_input(pixels.rank() == 4 && pixels.dim(1) == 3 && pixels.dim(2) == info_.image.height &&
                    pixels.dim(3) == info_.image.width,
                "%s takes pixels of shape [B, 3, %d, %d], got %s", info_.name, info_.image.height, info_.image.width,
                to_string(pixels.shape));
}

Tensor Model::forward(const Context& ctx, const Batch& batch) const {
  const auto run = [&](const Batch& part) {
    Tensor x = embed(ctx, part);
    for (int i = 0; i < depth(); ++i) x = block(ctx, i, x);
    return head(ctx, x);
  };
  // Each thread takes samples of its own from end to end, as far as they go round: what one op writes the next finds
  // in its cache, and no op waits for another thread. (ViT-B, batch 8: a tenth less time than op by op.) Images go by
  // twos, which make panels of weights once, where they are not held as such (3 to 7 % less).
  const int64_t n = batch.size(), alone = ctx.tape || ctx.observer || ctx.cache ? 0 : n - n % threads();
  if (alone < 2) return run(batch);
  const int64_t most = batch.pixels.empty() ? 1 : 2, parts = (alone / threads() + most - 1) / most * threads();
  std::vector<Tensor> outputs(static_cast<size_t>(parts));
  parallel_for(parts,
               [&](int64_t i) { outputs[at(i)] = run(part_of(batch, alone * i / parts, alone * (i + 1) / parts)); });
  if (alone < n) outputs.push_back(run(part_of(batch, alone, n)));
  return concatenate(outputs);
}

Tensor Model::next_logits(const Context& ctx, const Batch& batch) const {
  Tensor x = embed(ctx, batch);
  for (int i = 0; i < depth(); ++i) x = block(ctx, i, x);
  if (ctx.cache) ctx.cache->length += batch.length;
  const Tensor last = select_token(nullptr, x, batch.length - 1);
  return head(ctx, last.reshaped({batch.windows, 1, last.dim(1)})).reshaped({batch.windows, info_.outputs});
}

std::vector<Layer*> Model::all_layers() {
  std::vector<Layer*> all;
  for (int i = -1; i <= depth(); ++i)
    for (Layer* layer : layers(i)) all.push_back(layer);
  return all;
}

Point Model::point_of(Layer& layer) {
  const Point::Kind kind = layer.role == Role::Patch ? Point::Kind::Conv
                           : layer.is_linear()       ? Point::Kind::Linear
                                                     : Point::Kind::Matmul;
  Point point{kind, layer.name, &layer, {}, {&layer.added}, layer.name + ".bias"};
  if (layer.is_linear()) point.folds_into = {&layer.bias};
  return point;
}

Point Model::block_point(int i, const std::string& name, Bias* bias, const std::string& tensor) {
  block_added_.resize(static_cast<size_t>(depth()));
  return {Point::Kind::Block, name, nullptr, {bias}, {&block_added_[at(i)]}, tensor};
}

Point Model::model_point() {
  Point point{Point::Kind::Model, "model", nullptr, {}, {}, ""};
  for (Layer* head : layers(depth())) {
    point.folds_into.push_back(&head->bias);
    point.added.push_back(&head->added);
  }
  return point;
}

std::vector<Point> Model::all_points() {
  std::vector<Point> points;
  for (int i = -1; i <= depth(); ++i) {
    const Part p = part(i);
    for (Layer* layer : p.layers()) points.push_back(point_of(*layer));
    if (!p.output.added.empty()) points.push_back(p.output);
  }
  return points;
}

std::vector<std::string> Model::prepare_int8() {
  std::vector<std::string> simulated;
  for (Layer* layer : all_layers())
    if (!layer->prepare_int8()) simulated.push_back(layer->name);
  return simulated;
}

void Model::make_panels() {
  require(info_.family == Family::Vision, "the weights of %s are read a token at a time: in rows", info_.name);
  for (Layer* layer : all_layers())
    if (layer->is_linear() && !layer->weight.panels() && layer->role != Role::Head)  // which has one row an image
      layer->weight = Weight(layer->weight.shape(), std::make_shared<const FloatPanels>(layer->weight));
}

void Model::fold(const LayerGroup& group, const std::vector<float>& scale, const std::vector<float>& shift) {
  const FoldSource& source = group.source;
  const bool keys = group.layers.at(0)->role == Role::QK;
  const int64_t in = keys ? static_cast<int64_t>(source.rows.size()) : group.layers[0]->weight.dim(1);
  require(!keys || std::all_of(scale.begin(), scale.end(), [](float s) { return s == 1; }),
          "%s: keys can be shifted, not scaled", group.layers[0]->name);
  require(source.norm || source.layer, "%s: nothing before it takes a scale", group.layers[0]->name);
  require(static_cast<int64_t>(scale.size()) == in && shift.size() == scale.size() &&
              std::all_of(scale.begin(), scale.end(), [](float s) { return s > 0 && std::isfinite(s); }),
          "%s: %d scales and %d shifts for %d channels, or a scale that is not positive", group.layers[0]->name,
          scale.size(), shift.size(), in);
  if (source.norm) {
    keep(*source.norm);
    Norm& norm = *source.norm;
    norm.weight = norm.weight.clone();
    norm.bias.loaded = norm.bias.loaded.clone();
    for (size_t c = 0; c < scale.size(); ++c) {
      norm.weight.data[c] /= scale[c];
      norm.bias.loaded.data[c] = norm.bias.loaded.data[c] / scale[c] - shift[c];
    }
  } else {
    keep(source.layer->weight);
    keep(source.layer->bias.loaded);
    fold_rows(*source.layer, source.rows, scale, shift);
  }
  for (Layer* layer : group.layers) {
    if (keys) continue;
    keep(layer->weight);
    keep(layer->bias.loaded);
    unfold_columns(*layer, scale, shift);
  }
}

void fold_channels(Tensor& x, const std::vector<float>& scale, const std::vector<float>& shift) {
  const int64_t n = x.dim(-1);
  for_rows(x, [&](int64_t r) {
    float* row = x.data + r * n;
    for (size_t c = 0; c < scale.size(); ++c) row[c] = row[c] / scale[c] - shift[c];
  });
}

void Model::set_block_linear(int i, const Tensor& weight, const Tensor& bias) {
  block_linear_.resize(static_cast<size_t>(depth()));
  block_linear_[at(i)] = {weight, bias};
}

std::pair<Weight, Tensor> Model::block_linear(int i) const {
  return block_linear_.empty() ? std::pair<Weight, Tensor>{} : block_linear_[at(i)];
}

void Model::fold_layer_scale() {
  for (Layer* layer : all_layers()) {
    if (layer->gamma.empty()) continue;
    keep(layer->weight);
    keep(layer->bias.loaded);
    keep(layer->gamma);
    layer->fold_gamma();
  }
}

int64_t Model::block_linear_values() const {
  int64_t values = 0;
  for (const auto& [weight, bias] : block_linear_)
    if (!weight.empty()) values += weight.size() + bias.size();
  return values;
}

OnnxGraph Model::onnx(Precision precision) const {
  OnnxGraph graph;
  graph.input = {3, info_.image.height, info_.image.width};
  graph.output = {info_.outputs};
  OnnxLayers to(graph, precision);
  std::string x = onnx_part(to, -1, OnnxGraph::kInput);
  for (int i = 0; i < depth(); ++i) {
    const std::string before = x;
    x = onnx_part(to, i, x);
    const auto [weight, bias] = block_linear(i);
    if (precision != Precision::Float && !weight.empty()) x = to.add(x, to.linear(weight, bias, before));
    if (!block_added_.empty()) x = to.compensate(block_added_[at(i)], x);
  }
  graph.finish(onnx_part(to, depth(), x));
  return graph;
}

std::string Model::onnx_part(OnnxLayers&, int, const std::string&) const {
  throw UsageError(format("--format onnx: %s is not a vision model, and others are not written", info_.name));
}

void Model::clear() {
  for (; !unfold_.empty(); unfold_.pop_back()) unfold_.back()();
  block_linear_.clear();
  for (Layer* layer : all_layers()) layer->quantized = nullptr;
  clear_compensation();
}

void Model::clear_compensation() {
  for (const Point& point : all_points()) point.clear();
}

std::unique_ptr<Model> load_model(const std::string& path) {
  require_input(fs::exists(path), "%s: no such file or folder", path);
  const bool is_folder = fs::is_directory(path);
  const fs::path folder = is_folder ? fs::path(path) : fs::absolute(path).parent_path();
  const std::string config_path = (folder / "config.json").string();
  require_input(fs::exists(config_path), "%s: config.json is missing: it belongs beside the weights", folder.string());
  const json config = read_json(config_path);
  const SafeTensors file = SafeTensors::open(is_folder ? weights_of(path) : path);

  ModelInfo info;
  info.directory = folder.string();
  info.weights = file.path();
  info.name = fs::canonical(folder).filename().string();
  const ConfigReader in(config, config_path);
  const std::string type = in.text("model_type", "");
  if (type == "opt" || type == "bloom" || is_llama(type)) {
    const auto packed = read_packed_format(config, config_path, folder.string(), file);
    info.packed = packed != nullptr;
    info.family = Family::Language;
    const Loader root(file, nullptr, packed);
    const auto load = type == "opt" ? load_opt : type == "bloom" ? load_bloom : load_llama;
    return load(config, config_path, root, info);
  }
  const auto stored = read_grid_format(config, config_path);
  info.packed = stored != nullptr;
  VisionSource source;
  if (type == "vit" || type == "deit" || type == "swin" || type == "dinov2" || type == "dinov2_with_registers" ||
      type == "timm_wrapper") {
    source = from_transformers(config, config_path, folder.string(), file, stored != nullptr);
  } else {
    source.config = std::make_shared<const json>(config);
    source.where = config_path;
    require_input(type.empty(),
                  "%s: model_type %s is not supported: this engine reads \"opt\", \"bloom\", \"llama\", \"mistral\", "
                  "\"qwen2\", \"qwen3\", \"vit\", \"deit\", \"swin\", \"dinov2\", \"dinov2_with_registers\", "
                  "\"timm_wrapper\", and timm's models (a config.json with \"architecture\")",
                  config_path, quoted(type));
    require_input(in.has("architecture"), "%s: has neither \"model_type\" nor \"architecture\"", config_path);
  }
  source.packed = stored;
  const bool is_swin = ConfigReader(*source.config, config_path).text("architecture", "").rfind("swin_", 0) == 0;
  return is_swin ? load_swin(source, file, info) : load_vit(source, file, info);
}

}  // namespace bcq
