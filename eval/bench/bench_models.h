// Networks of the shapes people have, with random weights: enough to measure speed.
#pragma once
#include <filesystem>
#include <memory>
#include <random>
#include <regex>
#include <string>

#include "models/model.h"

namespace bcq {

// Which works to run: those in whose name an expression is found. UsageError for one that is none.
class Wanted {
 public:
  explicit Wanted(const std::string& expression = "");
  bool operator()(const std::string& work) const { return std::regex_search(work, pattern_); }

 private:
  std::regex pattern_;
};

// Uniform in [-scale, scale).
Tensor random_tensor(const Shape& shape, float scale, std::mt19937& random);

// Written to `folder` and loaded from there.
std::unique_ptr<Model> random_vit(const std::filesystem::path& folder, const char* architecture, int64_t dim);
std::unique_ptr<Model> random_swin_tiny(const std::filesystem::path& folder);

// Grids without a search, each step just wide enough for what `batch` makes of the float network; after GELU and
// softmax twin-uniform ones if asked for. The pixels stay float.
void quantize_by_range(Model& model, const Batch& batch, int bits, bool twin);

}  // namespace bcq
