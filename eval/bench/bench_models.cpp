#include "eval/bench/bench_models.h"

#include <cmath>
#include <map>

#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "engine/grid/twin_gelu.h"
#include "engine/grid/twin_softmax.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace fs = std::filesystem;

Wanted::Wanted(const std::string& expression) {
  try {
    pattern_ = std::regex(expression);
  } catch (const std::regex_error& e) {
    throw UsageError(format("--only %s: not a regular expression (%s)", expression, e.what()));
  }
}

Tensor random_tensor(const Shape& shape, float scale, std::mt19937& random) {
  Tensor t = Tensor::uninitialized(shape);
  for (int64_t i = 0; i < t.size(); ++i) t[i] = scale * (static_cast<float>(random()) / 2147483648.f - 1.f);
  return t;
}

namespace {

class Checkpoint {
 public:
  void linear(const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in});
    add(name + ".bias", {out});
  }
  void norm(const std::string& name, int64_t n) {
    add(name + ".weight", {n});
    add(name + ".bias", {n});
  }
  void vision_block(const std::string& name, int64_t dim) {
    norm(name + ".norm1", dim);
    linear(name + ".attn.qkv", 3 * dim, dim);
    linear(name + ".attn.proj", dim, dim);
    norm(name + ".norm2", dim);
    linear(name + ".mlp.fc1", 4 * dim, dim);
    linear(name + ".mlp.fc2", dim, 4 * dim);
  }
  void add(const std::string& name, const Shape& shape) { tensors_[name] = random_tensor(shape, 0.05f, random_); }
  std::unique_ptr<Model> load(const fs::path& folder, const json& config) const {
    fs::create_directories(folder);
    write_safetensors((folder / "model.safetensors").string(), tensors_);
    write_file((folder / "config.json").string(), config.dump());
    return load_model(folder.string());
  }

 private:
  std::map<std::string, Tensor> tensors_;
  std::mt19937 random_{1};
};

}  // namespace

std::unique_ptr<Model> random_vit(const fs::path& folder, const char* architecture, int64_t dim) {
  Checkpoint c;
  c.add("cls_token", {1, 1, dim});
  c.add("pos_embed", {1, 197, dim});
  c.add("patch_embed.proj.weight", {dim, 3, 16, 16});
  c.add("patch_embed.proj.bias", {dim});
  for (int i = 0; i < 12; ++i) c.vision_block("blocks." + std::to_string(i), dim);
  c.norm("norm", dim);
  c.linear("head", 1000, dim);
  return c.load(folder, {{"architecture", architecture}, {"num_classes", 1000}});
}

std::unique_ptr<Model> random_swin_tiny(const fs::path& folder) {
  Checkpoint c;
  c.add("patch_embed.proj.weight", {96, 3, 4, 4});
  c.add("patch_embed.proj.bias", {96});
  c.norm("patch_embed.norm", 96);
  const int depths[] = {2, 2, 6, 2};
  for (int s = 0; s < 4; ++s) {
    const int64_t dim = int64_t{96} << s;
    const std::string stage = "layers." + std::to_string(s);
    if (s > 0) {
      c.norm(stage + ".downsample.norm", 2 * dim);
      c.add(stage + ".downsample.reduction.weight", {dim, 2 * dim});
    }
    for (int j = 0; j < depths[s]; ++j) {
      const std::string block = stage + ".blocks." + std::to_string(j);
      c.vision_block(block, dim);
      c.add(block + ".attn.relative_position_bias_table", {169, dim / 32});
    }
  }
  c.norm("norm", 768);
  c.linear("head.fc", 1000, 768);
  return c.load(folder, {{"architecture", "swin_tiny_patch4_window7_224"}, {"num_classes", 1000}});
}

namespace {

float step_of(const Tensor& x, int bits) {
  return kernels().max_abs(x.data, x.size()) / (std::ldexp(1.f, bits - 1) - 0.5f);
}

struct RangeGrids : Observer {
  int bits;
  bool twin;
  RangeGrids(int k, bool t) : bits(k), twin(t) {}

  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor&) override {
    Quantized& q = made[&layer];
    const Tensor right = layer.is_linear() ? layer.weight.values() : b;
    const int axis = layer.is_linear() ? 0 : 1;
    q.right = Uniform{bits, axis, {step_of(right, bits)}};
    if (layer.is_linear()) q.weight = fake_quantize(q.right, right);
    const float step = step_of(a, bits), m = std::ldexp(1.f, bits - 1);
    if (layer.role == Role::Patch)
      q.left = Identity{};
    else if (twin && layer.role == Role::Fc2)
      q.left = TwinGelu{bits, step, 0.17f / m};
    else if (twin && layer.role == Role::AV)
      q.left = TwinSoftmax{bits, 1.f / 16, true};
    else
      q.left = Uniform{bits, axis, {step}};
  }
  std::map<const Layer*, Quantized> made;
};

}  // namespace

void quantize_by_range(Model& model, const Batch& batch, int bits, bool twin) {
  model.clear();
  RangeGrids grids(bits, twin);
  model.forward({Precision::Float, nullptr, &grids}, batch);
  for (Layer* layer : model.all_layers()) layer->quantize(grids.made.at(layer));
}

}  // namespace bcq
