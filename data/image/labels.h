// Which class an ImageNet image belongs to.
#pragma once
#include <map>
#include <string>

namespace bcq {

constexpr int kImageNetClasses = 1000;

// Rank of a synset id ("n01440764" -> 0) among the 1000 of ImageNet-1k, which is the class the models
// number it; -1 for anything else.
int synset_label(const std::string& id);

// Classes by file name from what people have: lines "name label" (Caffe's val.txt) where a label is a number or a
// synset id, a JSON object of the same, Kaggle's LOC_val_solution.csv, or the devkit's
// ILSVRC2012_validation_ground_truth.txt with its map_clsloc.txt beside it. Names stand without folder and
// without extension. InputError naming the file and line. The devkit's numbers alone are refused: they are not in
// the order of the synset ids.
std::map<std::string, int> read_labels(const std::string& path);

// A file's name as read_labels has it: "val/a.JPEG" -> "a".
std::string label_key(const std::string& path);

}  // namespace bcq
