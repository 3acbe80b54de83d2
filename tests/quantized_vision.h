// Vision models quantized by a recipe on seeded pixels, as programs quantize them.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/file/json.h"
#include "eval/run.h"
#include "tests/support.h"

namespace bcq::test {

inline const Progress kSilent = [](const std::string&, double, double) {};
inline const Warn kQuiet = [](const std::string&) {};

// Seeded pixels to calibrate and compensate on.
struct Pixels : Task {
  std::vector<Batch> batches{1};
  Pixels(Model& m, int64_t images) : Task(m) {
    batches[0].pixels = random({images, 3, m.info().image.height, m.info().image.width}, 5, 2);
  }
  std::vector<Batch> calibration(const Recipe&) override { return batches; }
  const std::vector<Batch>& compensation(const Recipe&) override { return batches; }
  Measured measure(const Recipe&, size_t, json&, const Progress&) override { return {}; }
};

inline Recipe recipe_of(const std::string& method, int wbits, int abits, const json& options = json::object()) {
  json all = {{"method", method}, {"wbits", wbits}, {"abits", abits}};
  if (method == "base-ptq" || method == "easyquant" || method == "ptq4vit") all["eq_n"] = 10;  // candidates enough here
  if (options.is_object()) all.update(options);
  return read_recipe(Family::Vision, all, "test", json::object());
}

inline void quantize_as(Model& model, const Recipe& recipe, int64_t images = 4) {
  Pixels task(model, images);
  Outcome outcome = quantize(task, recipe, kSilent, kQuiet);
  compensate(task, recipe, outcome, kSilent);
}

}  // namespace bcq::test
