// Models quantized and saved, and what they are compared by.
#pragma once
#include <doctest/doctest.h>

#include "engine/file/json.h"
#include "engine/grid/affine.h"
#include "eval/save.h"
#include "quant/weight_methods.h"
#include "tests/support.h"

namespace bcq::test {

const Context kFake{Precision::Fake};
const std::string kFixtures = "tests/fixtures/", kMini = "data/mini/opt";
const Progress kSilent = [](const std::string&, double, double) {};

inline Batch batch_of(std::vector<int32_t> ids, int64_t windows) {
  Batch batch;
  batch.length = static_cast<int64_t>(ids.size()) / windows;
  batch.windows = windows;
  batch.ids = std::move(ids);
  return batch;
}
const Batch kBatch = batch_of({5, 3, 9, 2, 7, 1, 8, 4, 6, 11, 13, 12, 50, 17, 21, 33}, 2);

inline json facts(int bits, int64_t group) { return {{"wbits", bits}, {"groupsize", group}, {"method", "rtn"}}; }

inline WeightGrid grid_of(int bits, int64_t group, bool sym = false, bool half = false) {
  WeightGrid grid;
  grid.bits = bits;
  grid.groupsize = group;
  grid.sym = sym;
  grid.half = half;
  return grid;
}

// The columns of a quantized layer in an order that does not follow them, as act-order leaves it.
inline void scatter(Model& model) {
  for (Layer* layer : model.all_layers()) {
    if (!layer->packed()) continue;
    Affine grid = layer->packed()->grid();
    const int64_t in = layer->packed()->shape()[1], groups = grid.scale.dim(1);
    for (int64_t c = 0; c < in; ++c)
      grid.column_group.push_back(static_cast<int32_t>((c * 7 + 3) % in / grid.group % groups));
    layer->quantize(PackedWeight(grid, layer->packed()->shape(), layer->packed()->codes()));
  }
}

// Both are quantized alike and compute the same.
inline void check_same(Model& a, Model& b) {
  const auto layers_a = a.all_layers(), layers_b = b.all_layers();
  REQUIRE(layers_a.size() == layers_b.size());
  for (size_t s = 0; s < layers_a.size(); ++s) {
    CAPTURE(layers_a[s]->name);
    REQUIRE(!layers_a[s]->packed() == !layers_b[s]->packed());
    if (!layers_a[s]->packed()) continue;
    CHECK(layers_a[s]->packed()->codes() == layers_b[s]->packed()->codes());
    CHECK(
        same_bits(layers_a[s]->weight_in(Precision::Fake).values(), layers_b[s]->weight_in(Precision::Fake).values()));
    CHECK(layers_a[s]->packed()->grid().column_group == layers_b[s]->packed()->grid().column_group);
  }
  CHECK(same_bits(a.forward(kFake, kBatch), b.forward(kFake, kBatch)));
}

inline SaveOptions to(const Folder& folder, const std::string& format) { return {folder.file("saved"), format, false}; }

// Saves the model, and what is loaded from there is the same.
inline Saved check_saved(Model& model, const std::string& format, int bits, int64_t group, const Folder& folder) {
  const Saved saved = save_model(model, to(folder, format), facts(bits, group));
  const auto loaded = load_model(folder.file("saved"));
  CHECK(loaded->info().packed);
  CHECK(loaded->info().parameters == model.info().parameters);
  check_same(model, *loaded);
  return saved;
}

}  // namespace bcq::test
