#include "data/image/labels.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <iterator>
#include <sstream>
#include <string_view>
#include <utility>

#include "engine/core/check.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

struct ImageNetClass {
  std::string_view synset;
  int devkit;
  const char* name;
};
constexpr ImageNetClass kClasses[] = {
#include "data/image/imagenet_classes.inc"
};
static_assert(std::size(kClasses) == kImageNetClasses);

bool is_number(const std::string& text) {
  return !text.empty() && text.size() < 6 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::string trimmed(const std::string& text, const char* blanks = " \t\r\"") {
  const size_t first = text.find_first_not_of(blanks);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

// A label as another may be meant to equal it.
std::string folded(const std::string& label) {
  std::string text = trimmed(label);
  for (char& c : text) c = c == '_' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// A line of a label file: a name and a class; the name is empty when there is only one field.
struct Line {
  size_t number;
  std::string name, label;
};

std::vector<Line> read_lines(const std::string& path) {
  std::string text = read_file(path);
  if (text.rfind("\xef\xbb\xbf", 0) == 0) text.erase(0, 3);  // a byte-order mark
  require_input(text.find('\0') == std::string::npos, "%s: has zero bytes, as UTF-16 has: save it as UTF-8 text", path);
  std::vector<Line> lines;
  std::istringstream stream(text);
  size_t number = 0;
  for (std::string line; std::getline(stream, line);) {
    line = trimmed(line);
    ++number;
    if (line.empty() || line.rfind("mkdir ", 0) == 0) continue;  // valprep.sh makes the folders first
    if (line.rfind("mv ", 0) == 0) line = trimmed(line.substr(3), " \t\r/");
    size_t at = std::string::npos;
    for (const char separator : {'\t', ';', ','})
      if (at == std::string::npos) at = line.find(separator);
    if (at == std::string::npos) at = line.rfind(' ');
    if (at == std::string::npos)
      lines.push_back({number, "", line});
    else
      lines.push_back({number, trimmed(line.substr(0, at)), trimmed(line.substr(at + 1))});
  }
  require_input(!lines.empty(), "%s: no labels in it", path);
  return lines;
}

void add(LabelFile& file, const std::string& name, int label) {
  const std::filesystem::path base = std::filesystem::path(trimmed(name, "/")).filename();
  file.by_file.add(base.string(), label);
  file.by_stem.add(base.stem().string(), label);
}

// The class with that id in the devkit; -1: there is none.
int class_of_devkit(int id) {
  const auto* at =
      std::find_if(std::begin(kClasses), std::end(kClasses), [&](const auto& c) { return c.devkit == id; });
  return at == std::end(kClasses) ? -1 : static_cast<int>(at - kClasses);
}

// Classes of ILSVRC2012_val_00000001 and so on.
LabelFile read_ordered(const std::vector<Line>& lines, const std::string& path, const ModelClasses& classes) {
  const auto any = [&](auto holds) { return std::any_of(lines.begin(), lines.end(), holds); };
  const bool numbers = !any([](const Line& l) { return !is_number(l.label); });
  const bool devkit = numbers && !any([](const Line& l) { return std::stoi(l.label) == 0; });  // its ids begin with 1
  // Its list starts 490, 361 whatever the file is called.
  require_input(!devkit || std::filesystem::path(path).filename().string().find("ground_truth") != std::string::npos ||
                    (lines.size() > 1 && lines[0].label == "490" && lines[1].label == "361"),
                "%s: numbers alone, and none is 0: they may be the devkit's ids, which are in an order of their own "
                "(then call the file ILSVRC2012_validation_ground_truth.txt), or classes: put the names of the images "
                "in front of them",
                path);
  LabelFile file;
  file.form = devkit ? "the devkit's ids" : numbers ? "class numbers in image order" : "classes in image order";
  for (size_t i = 0; i < lines.size(); ++i) {
    int label = classes.parse(lines[i].label);
    if (devkit) label = class_of_devkit(label);
    require_input(label >= 0, "%s: line %d: %s is no class", path, lines[i].number, quoted(lines[i].label));
    add(file, format("ILSVRC2012_val_%08d", i + 1), label);
  }
  return file;
}

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

LabelFile read_json_labels(const std::string& path, const ModelClasses& classes) {
  const json all = read_json(path);
  require_input((all.is_object() || all.is_array()) && !all.empty(), "%s: neither names and classes nor a list", path);
  const auto single = [](const json& value) { return value.is_array() && value.size() == 1 ? value[0] : value; };
  if (all.is_array()) {
    std::vector<Line> lines;
    for (const json& value : all) {
      lines.push_back({lines.size() + 1, "", text_of(single(value))});
      require_input(!single(value).is_structured(), "%s: entry %d: one class for each image is needed", path,
                    lines.size());
    }
    return read_ordered(lines, path, classes);
  }
  LabelFile file;
  file.form = "names and classes";
  for (const auto& [key, value] : all.items()) {
    const int label = single(value).is_structured() ? -1 : classes.parse(text_of(single(value)));
    if (label >= 0) add(file, key, label);
    const bool names = is_number(key) && (value.is_string() || value.is_array());  // {"7": ["n01514668", "cock"]}
    for (const json& name : names&& value.is_array() ? value : names ? json{value} : json::array())
      if (name.is_string()) add(file, name.get<std::string>(), std::stoi(key));
    require_input(label >= 0 || names, "%s: %s of %s is no class", path, quoted(text_of(value)), quoted(key));
  }
  return file;
}

}  // namespace

int synset_label(const std::string& id) {
  const auto* at =
      std::lower_bound(std::begin(kClasses), std::end(kClasses), id,
                       [](const ImageNetClass& c, const std::string& synset) { return c.synset < synset; });
  return at != std::end(kClasses) && at->synset == id ? static_cast<int>(at - kClasses) : -1;
}

std::string imagenet_name(int label) {
  require(label >= 0 && label < kImageNetClasses, "%d is no class of ImageNet-1k", label);
  return kClasses[label].name;
}

void ClassTable::add(const std::string& name, int label) {
  const auto [at, fresh] = table_.emplace(name, label);
  if (!fresh && at->second != label) at->second = -2;
}

int ClassTable::find(const std::string& name, const std::string& where) const {
  const auto at = table_.find(name);
  if (at == table_.end()) return -1;
  require_input(at->second >= 0, "%s: %s stands for several classes", where, quoted(name));
  return at->second;
}

ModelClasses::ModelClasses(int64_t n, std::vector<std::string> labels, bool natural)
    : count(n), names(std::move(labels)), natural_order(natural) {
  for (size_t i = 0; i < names.size(); ++i) {
    exact_.add(names[i], static_cast<int>(i));
    folded_.add(folded(names[i]), static_cast<int>(i));
  }
}

int ModelClasses::find(const std::string& name) const {
  const int label = exact_.find(name, "the model's labels");
  return label >= 0 ? label : folded_.find(folded(name), "the model's labels");
}

int ModelClasses::parse(const std::string& text) const {
  if (is_number(text)) return std::stoi(text);
  const int synset = synset_label(text), own = find(text);
  return own < 0 || (synset >= 0 && count == kImageNetClasses) ? synset : own;
}

int LabelFile::find(const std::string& path) const {
  const std::filesystem::path name = std::filesystem::path(path).filename();
  const int label = by_file.find(name.string(), path);
  return label >= 0 ? label : by_stem.find(name.stem().string(), path);
}

LabelFile read_labels(const std::string& path, const ModelClasses& classes) {
  if (std::filesystem::path(path).extension() == ".json") return read_json_labels(path, classes);
  const std::vector<Line> lines = read_lines(path);
  if (std::all_of(lines.begin(), lines.end(), [](const Line& l) { return l.name.empty(); }))
    return read_ordered(lines, path, classes);
  LabelFile file;
  file.form = "names and classes";
  for (const Line& line : lines) {
    int label = classes.parse(line.label);
    // Kaggle's table has boxes behind the synset id, a CSV maybe more columns.
    if (label < 0) label = classes.parse(line.label.substr(0, line.label.find_first_of(" \t,;")));
    const bool header = &line == &lines[0] && (line.name + line.label).find_first_of("0123456789") == std::string::npos;
    if (label < 0 && header) continue;
    require_input(!line.name.empty(), "%s: line %d: needs a file name and a class", path, line.number);
    require_input(label >= 0,
                  "%s: line %d: %s is neither a class number, a synset id of ImageNet-1k nor a label of "
                  "the model",
                  path, line.number, quoted(line.label));
    add(file, line.name, label);
  }
  return file;
}

}  // namespace bcq
