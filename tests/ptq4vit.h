// What tests of BasePTQ, EasyQuant and PTQ4ViT share.
#pragma once
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "models/model.h"
#include "tests/support.h"

namespace bcq::test {

const std::string kVit = "tests/fixtures/vit_tiny";
const Progress kSilent = [](const std::string&, double, double) {};
const Warn kQuiet = [](const std::string&) {};

inline std::unique_ptr<Model> tiny() { return load_model(kVit); }
inline Tensor tiny_images(int64_t n) { return random({n, 3, 12, 12}, 5, 2); }

inline Tensor squared(Tensor g) {
  for (int64_t i = 0; i < g.size(); ++i) g[i] *= g[i];
  return g;
}

// The steps that were chosen, of a grid of any of their kinds.
inline std::vector<float> scales_of(const Grid& grid) {
  if (const auto* g = grid.as<Uniform>()) return g->scale;
  if (const auto* g = grid.as<TwinGelu>()) return {g->pos, g->neg};
  if (const auto* g = grid.as<TwinSoftmax>()) return {g->split};
  return {};
}

}  // namespace bcq::test
