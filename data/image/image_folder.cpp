// Listing and loading class folders and archives of them; see image_folder.h.
#include "data/image/image_folder.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>

#include "data/image/cache.h"
#include "data/image/image.h"
#include "data/image/jpeg.h"
#include "data/image/labels.h"
#include "data/image/tar.h"
#include "data/random.h"
#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/file/json.h"

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

bool one_of(const std::string& name, std::initializer_list<const char*> extensions) {
  const std::string ext = lower_extension(name);
  return std::any_of(extensions.begin(), extensions.end(), [&](const char* e) { return ext == e; });
}
bool decoded(const std::string& name) { return one_of(name, {"jpg", "jpeg", "png"}); }
bool refused(const std::string& name) { return one_of(name, {"ppm", "bmp", "pgm", "tif", "tiff", "webp"}); }
bool archive(const std::string& name) { return one_of(name, {"tar"}); }

// "n01440764.tar", in any of ImageNet's releases.
bool class_archive(const std::string& name) {
  return name.size() == 13 && name[0] == 'n' && name.compare(9, 4, ".tar") == 0 &&
         std::all_of(name.begin() + 1, name.begin() + 9, [](unsigned char c) { return std::isdigit(c) != 0; });
}
std::string stem(const std::string& name) { return name.substr(0, name.rfind('.')); }

// Where the bytes of a file are: in an archive, or (null) at its own path.
struct Place {
  std::shared_ptr<const std::string> archive;
  uint64_t offset = 0, size = 0;
};
// Every folder with the images in it. torchvision sorts by the path of the folder first, then by file name, as these
// maps do.
using Tree = std::map<std::string, std::map<std::string, Place>>;

void walk(const std::string& folder, int depth, Tree& tree) {
  require_input(depth <= kMaxDepth, "%s: folders are nested more than %d deep", folder, kMaxDepth);
  auto& here = tree[folder];
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(folder, failure)) {
    const std::string name = entry.path().filename().string();
    std::error_code broken_link;
    if (entry.is_directory(broken_link))
      walk(folder + "/" + name, depth + 1, tree);
    else if (decoded(name) || refused(name) || (depth == 0 && archive(name)))
      here[name] = {};
  }
  require_input(!failure, "%s: cannot list the folder: %s", folder, failure.message());
}

// Lists archives into a tree.
struct Indexer {
  const std::string& cache;
  const Progress& progress;
  Tree& tree;

  std::vector<TarMember> members(const Place& p) const;
  void add(const Place& p, const std::string& folder, int depth) const;
};

// The members of an archive, from the cache where it has them: lines "type offset size name", each ended by a zero
// byte.
std::vector<TarMember> Indexer::members(const Place& p) const {
  const std::string& file = *p.archive;
  const auto tick = [&](uint64_t at) {
    if (progress)
      progress("index of " + fs::path(file).filename().string(), static_cast<double>(at),
               static_cast<double>(fs::file_size(file)));
  };
  const auto number = [](uint64_t n) { return static_cast<unsigned long long>(n); };
  const std::string key =
      cache.empty() ? "" : format("tar 1\n%s\n%d+%d", file_stamp(file), number(p.offset), number(p.size));
  const std::string index = cached(cache, key, [&] {
    std::string lines;
    for (const TarMember& m : list_tar(file, p.offset, p.size, tick))
      lines += format("%c %d %d ", m.type, number(m.offset), number(m.size)) + m.name + '\0';
    return lines;
  });
  std::vector<TarMember> all;
  for (size_t at = 0; at < index.size();) {
    const size_t end = index.find('\0', at);
    char* rest = nullptr;
    TarMember m;
    m.type = index[at];
    m.offset = std::strtoull(index.c_str() + at + 2, &rest, 10);
    m.size = std::strtoull(rest, &rest, 10);
    m.name = rest + 1;
    all.push_back(std::move(m));
    at = end + 1;
  }
  return all;
}

void Indexer::add(const Place& p, const std::string& folder, int depth) const {
  require_input(depth <= kMaxDepth, "%s: archives are nested more than %d deep", folder, kMaxDepth);
  tree[folder];
  for (const TarMember& m : members(p)) {
    const size_t slash = m.name.rfind('/');
    const std::string name = slash == std::string::npos ? m.name : m.name.substr(slash + 1);
    const std::string at = slash == std::string::npos ? folder : folder + "/" + m.name.substr(0, slash);
    const Place place{p.archive, m.offset, m.size};
    if (m.type == '5')
      tree[folder + (m.name.empty() ? "" : "/" + m.name)];
    else if (decoded(name) || refused(name) || class_archive(name)) {
      require_input(m.type == '0', "%s: %s is a link or a special file: unpack the archive", p.archive->c_str(),
                    m.name);
      if (class_archive(name))
        add(place, at + "/" + stem(name), depth + 1);
      else
        tree[at][name] = place;  // of two with the same name unpacking keeps the last
    }
  }
}

// Names of the folders directly in `root`.
std::vector<std::string> folders_in(const Tree& tree, const std::string& root) {
  std::vector<std::string> names;
  for (auto at = tree.lower_bound(root + "/"); at != tree.end() && at->first.rfind(root + "/", 0) == 0;) {
    const size_t begin = root.size() + 1;
    names.push_back(at->first.substr(begin, at->first.find('/', begin) - begin));
    at = tree.lower_bound(root + "/" + names.back() + "/");  // past the folder itself
    while (at != tree.end() && at->first.rfind(root + "/" + names.back() + "/", 0) == 0) ++at;
  }
  return names;
}

void add_images(const Tree& tree, const std::string& folder, int label, std::vector<ImageFolder::Item>& items) {
  const auto add = [&](const Tree::value_type& directory) {
    for (const auto& [name, place] : directory.second) {
      const std::string path = directory.first + "/" + name;
      require_input(!refused(name), "%s: image format not supported (JPEG, PNG)", path);
      if (decoded(name)) items.push_back({path, label, place.archive, place.offset, place.size});
    }
  };
  const auto here = tree.find(folder);
  if (here != tree.end()) add(*here);
  for (auto at = tree.lower_bound(folder + "/"); at != tree.end() && at->first.rfind(folder + "/", 0) == 0; ++at)
    add(*at);
}

void list_classes(ImageFolder& out, const Tree& tree, const std::string& root, int64_t classes) {
  const bool synsets =
      classes == kImageNetClasses &&
      std::all_of(out.classes.begin(), out.classes.end(), [](const std::string& c) { return synset_label(c) >= 0; });
  const auto folders = static_cast<int64_t>(out.classes.size());
  require_input(synsets || classes == 0 || folders == classes,
                "%s: %d class folders, but the model has %d classes: unless all are named by synset ids of "
                "ImageNet-1k a label is the rank of the folder's name, and every class needs its folder",
                out.root, folders, classes);
  out.labelled_by = synsets ? "synset folder" : "folder rank";
  for (size_t rank = 0; rank < out.classes.size(); ++rank) {
    const std::string folder = root + "/" + out.classes[rank];
    const size_t before = out.items.size();
    add_images(tree, folder, synsets ? synset_label(out.classes[rank]) : static_cast<int>(rank), out.items);
    require_input(out.items.size() > before, "%s: no JPEG or PNG images in this class folder", folder);
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
                  item.path);
    require_input(item.label < classes, "%s: label %d, but the model has %d classes", item.path, item.label, classes);
  }
}

// Fills the tree with what lies below a folder or in an archive, and returns the folder in it that holds the classes
// or the images.
std::string gather(const std::string& root, const Indexer& index) {
  std::error_code failure;
  const auto place = [](const std::string& path) { return Place{std::make_shared<std::string>(path), 0, 0}; };
  if (!fs::is_directory(root, failure)) {
    require_input(fs::is_regular_file(root, failure), "%s: no such image folder or tar archive", root);
    index.add(place(root), root, 0);
    std::string base = root;
    for (auto in = folders_in(index.tree, base); in.size() == 1 && index.tree[base].empty() && synset_label(in[0]) < 0;
         in = folders_in(index.tree, base))
      base += "/" + in[0];
    return base;
  }
  walk(root, 0, index.tree);
  std::vector<std::string> others;
  const auto here = index.tree[root];
  for (const auto& entry : here) {
    const std::string path = root + "/" + entry.first;
    if (class_archive(entry.first) && !index.tree.count(stem(path)))
      index.add(place(path), stem(path), 0);
    else if (archive(entry.first))
      others.push_back(path);
  }
  if (index.tree.size() > 1 || here.size() > others.size() || others.empty()) return root;
  require_input(others.size() == 1, "%s: holds %d tar archives: name the one to read, such as %s", root, others.size(),
                others[0]);
  return gather(others[0], index);
}

}  // namespace

ImageFolder list_images(const std::string& root, int64_t classes, const std::string& labels, const std::string& cache,
                        const Progress& progress) {
  ImageFolder out;
  out.root = root;
  out.cache = cache;
  Tree tree;
  const std::string base = gather(root, {cache, progress, tree});
  out.classes = folders_in(tree, base);
  if (!out.classes.empty()) {
    require_usage(labels.empty(), "--labels is for images in one folder; %s has class folders", root);
    list_classes(out, tree, base, classes);
    return out;
  }
  add_images(tree, base, 0, out.items);
  require_input(!out.items.empty(), "%s: no class folders and no images in it (expected <class>/<image>, or images)",
                root);
  if (classes > 0) label_flat(out, classes, labels);
  return out;
}

std::string read_item(const ImageFolder::Item& item) {
  return item.archive ? read_range(*item.archive, item.offset, item.size) : read_file(item.path);
}

std::vector<int64_t> calibration_indices(int64_t n_total, int64_t count, uint32_t seed) {
  require_usage(count >= 0 && count <= n_total, "%d calibration images asked for, there are %d", count, n_total);
  std::vector<int64_t> order = numpy_permutation(seed, n_total);
  order.resize(static_cast<size_t>(count));
  return order;
}

namespace {

// The image resized and cropped, decoded or from the cache.
Image crop_of(const ImageFolder::Item& item, const ImageConfig& config, const std::string& cache) {
  const auto decode = [&] { return resize_and_crop(decode_image(read_item(item), item.path), config); };
  if (cache.empty()) return decode();
  json settings = to_json(config);
  for (const char* later : {"rescale_factor", "mean", "std"}) settings.erase(later);  // come after the pixels
  // A change of what decode() makes of an image has to change the number in front.
  const std::string key =
      format("crop 2, %s\n%s\n%d+%d\n%s", jpeg_decoder(), file_stamp(item.archive ? *item.archive : item.path),
             item.offset, item.size, dump(settings));
  const std::string rgb = cached(cache, key, [&] {
    const Image crop = decode();
    return std::string(crop.rgb.begin(), crop.rgb.end());
  });
  return {static_cast<int>(config.height), static_cast<int>(config.width), {rgb.begin(), rgb.end()}};
}

}  // namespace

Tensor load_pixels(const ImageFolder& folder, const std::vector<int64_t>& indices, const ImageConfig& config,
                   std::map<int64_t, std::string>* unreadable) {
  for (const int64_t i : indices) {
    require(i >= 0 && i < static_cast<int64_t>(folder.items.size()), "image %d of %d in %s", i, folder.items.size(),
            folder.root);
  }
  const int64_t count = static_cast<int64_t>(indices.size());
  Tensor out({count, 3, config.height, config.width});
  std::vector<std::string> failures(indices.size());
  parallel_for(count, [&](int64_t b) {
    const auto& item = folder.items[static_cast<size_t>(indices[static_cast<size_t>(b)])];
    try {
      const Tensor one = normalise(crop_of(item, config, folder.cache), config);
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
