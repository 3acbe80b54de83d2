// Parameters that several families hold, and how they are read.
#pragma once
#include <string>

#include "engine/safetensors.h"
#include "engine/site.h"

namespace bcq {

struct Norm {
  Tensor weight, bias;  // [D]
};

inline Norm load_norm(const Loader& at, int64_t D) { return {at.get("weight", {D}), at.get("bias", {D})}; }

// A linear site named as the checkpoint names it: weight [out, in], bias [out].
inline Site load_linear(const Loader& at, Role role, const std::string& name, int64_t out, int64_t in) {
  Site site;
  site.name = name;
  site.role = role;
  const Loader inner = at.sub(name.substr(name.rfind('.') + 1));
  site.weight = inner.get("weight", {out, in});
  site.bias = inner.get("bias", {out});
  return site;
}

// A product of two activations.
inline Site product_site(Role role, const std::string& name) {
  Site site;
  site.name = name;
  site.role = role;
  return site;
}

}  // namespace bcq
