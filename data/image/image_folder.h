// Folders of images: one folder per class in the order torchvision's ImageFolder gives it, or all in one; and tar
// archives of such folders, read in place.
//
// The order decides which images a seeded calibration draw picks, so it is part of every result. Labels
// of ImageNet come from the synset ids, so that a subset of the classes never shifts them.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/image/labels.h"
#include "engine/core/progress.h"
#include "engine/core/tensor.h"

namespace bcq {

struct ImageFolder {
  struct Item {
    std::string path;                            // of one in an archive: where unpacking beside it would put it
    int label = 0;                               // class the model numbers it; 0 where labels are not needed
    std::shared_ptr<const std::string> archive;  // the tar file it lies in; null: `path` is a file
    uint64_t offset = 0, size = 0;               // its bytes in `archive`
  };
  std::string root;
  std::string cache;        // folder of decoded images (see data/image/cache.h); "" for none
  std::string labelled_by;  // how: one of the rules of list_images(), or a label file and its form; "" for none
  std::string warning;      // "" or why the labels may be wrong
  std::vector<std::string> classes;  // names of the class folders, in byte order; empty when there are none
  std::vector<Item> items;           // by class, then folder path, then file name
};

// List root/<class>/**/*.{jpg,jpeg,png,bmp} or root/*.{jpg,jpeg,png,bmp} (any case; links followed). root may be
//   a tar archive of either: it lists as it would unpacked, without a sole folder around everything;
//   a folder or an archive that holds a tar archive called by a synset id, as ILSVRC2012_img_train.tar has 1000: it is
//     that class's folder, unless the folder is there too;
//   a folder with one other tar archive and nothing else.
// Order and labels do not depend on which of these the images come from.
// Hidden files and folders and what systems leave behind (__MACOSX, lost+found and the like) count for nothing.
// classes: what the model tells apart; without it no labels are needed. Labels of class folders are
//   those of the file `labels`, by the names of the folders or of the images;
//   "synset folder": the rank of the synset id, for a model of ImageNet's 1000 classes when all folders are named so;
//   "the model's labels": when all folders are named as classes of the model;
//   "folder number": the number, when all names are numbers below the number of classes;
//   "rank of the folder number", "natural folder rank", "folder rank": the place among all folders, and then every
//     class needs its folder.
// Without class folders:
//   those of the file `labels`, "synset suffix": the synset id that ends each name ("..._n01751748.JPEG"), else
//   LOC_val_solution.csv beside the folder or where Kaggle's archive has it.
// cache: kept in the result; the index of an archive is kept there, too. progress hears of the indexing.
// InputError: no such folder, no images, a class without images, an image without label, folders of which only some are
// named as classes of the model, a truncated or damaged archive, or a file with an image extension that torchvision
// would list and this engine cannot decode: leaving it out would change which images a seed draws.
ImageFolder list_images(const std::string& root, const ModelClasses& classes = {}, const std::string& labels = "",
                        const std::string& cache = "", const Progress& progress = nullptr);

// The bytes of an item. InputError when they cannot be read.
std::string read_item(const ImageFolder::Item& item);

// The first `count` of numpy.random.RandomState(seed).permutation(n_total): which images
// calibrate. UsageError when more are asked for than there are.
std::vector<int64_t> calibration_indices(int64_t n_total, int64_t count, uint32_t seed);

// The images at `indices` of folder.items, decoded in parallel: [B, 3, H, W]. An image that cannot be
// read is an InputError that names the file; or, where `unreadable` is given, its message stands there under the
// position in `indices` and its pixels are zeros.
Tensor load_pixels(const ImageFolder& folder, const std::vector<int64_t>& indices, const ImageConfig& config,
                   std::map<int64_t, std::string>* unreadable = nullptr);

}  // namespace bcq
