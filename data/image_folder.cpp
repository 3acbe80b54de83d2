// Listing and loading class folders; see image_folder.h.
#include "data/image_folder.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>

#include "data/image.h"
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

}  // namespace

ImageFolder list_images(const std::string& root) {
  ImageFolder out;
  out.root = root;
  std::error_code failure;
  require_input(fs::is_directory(root, failure), "%s: no such image folder", root.c_str());
  for (const auto& entry : fs::directory_iterator(root, failure)) {
    std::error_code broken_link;
    if (entry.is_directory(broken_link)) out.classes.push_back(entry.path().filename().string());
  }
  require_input(!failure, "%s: cannot list the folder: %s", root.c_str(), failure.message().c_str());
  require_input(!out.classes.empty(), "%s: no class folders in it (expected <class>/<image>)", root.c_str());
  std::sort(out.classes.begin(), out.classes.end());
  for (size_t label = 0; label < out.classes.size(); ++label) {
    std::vector<Directory> found;
    walk(root + "/" + out.classes[label], 0, found);
    // torchvision sorts by the path of the directory first, then by file name.
    std::sort(found.begin(), found.end(), [](const Directory& a, const Directory& b) { return a.path < b.path; });
    const size_t before = out.items.size();
    for (const Directory& d : found) {
      for (const std::string& f : d.files) out.items.push_back({d.path + "/" + f, static_cast<int>(label)});
    }
    require_input(out.items.size() > before, "%s/%s: no JPEG or PNG images in this class folder", root.c_str(),
                  out.classes[label].c_str());
  }
  return out;
}

std::vector<int64_t> calibration_indices(int64_t n_total, int64_t count, uint32_t seed) {
  require_usage(count >= 0 && count <= n_total, "%lld calibration images asked for, there are %lld",
                static_cast<long long>(count), static_cast<long long>(n_total));
  std::vector<int64_t> order = numpy_permutation(seed, n_total);
  order.resize(static_cast<size_t>(count));
  return order;
}

Tensor load_pixels(const ImageFolder& folder, const std::vector<int64_t>& indices, const ImageConfig& config) {
  for (const int64_t i : indices) {
    require(i >= 0 && i < static_cast<int64_t>(folder.items.size()), "image %lld of %zu in %s",
            static_cast<long long>(i), folder.items.size(), folder.root.c_str());
  }
  const int64_t count = static_cast<int64_t>(indices.size());
  Tensor out = Tensor::uninitialized({count, 3, config.height, config.width});
  parallel_for(count, [&](int64_t b) {
    const auto& item = folder.items[static_cast<size_t>(indices[static_cast<size_t>(b)])];
    const Tensor one = preprocess(load_image(item.path), config);
    std::copy_n(one.data, one.size(), out.data + b * one.size());
  });
  return out;
}

}  // namespace bcq
