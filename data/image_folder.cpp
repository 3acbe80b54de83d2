// Listing and loading class folders; see image_folder.h.
#include "data/image_folder.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>

#include "data/image.h"
#include "data/labels.h"
#include "data/random.h"
#include "engine/check.h"
#include "engine/parallel.h"

namespace fs = std::filesystem;

namespace bcq {
namespace {

constexpr int kMaxDepth = 32;  // links may form a loop

std::string lower_extension(const std::string& name) {
  const size_t dot = name.rfind('.');
  std::string ext = dot == std::string::npos ? "" : name.substr(dot + 1);
  for (char& c : ext) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return ext;
}

// Folders at or below `folder`, each with the images directly in it.
struct Directory {
  std::string path;
  std::vector<std::string> files;
};

void walk(const std::string& folder, int depth, std::vector<Directory>& found) {
  require_input(depth <= kMaxDepth, "%s: folders are nested more than %d deep", folder.c_str(), kMaxDepth);
  static const std::array<const char*, 3> decoded = {"jpg", "jpeg", "png"};
  static const std::array<const char*, 6> refused = {"ppm", "bmp", "pgm", "tif", "tiff", "webp"};
  Directory here{folder, {}};
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(folder, failure)) {
    const std::string name = entry.path().filename().string();
    std::error_code broken_link;
    if (entry.is_directory(broken_link)) {
      walk(folder + "/" + name, depth + 1, found);
      continue;
    }
    const std::string ext = lower_extension(name);
    const auto is = [&](const char* e) { return ext == e; };
    require_input(std::none_of(refused.begin(), refused.end(), is), "%s/%s: image format not supported (JPEG, PNG)",
                  folder.c_str(), name.c_str());
    if (std::any_of(decoded.begin(), decoded.end(), is)) here.files.push_back(name);
  }
  require_input(!failure, "%s: cannot list the folder: %s", folder.c_str(), failure.message().c_str());
  std::sort(here.files.begin(), here.files.end());
  found.push_back(std::move(here));
}

// torchvision sorts by the path of the directory first, then by file name.
std::vector<std::string> images_below(const std::string& folder) {
  std::vector<Directory> found;
  walk(folder, 0, found);
  std::sort(found.begin(), found.end(), [](const Directory& a, const Directory& b) { return a.path < b.path; });
  std::vector<std::string> paths;
  for (const Directory& d : found)
    for (const std::string& f : d.files) paths.push_back(d.path + "/" + f);
  return paths;
}

void list_classes(ImageFolder& out, int64_t classes) {
  const bool synsets =
      classes == kImageNetClasses &&
      std::all_of(out.classes.begin(), out.classes.end(), [](const std::string& c) { return synset_label(c) >= 0; });
  const auto folders = static_cast<int64_t>(out.classes.size());
  require_input(synsets || classes == 0 || folders == classes,
                "%s: %lld class folders, but the model has %lld classes: unless all are named by synset ids of "
                "ImageNet-1k a label is the rank of the folder's name, and every class needs its folder",
                out.root.c_str(), static_cast<long long>(folders), static_cast<long long>(classes));
  out.labelled_by = synsets ? "synset folder" : "folder rank";
  for (size_t rank = 0; rank < out.classes.size(); ++rank) {
    const std::string folder = out.root + "/" + out.classes[rank];
    const std::vector<std::string> paths = images_below(folder);
    require_input(!paths.empty(), "%s: no JPEG or PNG images in this class folder", folder.c_str());
    const int label = synsets ? synset_label(out.classes[rank]) : static_cast<int>(rank);
    for (const std::string& path : paths) out.items.push_back({path, label});
  }
}

// Kaggle's archive has ILSVRC/Data/CLS-LOC/val and LOC_val_solution.csv beside ILSVRC.
std::string kaggle_labels(const std::string& root) {
  fs::path at = fs::absolute(root);
  for (int up = 0; up < 5 && at.has_parent_path(); ++up, at = at.parent_path())
    if (fs::exists(at.parent_path() / "LOC_val_solution.csv"))
      return (at.parent_path() / "LOC_val_solution.csv").string();
  return "";
}

void label_flat(ImageFolder& out, int64_t classes, std::string labels) {
  const auto suffix = [](const std::string& path) {
    const std::string name = label_key(path);
    const size_t at = name.rfind('_');
    return at == std::string::npos ? -1 : synset_label(name.substr(at + 1));
  };
  if (labels.empty() && suffix(out.items[0].path) < 0) labels = kaggle_labels(out.root);
  out.labelled_by = labels.empty() ? "synset suffix" : labels;
  const auto table = labels.empty() ? std::map<std::string, int>{} : read_labels(labels);
  for (auto& item : out.items) {
    const auto found = table.find(label_key(item.path));
    item.label = !labels.empty() ? (found == table.end() ? -1 : found->second) : suffix(item.path);
    require_input(item.label >= 0,
                  "%s: no label for this image: it needs a class folder, a synset id at the end of its name, or a line "
                  "in a label file (--labels)",
                  item.path.c_str());
    require_input(item.label < classes, "%s: label %d, but the model has %lld classes", item.path.c_str(), item.label,
                  static_cast<long long>(classes));
  }
}

}  // namespace

ImageFolder list_images(const std::string& root, int64_t classes, const std::string& labels) {
  ImageFolder out;
  out.root = root;
  std::error_code failure;
  require_input(fs::is_directory(root, failure), "%s: no such image folder", root.c_str());
  for (const auto& entry : fs::directory_iterator(root, failure)) {
    std::error_code broken_link;
    if (entry.is_directory(broken_link)) out.classes.push_back(entry.path().filename().string());
  }
  require_input(!failure, "%s: cannot list the folder: %s", root.c_str(), failure.message().c_str());
  std::sort(out.classes.begin(), out.classes.end());
  if (!out.classes.empty()) {
    require_usage(labels.empty(), "--labels is for images in one folder; %s has class folders", root.c_str());
    list_classes(out, classes);
    return out;
  }
  for (const std::string& path : images_below(root)) out.items.push_back({path, 0});
  require_input(!out.items.empty(), "%s: no class folders and no images in it (expected <class>/<image>, or images)",
                root.c_str());
  if (classes > 0) label_flat(out, classes, labels);
  return out;
}

std::vector<int64_t> calibration_indices(int64_t n_total, int64_t count, uint32_t seed) {
  require_usage(count >= 0 && count <= n_total, "%lld calibration images asked for, there are %lld",
                static_cast<long long>(count), static_cast<long long>(n_total));
  std::vector<int64_t> order = numpy_permutation(seed, n_total);
  order.resize(static_cast<size_t>(count));
  return order;
}

Tensor load_pixels(const ImageFolder& folder, const std::vector<int64_t>& indices, const ImageConfig& config,
                   std::map<int64_t, std::string>* unreadable) {
  for (const int64_t i : indices) {
    require(i >= 0 && i < static_cast<int64_t>(folder.items.size()), "image %lld of %zu in %s",
            static_cast<long long>(i), folder.items.size(), folder.root.c_str());
  }
  const int64_t count = static_cast<int64_t>(indices.size());
  Tensor out({count, 3, config.height, config.width});
  std::vector<std::string> failures(indices.size());
  parallel_for(count, [&](int64_t b) {
    const auto& item = folder.items[static_cast<size_t>(indices[static_cast<size_t>(b)])];
    try {
      const Tensor one = preprocess(load_image(item.path), config);
      std::copy_n(one.data, one.size(), out.data + b * one.size());
    } catch (const InputError& e) {
      if (!unreadable) throw;
      failures[static_cast<size_t>(b)] = e.what();
    }
  });
  for (int64_t b = 0; unreadable && b < count; ++b)
    if (!failures[static_cast<size_t>(b)].empty()) (*unreadable)[b] = failures[static_cast<size_t>(b)];
  return out;
}

}  // namespace bcq
