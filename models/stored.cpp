#include "models/stored.h"

#include <cstring>
#include <set>
#include <utility>

#include "engine/core/check.h"
#include "engine/file/config.h"
#include "engine/grid/affine.h"
#include "models/layers.h"

namespace bcq {
namespace {

using Tensors = std::map<std::string, TensorInfo>;

// A tensor that the file keeps in parts, whole.
TensorInfo joined(const std::vector<std::string>& names, const SafeTensors& file) {
  TensorInfo whole = file.tensors().at(names.at(0));
  if (names.size() == 1) return whole;
  const auto bytes = std::make_shared<std::vector<std::byte>>();
  whole.shape[0] = 0;
  for (const std::string& name : names) {
    const TensorInfo& part = file.tensors().at(name);
    require_input(part.dtype == whole.dtype, "%s: tensors %s and %s are of different types", file.path(),
                  quoted(names[0]), quoted(name));
    bytes->insert(bytes->end(), part.bytes, part.bytes + part.size());
    whole.shape[0] += part.shape[0];
  }
  return {whole.dtype, whole.shape, bytes->data(), bytes, ""};
}

// Other values of a tensor, which stays as the source has it where they are the same.
void put_values(const std::string& name, const Tensor& values, Tensors& tensors) {
  if (values.empty()) return;
  const auto found = tensors.find(name);
  Tensor kept = values;
  if (found != tensors.end()) {
    const Tensor before = load(found->second, name);
    kept = values.reshaped(before.shape);  // the kernel of a convolution has four dimensions
    if (std::memcmp(before.data, kept.data, static_cast<size_t>(kept.size()) * sizeof(float)) == 0) return;
  }
  tensors[name] = store(kept, DType::F32, name);
}

// Grids of a layer, and the codes of its weight: "layers" of it; null where nothing is rounded.
json put_rounded(const Layer& layer, Tensors& tensors) {
  json about;
  const Quantized q = layer.quantized ? *layer.quantized : Quantized{};
  if (!q.left.is_identity()) about["left"] = put_grid(layer.name + ".left", q.left, tensors);
  if (!q.right.is_identity()) about["right"] = put_grid(layer.name + ".right", q.right, tensors);
  if (q.renormalized) about["renormalized"] = true;
  if (layer.is_linear() && !q.right.is_identity()) put_codes(layer.name, q.right, q.weight, tensors);
  return about;
}

json put_layer(const Layer& layer, Tensors& tensors) {
  const json about = put_rounded(layer, tensors);
  if (about.is_object() && about.contains("right") && layer.is_linear())
    tensors.erase(layer.name + ".weight");
  else if (layer.is_linear())
    put_values(layer.name + ".weight", layer.weight.values(), tensors);
  put_values(layer.name + ".bias", layer.bias.in(Precision::Fake), tensors);
  put_values(layer.name + ".bc", layer.added, tensors);
  return about;
}

// ---- Back ---------------------------------------------------------------------------------------

// "layers" of the layer of this name, with where it stands.
const json& about_layer(const Loader& file, const std::string& name) {
  static const json kNothing;
  const json& layers = file.packed()->grids->at("layers");
  const auto layer = layers.find(name);
  return layer == layers.end() ? kNothing : *layer;
}

// A compensation of any shape [..., width]. What shape it has to have is known when the model is run.
Tensor get_compensation(const Loader& at, const std::string& name) {
  const Tensor bc = load(at.raw(name), at.describe(name));
  require_input(bc.rank() >= 1 && bc.rank() <= 3, "%s: has shape %s, which is none of a compensation",
                at.describe(name), to_string(bc.shape));
  return bc;
}
// That of a layer or block; empty when there is none.
Tensor get_added(const Loader& at) { return at.has("bc") ? get_compensation(at, "bc") : Tensor{}; }

// The layer beside block i, if there is one at this place.
void get_block_linear(Model& model, int i, const Loader& at) {
  if (!at.has("weight")) return;
  const Shape& shape = at.shape("weight");
  require_input(shape.size() == 2, "%s: has shape %s, but a weight has two dimensions", at.describe("weight"),
                to_string(shape));
  const auto value = [&](const char* name) { return load(at.raw(name), at.describe(name)); };
  const Tensor bias = value("bias");
  require_input(bias.shape == Shape({shape[0]}), "%s: has shape %s, but its weight has %d rows", at.describe("bias"),
                to_string(bias.shape), shape[0]);
  model.set_block_linear(i, value("weight"), bias);
}

// The norms of a part that were folded into.
std::vector<Norm*> norms_of(const Model& model, const Part& part) {
  std::vector<Norm*> norms;
  for (const LayerGroup& group : part.groups)
    if (group.source.norm && model.is_folded()) norms.push_back(group.source.norm);
  return norms;
}

// All places in part i that a compensation may be kept at, those of its layers among them.
std::vector<Point> points_of(Model& model, int i) {
  const Part part = model.part(i);
  std::vector<Point> points = part.branches;
  for (Layer* layer : part.layers()) points.push_back(Model::point_of(*layer));
  if (!part.output.added.empty()) points.push_back(part.output);
  return points;
}

// Grids and codes of a layer. `weight`: its weight is decoded already.
void get_layer(const Loader& file, Layer& layer, bool weight) {
  const json& found = about_layer(file, layer.name);
  const Loader at = file.sub(layer.name);
  if (found.is_null()) return;
  const std::string& where = file.packed()->where;
  const ConfigReader about(found, where, "quantization_config.layers." + layer.name + ".");
  Quantized q;
  q.left = get_grid(at.sub("left"), about.value("left"));
  q.right = get_grid(at.sub("right"), about.value("right"));
  q.renormalized = about.flag("renormalized", false);
  about.require_known();
  require_input(!q.renormalized || (layer.role == Role::AV && !q.left.is_identity()),
                "%s: %s is renormalized, but no product with a rounded softmax", where, layer.name);
  require_input(!q.left.is<Affine>() && (layer.is_linear() || !q.right.is<Affine>()),
                "%s: %s: an affine grid is one of weights", where, layer.name);
  require_input(!layer.is_linear() || !at.has("weight") || q.right.is_identity(),
                "%s: %s has a grid of its weight, but no codes", where, layer.name);
  if (layer.is_linear() && !q.right.is_identity())
    q.weight = weight ? layer.weight : Weight(get_codes(at, q.right, layer.weight.dim(0), layer.weight.dim(1)));
  layer.quantize(std::move(q));
}

// Whether grids and compensations fit the operands of their layers. Shows each layer's operands, and computes none.
class Fits : public Observer {
 public:
  explicit Fits(const Loader& file) : file_(file) {}
  bool is_done() const override {
    return std::exchange(shown_, false);
  }  // this product is not computed, the next shown
  void input(const Layer& layer, const Tensor& a, const Tensor& b) override {
    shown_ = true;
    const auto check_grid = [&](const char* side, const Grid& grid) {
      const bool fits = layer.is_linear() ? grid.is_identity() || grid->units() == 1
                                          : grid.is_along(1) && (grid.is_identity() || a.dim(1) % grid->units() == 0);
      require_input(fits, "%s: tensors %s.%s.*: %d scales do not fit an operand of shape %s", file_.file().path(),
                    layer.name, side, fits ? 0 : grid->units(), to_string(a.shape));
    };
    if (layer.quantized) check_grid("left", layer.quantized->left);
    if (layer.quantized && !layer.is_linear()) check_grid("right", layer.quantized->right);
    Shape y = a.shape;
    y.back() = layer.is_linear() ? layer.weight.dim(0) : b.dim(layer.role == Role::QK ? 2 : 3);
    check_added(layer.name, layer.added, y);
  }
  // An output's shape less the batch, 1 where values are shared.
  void check_added(const std::string& name, const Tensor& added, const Shape& output) const {
    bool fits =
        added.empty() || (added.rank() + 1 == static_cast<int>(output.size()) && added.dim(-1) == output.back());
    for (int i = 0; fits && i < added.rank(); ++i)
      fits = added.dim(i) == 1 || added.dim(i) == output[static_cast<size_t>(i) + 1];
    require_input(fits, "%s: tensor \"%s.bc\": has shape %s, which does not fit an output of shape %s",
                  file_.file().path(), name, to_string(added.shape), to_string(output));
  }

 private:
  const Loader& file_;
  mutable bool shown_ = false;
};

void check_fit(Model& model, const Loader& file) {
  Fits fits(file);
  const Context ctx{Precision::Float, nullptr, &fits};
  const Batch one{.pixels = Tensor({1, 3, model.info().image.height, model.info().image.width})};
  Tensor x = model.embed(ctx, one);
  for (int i = 0; i < model.depth(); ++i) {
    const int64_t D = x.dim(-1);
    x = model.block(ctx, i, x);
    const Part part = model.part(i);
    fits.check_added(part.name, *part.output.added.at(0), x.shape);
    const Weight linear = model.block_linear(i).first;
    require_input(linear.empty() || (linear.dim(0) == x.dim(-1) && linear.dim(1) == D),
                  "%s: tensor \"%s.linear.weight\" does not fit a block of %d channels", file.file().path(), part.name,
                  D);
  }
  model.head(ctx, x);
}

}  // namespace

StoredModel put_stored(Model& model, const SafeTensors& source) {
  StoredModel stored;
  Tensors& tensors = stored.tensors;
  for (const auto& [name, parts] : model.info().places) tensors[name] = joined(parts, source);
  json layers = json::object();
  double weights = 0, bytes = 0;
  bool has_gamma = false;
  for (int i = -1; i <= model.depth(); ++i) {
    const Part part = model.part(i);
    for (const LayerGroup& group : part.groups) {
      for (const Layer* layer : group.layers) {
        if (const json about = put_layer(*layer, tensors); !about.is_null()) layers[layer->name] = about;
        has_gamma |= !layer->gamma.empty();
        if (tensors.count(layer->name + ".qweight")) weights += static_cast<double>(layer->weight.size());
      }
      if (const Norm* norm = group.source.norm) {
        put_values(norm->name + ".weight", norm->weight, tensors);
        put_values(norm->name + ".bias", norm->bias.in(Precision::Fake), tensors);
      }
    }
    if (!part.output.added.empty()) put_values(part.name + ".bc", *part.output.added[0], tensors);
    if (i < 0 || i >= model.depth()) continue;
    const auto [weight, bias] = model.block_linear(i);
    if (weight.empty()) continue;
    put_values(part.name + ".linear.weight", weight.values(), tensors);
    put_values(part.name + ".linear.bias", bias, tensors);
  }
  const size_t before = tensors.size();
  if (!has_gamma) std::erase_if(tensors, [](const auto& entry) { return entry.first.ends_with(".gamma"); });
  for (const auto& [name, tensor] : tensors)
    if (!model.info().places.count(name)) bytes += static_cast<double>(tensor.size());
  if (weights > 0) stored.bits_per_weight = 8 * bytes / weights;
  stored.about = {{"folded_layer_scale", tensors.size() < before}, {"layers", layers}};
  return stored;
}

Weight get_stored_weight(const Loader& at, int64_t out, int64_t in) {
  if (has_linear(at) && at.has("weight")) return at.get_weight("weight", {out, in});
  const json& about = about_layer(at, at.name());
  return get_codes(at, get_grid(at.sub("right"), about.is_object() ? about.value("right", json()) : json()), out, in);
}

bool has_folded_layer_scale(const Loader& file) {
  return holds_grids(file) &&
         ConfigReader(*file.packed()->grids, file.packed()->where).flag("folded_layer_scale", false);
}

void get_stored(Model& model, const Loader& file) {
  if (!holds_grids(file)) return;
  const std::string& where = file.packed()->where;
  const ConfigReader config(*file.packed()->grids, where, "quantization_config.");
  std::set<std::string> names;
  for (Layer* layer : model.all_layers()) {
    layer->added = get_added(file.sub(layer->name));
    get_layer(file, *layer, true);
    names.insert(layer->name);
  }
  for (const auto& [name, about] : config.value("layers").items())
    require_input(names.count(name), "%s: quantization_config.layers: the model has no layer %s", where, quoted(name));
  for (int i = 0; i < model.depth(); ++i) {
    const Loader at = file.sub(model.part(i).name);
    *model.part(i).output.added.at(0) = get_added(at);
    get_block_linear(model, i, at.sub("linear"));
  }
  check_fit(model, file);
}

json put_part(Model& model, int i, Tensors& tensors) {
  json layers = json::object();
  const Part part = model.part(i);
  const auto put = [&](const std::string& name, const Tensor& x) {
    if (!x.empty()) tensors[name] = store(x, DType::F32, name);
  };
  for (const Layer* layer : part.layers()) {
    if (const json about = put_rounded(*layer, tensors); !about.is_null()) layers[layer->name] = about;
    if (!model.is_folded()) continue;
    if (layer->is_linear()) put(layer->name + ".float.weight", layer->weight.values());
    put(layer->name + ".float.bias", layer->bias.loaded);
  }
  for (const Norm* norm : norms_of(model, part)) {
    put(norm->name + ".float.weight", norm->weight);
    put(norm->name + ".float.bias", norm->bias.loaded);
  }
  for (const Point& point : points_of(model, i)) {
    for (size_t k = 0; k < point.folds_into.size(); ++k)
      put(point.name + format(".folded.%d", k), point.folds_into[k]->compensated);
    for (size_t k = 0; k < point.added.size(); ++k) put(point.name + format(".added.%d", k), *point.added[k]);
  }
  if (part.kind == Part::Kind::Block) {
    const auto [weight, bias] = model.block_linear(i);
    if (!weight.empty()) put(part.name + ".linear.weight", weight.values());
    put(part.name + ".linear.bias", bias);
  }
  return {{"layers", layers}};
}

void get_part(Model& model, int i, const Loader& file) {
  const Part part = model.part(i);
  const auto replace = [&](Tensor& x, const std::string& name) {
    if (!file.has(name)) return;
    model.keep(x);
    x = file.get(name, x.shape);
  };
  for (Layer* layer : part.layers()) {
    const std::string name = layer->name + ".float.weight";
    if (layer->is_linear() && file.has(name)) {
      model.keep(layer->weight);
      layer->weight = Weight(file.get(name, layer->weight.shape()));
    }
    const std::string bias = layer->name + ".float.bias";
    if (layer->is_linear() && layer->bias.loaded.empty() && file.has(bias)) {  // a fold gave it one
      model.keep(layer->bias.loaded);
      layer->bias.loaded = file.get(bias, {layer->weight.dim(0)});
    } else {
      replace(layer->bias.loaded, bias);
    }
    get_layer(file, *layer, false);
  }
  for (Norm* norm : norms_of(model, part)) {
    replace(norm->weight, norm->name + ".float.weight");
    replace(norm->bias.loaded, norm->name + ".float.bias");
  }
  for (const Point& point : points_of(model, i)) {
    for (size_t k = 0; k < point.folds_into.size(); ++k) {
      Bias& bias = *point.folds_into[k];
      const int64_t out = bias.loaded.empty() && point.layer ? point.layer->weight.dim(0) : bias.loaded.size();
      const std::string name = point.name + format(".folded.%d", k);
      bias.compensated = file.has(name) ? file.get(name, {out}) : Tensor{};
    }
    for (size_t k = 0; k < point.added.size(); ++k) {
      const std::string name = point.name + format(".added.%d", k);
      *point.added[k] = file.has(name) ? get_compensation(file, name) : Tensor{};
    }
  }
  if (part.kind == Part::Kind::Block) get_block_linear(model, i, file.sub(part.name).sub("linear"));
}

}  // namespace bcq
