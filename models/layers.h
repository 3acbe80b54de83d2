// Parameters that several families hold, and how they are read.
#pragma once
#include <algorithm>
#include <string>

#include "engine/core/check.h"
#include "engine/file/packed_file.h"
#include "engine/nn/site.h"

namespace bcq {

struct Norm {
  Tensor weight, bias;  // [D]
  Tensor bias_hat;      // bias with the compensation of a block that ends in this norm; as Site::bias_hat
};

inline Norm load_norm(const Loader& at, int64_t D) { return {at.get("weight", {D}), at.get("bias", {D}), {}}; }

// A linear site named as the checkpoint names it: weight [out, in], bias [out]. One that is packed is quantized as
// loaded: its float weight is what its codes stand for.
inline Site load_linear(const Loader& at, Role role, const std::string& name, int64_t out, int64_t in,
                        bool has_bias = true) {
  Site site;
  site.name = name;
  site.role = role;
  const Loader inner = at.sub(name.substr(name.rfind('.') + 1));
  const bool packed = has_packed(inner);
  if (packed) {
    site.set_packed(get_packed(inner, out, in));
    site.weight = site.weight_hat;
    site.bc = get_bc(inner, out);
  } else {
    site.weight = inner.get_weight("weight", {out, in});
  }
  if (has_bias || (packed && inner.has("bias"))) site.bias = inner.get("bias", {out});
  return site;
}

// The compensation per position that a packed file keeps of the block at this place, into block_bc[i].
inline void load_block_bc(const Loader& at, int64_t i, int64_t D, std::vector<Tensor>& block_bc) {
  const Tensor bc = get_bc(at, D);
  if (bc.empty()) return;
  block_bc.resize(std::max(block_bc.size(), static_cast<size_t>(i) + 1));
  block_bc[static_cast<size_t>(i)] = bc;
}

// A product of two activations.
inline Site product_site(Role role, const std::string& name) {
  Site site;
  site.name = name;
  site.role = role;
  return site;
}

// A convolution of stride P is a linear layer on patches: [D, 3*P*P].
inline Site load_patch_embed(const Loader& file, int64_t D, int64_t P) {
  Site site;
  site.name = "patch_embed.proj";
  site.role = Role::Patch;
  const Loader at = file.sub("patch_embed").sub("proj");
  site.weight = at.get("weight", {D, 3, P, P}).reshaped({D, 3 * P * P});
  site.bias = at.get("bias", {D});
  return site;
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
