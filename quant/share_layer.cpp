#include "quant/share_layer.h"

#include "engine/core/ranks.h"
#include "engine/file/grid_file.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

struct Field {
  std::string name;
  DType dtype;
  Shape shape;
  std::string bytes;

  void fields(auto visit) { visit(name, dtype, shape, bytes); }
};

struct Fitted {
  std::string left, right;  // grids as JSON
  std::vector<Field> numbers;
  bool renormalized = false;
  Tensor weight;

  void fields(auto visit) { visit(left, right, numbers, renormalized, weight); }
};

Fitted put(const Quantized& q) {
  std::map<std::string, TensorInfo> tensors;
  Fitted fitted;
  const auto put = [&](const char* name, const Grid& grid) {
    return grid.is_identity() ? "null" : put_grid(name, grid, tensors).dump();
  };
  fitted.left = put("left", q.left);
  fitted.right = put("right", q.right);
  for (const auto& [name, t] : tensors)
    fitted.numbers.push_back({name, t.dtype, t.shape, {reinterpret_cast<const char*>(t.bytes), t.size()}});
  fitted.renormalized = q.renormalized;
  if (!q.weight.empty()) fitted.weight = q.weight.values();
  return fitted;
}

Quantized get(const Fitted& fitted) {
  std::map<std::string, TensorInfo> tensors;
  for (const Field& field : fitted.numbers) {
    const auto bytes = std::make_shared<std::string>(field.bytes);
    tensors[field.name] = {field.dtype, field.shape, reinterpret_cast<const std::byte*>(bytes->data()), bytes, ""};
  }
  const SafeTensors file = SafeTensors::of(tensors);
  PackedFormat format;
  format.where = "a layer of another rank";
  const Loader loader(file, nullptr, std::make_shared<const PackedFormat>(format));
  const auto grid = [&](const char* name, const std::string& about) {
    return get_grid(loader.sub(name), json::parse(about));
  };
  Quantized q;
  q.left = grid("left", fitted.left);
  q.right = grid("right", fitted.right);
  q.renormalized = fitted.renormalized;
  if (!fitted.weight.empty()) q.weight = Weight(fitted.weight);
  return q;
}

}  // namespace

void share_layer(Layer& layer, int from) {
  Fitted fitted;
  if (rank() == from && layer.quantized) fitted = put(*layer.quantized);
  share(fitted, from);
  if (rank() != from && !fitted.left.empty()) layer.quantize(get(fitted));
}

}  // namespace bcq
