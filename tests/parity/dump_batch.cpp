// dump_batch MODEL IMAGES LIMIT OUT: pixel_values [n, 3, H, W] of LIMIT images spread evenly over a folder (0: all), as
// the engine makes them for the model, for other programs to run on, and their labels [n]. Called by onnx_parity.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "engine/core/check.h"
#include "engine/file/safetensors.h"
#include "eval/vision.h"

namespace {

using namespace bcq;

void dump(const std::string& model_path, const std::string& images, int64_t limit, const std::string& out) {
  const auto model = load_model(model_path);
  const ImageFolder folder = list_images(images, classes_of(model->info()));
  const auto all = static_cast<int64_t>(folder.items.size()), n = limit > 0 ? std::min(limit, all) : all;
  std::vector<int64_t> indices;
  Tensor labels({n});
  for (int64_t i = 0; i < n; ++i) {
    indices.push_back(i * all / n);
    labels[i] = static_cast<float>(folder.items[static_cast<size_t>(indices.back())].label);
  }
  write_safetensors(out, {{"pixel_values", load_pixels(folder, indices, model->info().image)}, {"labels", labels}});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: dump_batch MODEL IMAGES LIMIT OUT\n");
    return 2;
  }
  try {
    dump(argv[1], argv[2], std::atoll(argv[3]), argv[4]);
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "dump_batch: %s\n", e.what());
    return 1;
  }
}
