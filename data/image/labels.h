// Which class an image belongs to: ImageNet's synset ids, a model's own labels, and files that say it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace bcq {

constexpr int kImageNetClasses = 1000;

// Rank of a synset id ("n01440764" -> 0) among the 1000 of ImageNet-1k, which is the class the models
// number it; -1 for anything else.
int synset_label(const std::string& id);
// What the class is called, by WordNet's first word for its synset: 0 -> "tench". Error: not below 1000.
std::string imagenet_name(int label);

// Classes by name; a name may turn out to stand for several.
class ClassTable {
 public:
  void add(const std::string& name, int label);
  // The class; -1: no such name. InputError, naming `where`: several classes have it.
  int find(const std::string& name, const std::string& where) const;

 private:
  std::map<std::string, int> table_;
};

// What a model tells apart.
class ModelClasses {
 public:
  // count: 0 when labels are not needed. names: the model's own labels by class, empty when it has none.
  // natural_order: where nothing says more, class folders are in the order timm gives them ("a2" before "A10"), not in
  // that of their bytes.
  ModelClasses(int64_t count = 0, std::vector<std::string> names = {}, bool natural_order = false);  // NOLINT

  // The class the model itself calls so, in its own spelling or else in any case, with blanks around it or with
  // underscores for blanks; -1: none. InputError: several.
  int find(const std::string& name) const;
  // The same of a class in a file: a number, a synset id of ImageNet-1k (its rank comes first where there are 1000
  // classes), one of the model's labels.
  int parse(const std::string& text) const;

  int64_t count;
  std::vector<std::string> names;
  bool natural_order;

 private:
  ClassTable exact_, folded_;
};

// Classes by file name, or by the name of a class folder, from what people have: lines "name class", Caffe's val.txt,
// separated by blanks, tabs, commas or semicolons, with a header or not; Kaggle's LOC_val_solution.csv; valprep.sh; a
// JSON object of names and classes, or of class numbers and the names they have. Classes are as parse() has them.
// Without names, in the order of ILSVRC2012_val_00000001 and so on: one class a line or a JSON list, or the devkit's
// ILSVRC2012_validation_ground_truth.txt, whose ids are in an order of their own.
struct LabelFile {
  std::string form;  // which of these it is, for records
  ClassTable by_file, by_stem;

  // The class of "folder/a.JPEG": of "a.JPEG", or else of "a" with any extension or none; -1: not in the file.
  int find(const std::string& path) const;
};
// InputError naming file and line.
LabelFile read_labels(const std::string& path, const ModelClasses& classes);

}  // namespace bcq
