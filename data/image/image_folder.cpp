// Listing and loading class folders and archives of them; see image_folder.h.
#include "data/image/image_folder.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <initializer_list>
#include <set>
#include <sstream>

#include "data/image/cache.h"
#include "data/image/image.h"
#include "data/image/jpeg.h"
#include "data/image/tar.h"
#include "data/random.h"
#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/file/json.h"

namespace fs = std::filesystem;

namespace bcq {
namespace {

constexpr int kMaxDepth = 32;  // links may form a loop

// In any case of its letters.
bool has_extension(const std::string& name, std::initializer_list<const char*> extensions) {
  std::string own = fs::path(name).extension().string();
  for (char& c : own) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::find(extensions.begin(), extensions.end(), own) != extensions.end();
}
bool decoded(const std::string& name) { return has_extension(name, {".jpg", ".jpeg", ".png", ".bmp"}); }
bool refused(const std::string& name) { return has_extension(name, {".ppm", ".pgm", ".tif", ".tiff", ".webp"}); }
bool archive(const std::string& name) { return has_extension(name, {".tar"}); }

// Hidden, or left by a system or a file server: not part of the data.
bool left_out(const std::string& name) {
  for (const char* other : {"__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})
    if (name == other) return true;
  return name[0] == '.' && name != "..";
}

// "n01440764.tar", in any of ImageNet's releases.
bool class_archive(const std::string& name) {
  return name.size() == 13 && name[0] == 'n' && name.compare(9, 4, ".tar") == 0 &&
         std::all_of(name.begin() + 1, name.begin() + 9, [](unsigned char c) { return std::isdigit(c) != 0; });
}
std::string stem(const std::string& name) { return name.substr(0, name.rfind('.')); }

// Where the bytes of a file are: in an archive, or (null) at its own path.
struct Place {
  std::shared_ptr<const std::string> archive = nullptr;
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
    if (left_out(name)) continue;
    if (entry.is_directory(broken_link))
      walk(folder + "/" + name, depth + 1, tree);
    else if (decoded(name) || refused(name) || (depth == 0 && archive(name)))
      here[name] = {};
  }
  require_input(!failure, "%s: cannot list the folder: %s", folder, failure.message());
}

// An index as it is cached: lines "type offset size name", each ended by a zero byte. False: it is not that.
bool read_index(const std::string& index, std::vector<TarMember>& members) {
  std::istringstream in(index);
  for (TarMember m; in.get(m.type); members.push_back(m))
    if (!(in >> m.offset >> m.size) || in.get() != ' ' || !std::getline(in, m.name, '\0') || in.eof()) return false;
  return true;
}

// Lists archives into a tree.
struct Indexer {
  const std::string& cache;
  const Progress& progress;
  Tree& tree;

  // The members of an archive, from the cache where it has them.
  std::vector<TarMember> members(const Place& p) const {
    const std::string& file = *p.archive;
    const auto tick = [&](uint64_t at) {
      if (progress)
        progress("index of " + fs::path(file).filename().string(), static_cast<double>(at),
                 static_cast<double>(fs::file_size(file)));
    };
    const std::string key = cache.empty() ? "" : format("tar 2\n%s\n%d+%d", file_stamp(file), p.offset, p.size);
    const auto list = [&] {
      std::string lines;
      for (const TarMember& m : list_tar(file, p.offset, p.size, tick))
        lines += format("%c %d %d ", m.type, m.offset, m.size) + m.name + '\0';
      return lines;
    };
    std::vector<TarMember> all;
    const auto valid = [](const std::string& index) {
      std::vector<TarMember> any;
      return read_index(index, any) && !any.empty();
    };
    read_index(cached(cache, key, list, valid), all);
    return all;
  }

  void add(const Place& p, const std::string& folder, int depth) const {
    require_input(depth <= kMaxDepth, "%s: archives are nested more than %d deep", folder, kMaxDepth);
    tree[folder];
    for (const TarMember& m : members(p)) {
      const size_t slash = m.name.rfind('/');
      const std::string name = slash == std::string::npos ? m.name : m.name.substr(slash + 1);
      const std::string at = slash == std::string::npos ? folder : folder + "/" + m.name.substr(0, slash);
      const Place place{p.archive, m.offset, m.size};
      const fs::path path(m.name);
      if (std::any_of(path.begin(), path.end(), [](const fs::path& part) { return left_out(part.string()); })) continue;
      if (m.type == '5')
        tree[folder + (m.name.empty() ? "" : "/" + m.name)];
      else if (decoded(name) || refused(name) || class_archive(name)) {
        require_input(m.type == '0', "%s: %s is a link or a special file: unpack the archive", *p.archive, m.name);
        if (class_archive(name))
          add(place, at + "/" + stem(name), depth + 1);
        else
          tree[at][name] = place;  // of two with the same name unpacking keeps the last
      }
    }
  }
};

// Names of the folders directly in `root`, in byte order. (The tree has "a-b" before "a/x".)
std::vector<std::string> folders_in(const Tree& tree, const std::string& root) {
  const std::string inside = root + "/";
  std::set<std::string> names;
  for (auto at = tree.lower_bound(inside); at != tree.end() && at->first.starts_with(inside); ++at)
    names.insert(at->first.substr(inside.size(), at->first.find('/', inside.size()) - inside.size()));
  return {names.begin(), names.end()};
}

void add_images(const Tree& tree, const std::string& folder, int label, std::vector<ImageFolder::Item>& items) {
  const auto add = [&](const Tree::value_type& directory) {
    for (const auto& [name, place] : directory.second) {
      const std::string path = directory.first + "/" + name;
      require_input(!refused(name), "%s: image format not supported (JPEG, PNG, BMP)", path);
      if (decoded(name)) items.push_back({path, label, place.archive, place.offset, place.size});
    }
  };
  const auto here = tree.find(folder);
  if (here != tree.end()) add(*here);
  for (auto at = tree.lower_bound(folder + "/"); at != tree.end() && at->first.rfind(folder + "/", 0) == 0; ++at)
    add(*at);
}

// As timm sorts: runs of digits by value, letters in any case (ASCII), what is left over by its bytes.
bool natural_less(const std::string& a, const std::string& b) {
  const auto digit = [](const std::string& s, size_t i) { return i < s.size() && s[i] >= '0' && s[i] <= '9'; };
  const auto run = [&](const std::string& s, size_t& i, bool digits) {
    std::string text;
    for (; i < s.size() && digit(s, i) == digits; ++i)
      text += static_cast<char>(std::tolower(static_cast<unsigned char>(s[i])));
    return digits ? text.erase(0, text.find_first_not_of('0')) : text;
  };
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const std::string x = run(a, i, false), y = run(b, j, false);
    if (x != y) return x < y;
    if (!digit(a, i) || !digit(b, j)) break;  // one of them ends
    const std::string m = run(a, i, true), n = run(b, j, true);
    if (m != n) return m.size() != n.size() ? m.size() < n.size() : m < n;
  }
  return a < b;
}

// The classes of folders by their own names, and by which rule.
std::vector<int> classes_of_folders(ImageFolder& out, const ModelClasses& classes) {
  const std::vector<std::string>& names = out.classes;
  const auto each = [&](auto label_of) {
    std::vector<int> labels;
    for (const std::string& name : names) labels.push_back(label_of(name));
    return labels;
  };
  const auto missing = [](const std::vector<int>& labels) { return std::count(labels.begin(), labels.end(), -1); };
  const auto count = std::ssize(names);
  std::vector<int> labels = each(synset_label);
  out.labelled_by = "synset folder";
  if (classes.count == kImageNetClasses && missing(labels) == 0) return labels;
  labels = each([&](const std::string& name) { return classes.find(name); });
  out.labelled_by = "the model's labels";
  if (missing(labels) == 0) return labels;
  const size_t stranger = static_cast<size_t>(std::find(labels.begin(), labels.end(), -1) - labels.begin());
  require_input(missing(labels) == count,
                "%s: %d of %d class folders are named as classes of the model, but %s is not: rename it, or give the "
                "class of every folder (--labels)",
                out.root, count - missing(labels), count, quoted(names[stranger]));
  const bool own = !classes.names.empty() && classes.names[0].rfind("LABEL_", 0) != 0;  // those say nothing

  labels = each([](const std::string& name) {
    const bool digits = !name.empty() && name.size() < 10 && name.find_first_not_of("0123456789") == std::string::npos;
    return digits ? std::stoi(name) : -1;
  });
  const bool numbers = missing(labels) == 0;
  auto sorted = labels;
  std::sort(sorted.begin(), sorted.end());
  require_input(!numbers || std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
                "%s: two class folders have the same number", out.root);
  out.labelled_by = "folder number";
  if (numbers && sorted.back() < classes.count) return labels;
  require_input(count == classes.count,
                "%s: %d class folders, but the model has %d classes: unless the folders are named by synset ids of "
                "ImageNet-1k, by the model's own labels or by numbers below %d a label is the rank of the folder's "
                "name, and every class needs its folder; or give the class of every folder (--labels)",
                out.root, count, classes.count, classes.count);
  const bool natural = numbers || classes.natural_order;
  auto order = names;
  if (natural) std::sort(order.begin(), order.end(), natural_less);
  out.labelled_by = numbers ? "rank of the folder number" : natural ? "natural folder rank" : "folder rank";
  if (numbers || own || classes.count == kImageNetClasses)
    out.warning = format("%s: the class folders (%s to %s) are not named by %s: their rank is taken for the class",
                         out.root, order.front(), order.back(),
                         numbers ? "numbers below the number of classes"
                         : own   ? "the model's labels, such as " + quoted(classes.names[0])
                                 : std::string("synset ids of ImageNet-1k"));
  return each([&](const std::string& name) {
    return static_cast<int>(std::find(order.begin(), order.end(), name) - order.begin());
  });
}

// Kaggle's archive has ILSVRC/Data/CLS-LOC/val and LOC_val_solution.csv beside ILSVRC.
std::string kaggle_labels(const std::string& root) {
  fs::path at = fs::absolute(root);
  for (int up = 0; up < 5 && at.has_parent_path(); ++up, at = at.parent_path())
    if (fs::exists(at.parent_path() / "LOC_val_solution.csv"))
      return (at.parent_path() / "LOC_val_solution.csv").string();
  return "";
}

int synset_suffix(const std::string& path) {
  const std::string name = fs::path(path).stem().string();
  return synset_label(name.substr(name.rfind('_') + 1));
}

// Gives every item its label. Those in class folders have the place of their folder there.
void label_items(ImageFolder& out, const ModelClasses& classes, std::string file) {
  if (out.classes.empty() && file.empty() && synset_suffix(out.items[0].path) < 0) file = kaggle_labels(out.root);
  std::vector<int> of_folder;
  LabelFile table;
  if (!file.empty()) {
    table = read_labels(file, classes);
    out.labelled_by = format("%s (%s)", file, table.form);
    for (const std::string& name : out.classes) of_folder.push_back(table.find(name));
    const bool none = std::all_of(of_folder.begin(), of_folder.end(), [](int label) { return label < 0; });
    for (size_t i = 0; i < of_folder.size() && !none; ++i)
      require_input(of_folder[i] >= 0, "%s: no class for the folder %s, but for others", file,
                    bcq::quoted(out.classes[i]));
    if (none) of_folder.clear();  // it names images
  } else if (!out.classes.empty()) {
    of_folder = classes_of_folders(out, classes);
  } else {
    out.labelled_by = "synset suffix";
  }
  for (auto& item : out.items) {
    item.label = !of_folder.empty() ? of_folder[at(item.label)]
                 : file.empty()     ? synset_suffix(item.path)
                                    : table.find(item.path);
    require_input(item.label >= 0,
                  "%s: no label for this image: it needs a class folder, a synset id at the end of its name, or a line "
                  "in a label file (--labels)",
                  item.path);
    require_input(item.label < classes.count, "%s: label %d, but the model has %d classes", item.path, item.label,
                  classes.count);
  }
}

// Fills the tree with what lies below a folder or in an archive, and returns the folder in it that holds the classes
// or the images.
std::string gather(const std::string& root, const Indexer& index) {
  std::error_code failure;
  const auto place = [](const std::string& path) { return Place{std::make_shared<std::string>(path), 0, kToEnd}; };
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

ImageFolder list_images(const std::string& root, const ModelClasses& classes, const std::string& labels,
                        const std::string& cache, const Progress& progress) {
  ImageFolder out;
  out.root = root;
  out.cache = cache;
  Tree tree;
  const std::string base = gather(root, {cache, progress, tree});
  out.classes = folders_in(tree, base);
  if (out.classes.empty()) add_images(tree, base, 0, out.items);
  for (size_t rank = 0; rank < out.classes.size(); ++rank) {
    const std::string folder = base + "/" + out.classes[rank];
    const size_t before = out.items.size();
    add_images(tree, folder, static_cast<int>(rank), out.items);
    require_input(out.items.size() > before, "%s: no images (JPEG, PNG, BMP) in this class folder", folder);
  }
  require_input(!out.items.empty(), "%s: no class folders and no images in it (expected <class>/<image>, or images)",
                root);
  if (classes.count > 0) label_items(out, classes, labels);
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

// The image resized and cropped, decoded or from the cache.
static Image crop_of(const ImageFolder::Item& item, const ImageConfig& config, const std::string& cache) {
  const auto decode = [&] { return resize_and_crop(decode_image(read_item(item), item.path), config); };
  if (cache.empty()) return decode();
  json settings = to_json(config);
  for (const char* later : {"rescale_factor", "mean", "std"}) settings.erase(later);  // come after the pixels
  // A change of what decode() makes of an image has to change the number in front.
  const std::string key =
      format("crop 2, %s\n%s\n%d+%d\n%s", jpeg_decoder(), file_stamp(item.archive ? *item.archive : item.path),
             item.offset, item.size, dump(settings));
  const auto make = [&] {
    const Image crop = decode();
    return std::string(crop.rgb.begin(), crop.rgb.end());
  };
  const auto size = static_cast<size_t>(3 * config.height * config.width);
  const std::string rgb = cached(cache, key, make, [&](const std::string& value) { return value.size() == size; });
  return {static_cast<int>(config.height), static_cast<int>(config.width), {rgb.begin(), rgb.end()}};
}

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
    const auto& item = folder.items[at(indices[static_cast<size_t>(b)])];
    try {
      const Tensor one = normalise(crop_of(item, config, folder.cache), config);
      std::copy_n(one.data, one.size(), out.data + b * one.size());
    } catch (const InputError& e) {
      if (!unreadable) throw;
      failures[at(b)] = e.what();
    }
  });
  for (int64_t b = 0; unreadable && b < count; ++b)
    if (!failures[at(b)].empty()) (*unreadable)[b] = failures[at(b)];
  return out;
}

}  // namespace bcq
