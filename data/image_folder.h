// A folder of class folders of images, in the order torchvision's ImageFolder gives it.
//
// The order decides both the labels (rank of the class folder's name) and which images a
// seeded calibration draw picks, so it is part of every result.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/tensor.h"

namespace bcq {

struct ImageFolder {
  struct Item {
    std::string path;
    int label = 0;  // index into classes
  };
  std::string root;
  std::vector<std::string> classes;  // sorted by name, byte order
  std::vector<Item> items;           // by class, then folder path, then file name
};

// List root/<class>/**/*.{jpg,jpeg,png} (any case; links followed). InputError: no such
// folder, no class folders, a class without images, or a file with an image extension that
// torchvision would list and this engine cannot decode: leaving it out would change which
// images a seed draws.
ImageFolder list_images(const std::string& root);

// The first `count` of numpy.random.RandomState(seed).permutation(n_total): which images
// calibrate. UsageError when more are asked for than there are.
std::vector<int64_t> calibration_indices(int64_t n_total, int64_t count, uint32_t seed);

// The images at `indices` of folder.items, decoded in parallel: [B, 3, H, W]. InputError
// from decoding names the file.
Tensor load_pixels(const ImageFolder& folder, const std::vector<int64_t>& indices, const ImageConfig& config);

}  // namespace bcq
