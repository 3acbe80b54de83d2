#include "eval/common.h"

#include <algorithm>
#include <sstream>

#include "engine/core/check.h"

namespace bcq {

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

const char* op_name(Role role) {
  switch (role) {
    case Role::Patch:
      return "patch";
    case Role::QKV:
      return "qkv";
    case Role::Query:
      return "q";
    case Role::Key:
      return "k";
    case Role::Value:
      return "v";
    case Role::QK:
      return "matmul1";
    case Role::AV:
      return "matmul2";
    case Role::Proj:
      return "proj";
    case Role::Fc1:
      return "fc1";
    case Role::Fc2:
      return "fc2";
    case Role::Reduction:
      return "reduction";
    case Role::Head:
      return "head";
  }
  return "";
}

BcOptions bc_options(const std::string& shape, const std::string& sites) {
  require_usage(shape == "channel" || shape == "position", "--bc %s: not none, channel or position", shape);
  BcOptions o;
  o.shape = shape == "channel" ? BcShape::Channel : BcShape::Position;
  const std::pair<const char*, bool*> flags[] = {
      {"conv", &o.conv},  {"linear", &o.linear}, {"matmul", &o.matmul},         {"attention", &o.attention},
      {"mlp", &o.mlp},    {"block", &o.block},   {"downsample", &o.downsample}, {"stage", &o.stage},
      {"model", &o.model}};
  for (const auto& flag : flags) *flag.second = false;
  std::stringstream names(sites);
  for (std::string name; std::getline(names, name, ',');) {
    const auto found = std::find_if(std::begin(flags), std::end(flags), [&](const auto& f) { return name == f.first; });
    require_usage(found != std::end(flags), "--bc-sites %s: not a list of %s", sites, kBcSites);
    *found->second = true;
  }
  return o;
}

}  // namespace bcq
