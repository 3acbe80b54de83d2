// Parameters that several families hold, and how they are read.
#pragma once
#include <algorithm>
#include <string>

#include "engine/core/check.h"
#include "engine/file/packed_file.h"
#include "models/model.h"
#include "models/stored.h"

namespace bcq {

inline Norm load_norm(const Loader& at, int64_t D) {
  return {at.get("weight", {D}), {at.get("bias", {D}), {}}, at.name()};
}

// A layer without parameters yet: as such a product of two activations.
inline Layer make_layer(Role role, const std::string& name) {
  Layer layer;
  layer.name = name;
  layer.role = role;
  return layer;
}

// The packed or binarized weight at this place.
inline void quantize_packed(const Loader& at, Layer& layer, int64_t out, int64_t in) {
  if (has_binary(at))
    layer.quantize(get_binary(at, out, in));
  else
    layer.quantize(get_packed(at, out, in));
}

// A linear layer named as the checkpoint names it: weight [out, in], bias [out]. One that is packed is quantized as
// loaded: its float weight is what its codes stand for. A quantized one may have a bias that the network has not.
inline Layer load_linear(const Loader& at, Role role, const std::string& name, int64_t out, int64_t in,
                         bool has_bias = true) {
  Layer layer = make_layer(role, name);
  const Loader inner = at.sub(name.substr(name.rfind('.') + 1));
  if (holds_grids(inner)) {
    layer.weight = get_stored_weight(inner, out, in);
  } else if (has_packed(inner)) {
    quantize_packed(inner, layer, out, in);
    layer.weight = layer.quantized->weight;
    layer.added = get_bc(inner, out);
  } else {
    layer.weight = inner.get_weight("weight", {out, in});
  }
  if (has_bias || (inner.packed() && inner.has("bias"))) layer.bias.loaded = inner.get("bias", {out});
  if (!has_bias && !layer.bias.loaded.empty()) inner.count(-out);  // a parameter of the quantized one alone
  return layer;
}

// A convolution of stride P is a linear layer on patches: [D, 3*P*P].
inline Layer load_patch_embed(const Loader& file, int64_t D, int64_t P, bool has_bias = true) {
  Layer layer = make_layer(Role::Patch, "patch_embed.proj");
  const Loader at = file.sub("patch_embed").sub("proj");
  layer.weight = holds_grids(at) && !at.has("weight") ? get_stored_weight(at, D, 3 * P * P)
                                                      : at.get("weight", {D, 3, P, P}).reshaped({D, 3 * P * P});
  if (has_bias || (holds_grids(at) && at.has("bias"))) layer.bias.loaded = at.get("bias", {D});
  return layer;
}

// The rows that are queries, keys or values (part 0, 1, 2), in the order of channels, of a projection that fuses them
// head by head, [heads * 3 * d, in], or as a whole, as if of one head. Values are what attention mixes, channel by
// channel. Keys may be shifted by a constant each: that adds the same to all scores of a query, and softmax takes it
// away.
inline FoldSource rows_of(Layer& qkv, int64_t part, int64_t heads = 1) {
  FoldSource source{nullptr, &qkv, {}};
  const int64_t d = qkv.weight.dim(0) / 3 / heads;
  for (int64_t c = 0; c < heads * d; ++c) source.rows.push_back((c / d * 3 + part) * d + c % d);
  return source;
}

// A pre-norm block of a vision transformer, whose layers are the same in ViT and Swin.
struct VisionBlock {
  Norm norm1, norm2;
  Layer qkv, matmul1, matmul2, proj, fc1, fc2;
  Norm q_norm = {}, k_norm = {};  // of each head's queries and keys; empty: there is none
};

inline VisionBlock load_vision_block(const Loader& at, const std::string& name, int64_t D, int64_t hidden,
                                     bool qkv_bias = true, bool proj_bias = true) {
  const Loader attn = at.sub("attn"), mlp = at.sub("mlp");
  return {load_norm(at.sub("norm1"), D),
          load_norm(at.sub("norm2"), D),
          load_linear(attn, Role::QKV, name + ".attn.qkv", 3 * D, D, qkv_bias),
          make_layer(Role::QK, name + ".attn.matmul1"),
          make_layer(Role::AV, name + ".attn.matmul2"),
          load_linear(attn, Role::Proj, name + ".attn.proj", D, D, proj_bias),
          load_linear(mlp, Role::Fc1, name + ".mlp.fc1", hidden, D, proj_bias),
          load_linear(mlp, Role::Fc2, name + ".mlp.fc2", D, hidden, proj_bias)};
}

inline Point branch_point(Point::Kind kind, Layer& last) {
  Point point = Model::point_of(last);
  point.kind = kind;
  point.name = last.name.substr(0, last.name.rfind('.'));
  return point;
}

inline Part vision_part(VisionBlock& b, const std::string& name, const Point& output) {
  return {Part::Kind::Block,
          name,
          {{{&b.qkv}, {&b.norm1}},
           {{&b.matmul1}, b.k_norm.weight.empty() ? rows_of(b.qkv, 1) : FoldSource{}},
           {{&b.matmul2}},
           {{&b.proj}, rows_of(b.qkv, 2)},
           {{&b.fc1}, {&b.norm2}},
           {{&b.fc2}}},
          {branch_point(Point::Kind::Attention, b.proj), branch_point(Point::Kind::Mlp, b.fc2)},
          output,
          b.proj.gamma.empty() && b.fc2.gamma.empty()};
}

// Values of all tensors that were read. InputError when the file has others: a network with more than this
// forward pass would compute something else. Names that contain one of `ignored` are passed over.
inline int64_t count_parameters(const Loader& file, const std::vector<std::string>& ignored, const std::string& model) {
  const auto is_ignored = [&](const std::string& name) {
    return std::any_of(ignored.begin(), ignored.end(),
                       [&](const std::string& part) { return name.find(part) != std::string::npos; });
  };
  for (const std::string& unused : file.unused())
    require_input(is_ignored(unused),
                  "%s: tensor %s is not part of %s: this checkpoint needs a forward pass that is not here",
                  file.file().path(), unused, model);
  return file.values();
}

}  // namespace bcq
