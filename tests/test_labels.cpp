// Which class an image is: by folders, names, label files and class maps.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

#include "data/image/image_folder.h"
#include "engine/core/check.h"
#include "tests/image_folders.h"
#include "tests/support.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;
using namespace test;

TEST_CASE("image_folder: images in one folder take their labels from their names or from a file") {
  const test::Folder root;
  put(root, "val/ILSVRC2012_val_00000002_n15075141.JPEG");
  put(root, "val/ILSVRC2012_val_00000001_n01440764.JPEG");
  const ImageFolder named = list_images(root.file("val"), 1000);
  CHECK(named.labelled_by == "synset suffix");
  CHECK(named.items[0].label == 0);
  CHECK(named.items[1].label == 999);
  CHECK(list_images(root.file("val")).labelled_by.empty());  // for calibration no label is needed

  put(root, "flat/ILSVRC2012_val_00000001.JPEG");
  put(root, "flat/ILSVRC2012_val_00000002.JPEG");
  const auto labels_of = [&](const std::string& file) {
    const ImageFolder folder = list_images(root.file("flat"), 1000, root.file(file));
    return std::vector<int>{folder.items[0].label, folder.items[1].label};
  };
  const auto refused = [&](const std::string& file) { return test::message_of<InputError>([&] { labels_of(file); }); };
  const auto bare = [&] { list_images(root.file("flat"), 1000); };
  CHECK(test::contains(test::message_of<InputError>(bare), "--labels"));
  test::write_text(root.file("val.txt"), "ILSVRC2012_val_00000001.JPEG 7\nILSVRC2012_val_00000002.JPEG n02119789\n");
  CHECK(labels_of("val.txt") == std::vector<int>{7, 278});
  test::write_text(root.file("val.json"),
                   R"({"ILSVRC2012_val_00000001.JPEG": "n02119789", "ILSVRC2012_val_00000002": 3})");
  CHECK(labels_of("val.json") == std::vector<int>{278, 3});
  test::write_text(root.file("short.txt"), "ILSVRC2012_val_00000001.JPEG 7\n");
  CHECK(test::contains(refused("short.txt"), "00000002"));
  test::write_text(root.file("wrong.txt"), "ILSVRC2012_val_00000001.JPEG fox\n");
  CHECK(test::contains(refused("wrong.txt"), "line 1"));
  test::write_text(root.file("big.txt"), "ILSVRC2012_val_00000001 7\nILSVRC2012_val_00000002 1000\n");
  CHECK(test::contains(refused("big.txt"), "label 1000"));

  // The devkit's numbers are in an order of their own.
  test::write_text(root.file("truth.txt"), "1\n2\n");
  CHECK(test::contains(refused("truth.txt"), "ground_truth"));
  test::write_text(root.file("ILSVRC2012_validation_ground_truth.txt"), "1\n2\n");
  CHECK(labels_of("ILSVRC2012_validation_ground_truth.txt") == std::vector<int>{278, 212});

  // Kaggle's archive, found by itself.
  const std::string csv =
      "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8\n"
      "ILSVRC2012_val_00000001,n15075141 1 2 3 4\n";
  test::write_text(root.file("LOC_val_solution.csv"), csv);
  put(root, "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG");
  const ImageFolder kaggle = list_images(root.file("ILSVRC/Data/CLS-LOC/val"), 1000);
  CHECK(kaggle.items[0].label == 999);
  CHECK(test::contains(kaggle.labelled_by, "LOC_val_solution.csv"));
}

TEST_CASE("labels: every form people have their labels in") {
  const test::Folder root;
  const std::vector<int> want{3, 0, 5, 2, 2, 1};  // of ILSVRC2012_val_00000001 to 6
  const std::vector<std::string> synsets{"n01491361", "n01440764", "n01496331", "n01484850", "n01484850", "n01443537"};
  std::map<std::string, std::string> files;
  for (const char* name :
       {"caffe.txt", "crlf.txt", "bom.txt", "no_extension.txt", "tabs.tsv", "semicolon.csv", "header.csv",
        "classes.csv", "per_line.txt", "bom_per_line.txt", "kaggle.csv", "valprep.sh", "bare.txt"})
    files[name];
  files["bom.txt"] = files["bom_per_line.txt"] = "\xef\xbb\xbf";
  files["semicolon.csv"] = "filename;label\n";
  files["header.csv"] = "filename,label\n";
  files["classes.csv"] = "path,class_name\n";
  files["kaggle.csv"] = "ImageId,PredictionString\n";
  files["valprep.sh"] = "mkdir -p n01440764\t\n";
  files["map.json"] = files["lists.json"] = "{";
  files["list.json"] = files["list_of_lists.json"] = "[";
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string name = format("ILSVRC2012_val_%08d", i + 1), label = std::to_string(want[i]),
                      comma = i ? "," : "";
    files["caffe.txt"] += name + ".JPEG " + label + "\n";
    files["bom.txt"] += name + ".JPEG " + label + "\n";
    files["crlf.txt"] += name + ".JPEG " + label + "\r\n";
    files["no_extension.txt"] += name + " " + label + "\n\n";
    files["tabs.tsv"] += "val/" + name + ".JPEG\t" + label + "\n";
    files["semicolon.csv"] += name + ".JPEG;" + label + "\n";
    files["header.csv"] += "\"" + name + ".JPEG\"," + label + "\n";
    files["classes.csv"] += name + ".JPEG," + synsets[i] + "\n";
    files["kaggle.csv"] += name + "," + synsets[i] + " 1 2 3 4 n01440764 5 6 7 8\n";
    files["valprep.sh"] += "mv " + name + ".JPEG " + synsets[i] + "/\t\n";
    files["per_line.txt"] += synsets[i] + "\n";
    files["bom_per_line.txt"] += synsets[i] + "\r\n";
    files["bare.txt"] += label + "\n";
    files["map.json"] += comma + "\"" + name + ".JPEG\": " + label;
    files["lists.json"] += comma + "\"" + name + "\": [\"" + synsets[i] + "\"]";
    files["list.json"] += comma + label;
    files["list_of_lists.json"] += comma + "[" + label + "]";
  }
  for (const char* name : {"map.json", "lists.json"}) files[name] += "}";
  for (const char* name : {"list.json", "list_of_lists.json"}) files[name] += "]";
  for (const auto& [name, text] : files) {
    const std::string file = name;
    CAPTURE(file);
    test::write_text(root.file(name), text);
    const LabelFile labels = read_labels(root.file(name), 1000);
    for (size_t i = 0; i < want.size(); ++i)
      CHECK(labels.find("val/" + format("ILSVRC2012_val_%08d", i + 1) + ".JPEG") == want[i]);
    CHECK(labels.find("ILSVRC2012_val_00000007.JPEG") == -1);
  }
}

TEST_CASE("labels: the devkit's ids are those of ILSVRC 2012, with nothing but its own files beside") {
  const test::Folder root;
  // The first images of the validation set; their classes as Caffe's val.txt has them.
  test::write_text(root.file("any.txt"), "490\n361\n171\n822\n297\n482\n13\n704\n599\n164\n649\n11\n73\n286\n554\n");
  test::write_text(root.file("meta.mat"), "");
  const LabelFile labels = read_labels(root.file("any.txt"), 1000);
  CHECK(labels.form == "the devkit's ids");
  const int want[] = {65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109, 286, 370, 757, 595};
  for (int i = 0; i < 15; ++i) CHECK(labels.find(format("ILSVRC2012_val_%08d", i + 1)) == want[i]);
  // Every class has one id.
  std::string all;
  for (int id = 1; id <= 1000; ++id) all += std::to_string(id) + "\n";
  test::write_text(root.file("ground_truth.txt"), all);
  const LabelFile each = read_labels(root.file("ground_truth.txt"), 1000);
  std::vector<int> seen;
  for (int id = 1; id <= 1000; ++id) seen.push_back(each.find(format("ILSVRC2012_val_%08d.JPEG", id)));
  std::sort(seen.begin(), seen.end());
  for (int label = 0; label < 1000; ++label) CHECK(seen[static_cast<size_t>(label)] == label);
}

TEST_CASE("labels: what a label file cannot mean is refused by line") {
  const test::Folder root;
  const auto refused = [&](const std::string& name, const std::string& text) {
    test::write_text(root.file(name), text);
    return test::message_of<InputError>([&] { read_labels(root.file(name), 1000); });
  };
  CHECK(test::contains(refused("a.txt", ""), "no labels"));
  CHECK(test::contains(refused("a.txt", "a.jpg 1\n\nb.jpg fox\n"), "line 3"));
  CHECK(test::contains(refused("a.txt", "a.jpg 1\nb.jpg\n"), "line 2"));
  CHECK(test::contains(refused("a.txt", "n02119789 1 kit_fox\n"), "kit_fox"));  // ids, not classes
  CHECK(test::contains(refused("a.txt", std::string("\xff\xfe"
                                                    "a\0.\0 \0",
                                                    8)),
                       "UTF-8"));
  CHECK(test::contains(refused("ground_truth.txt", "1\n1001\n"), "line 2"));
  CHECK(test::contains(refused("a.txt", "66\n971\n231\n"), "none is 0"));  // classes from 1
  CHECK(test::contains(refused("a.json", "[[1, 2], [3]]"), "one class for each"));
  CHECK(test::contains(refused("a.json", "[]"), "neither"));
  CHECK(test::contains(refused("a.json", R"({"a.jpg": "fox"})"), "fox"));
  test::write_text(root.file("twice.txt"), "x/1.jpg 3\ny/1.jpg 4\nz/2.jpg 5\nw/2.jpg 5\n\xe9.jpg 6\n");
  const LabelFile twice = read_labels(root.file("twice.txt"), 1000);
  CHECK(twice.find("2.png") == 5);
  CHECK(twice.find("\xe9.jpg") == 6);  // bytes that are no UTF-8
  CHECK(test::contains(test::message_of<InputError>([&] { twice.find("1.jpg"); }), "several"));
}

TEST_CASE("image_folder: folders named as the model's labels are those classes") {
  std::string rule, warning;
  const ModelClasses clothes(3, {"trouser", "bag", "coat"});
  CHECK(labels_of({"bag", "coat", "trouser"}, clothes, &rule, &warning) == std::vector<int>{1, 2, 0});
  CHECK(rule == "the model's labels");
  CHECK(warning.empty());
  CHECK(labels_of({"coat"}, clothes, &rule) == std::vector<int>{2});  // a part of the classes
  CHECK(labels_of({" Coat", "BAG"}, clothes, &rule) == std::vector<int>{2, 1});
  const ModelClasses fish(3, {"goldfish, Carassius auratus", "tench, Tinca tinca", "kit fox"});
  CHECK(labels_of({"Goldfish, carassius auratus", "kit_fox", "tench, Tinca tinca"}, fish, &rule) ==
        std::vector<int>{0, 2, 1});
  CHECK(labels_of({"A", "a"}, {2, {"a", "A"}}, &rule) == std::vector<int>{1, 0});  // own spelling first
  CHECK(labels_of({"1", "2"}, {2, {"2", "1"}}, &rule) == std::vector<int>{1, 0});  // before numbers
  CHECK(labels_of({"n01440764", "n01443537"}, {2, {"n01443537", "n01440764"}}, &rule) == std::vector<int>{1, 0});
  CHECK(test::contains(refusal_of({"bag", "coat", "hat"}, clothes), "2 of 3 class folders"));
  CHECK(test::contains(refusal_of({"bag", "coat", "hat"}, clothes), "\"hat\""));
  CHECK(test::contains(refusal_of({"crane"}, {3, {"crane", "Crane ", "crane"}}), "several"));
  CHECK(labels_of({"x", "y", "z"}, clothes, &rule, &warning) == std::vector<int>{0, 1, 2});
  CHECK(rule == "folder rank");
  CHECK(test::contains(warning, "\"trouser\""));
  labels_of({"x", "y"}, {2, {"LABEL_0", "LABEL_1"}}, &rule, &warning);  // what transformers writes where there are none
  CHECK(warning.empty());
}

TEST_CASE("image_folder: folders named by numbers are those classes") {
  std::string rule, warning;
  std::vector<std::string> names;
  for (int i = 0; i < 12; ++i) names.push_back(std::to_string(i));
  const std::vector<int> by_bytes{0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9};
  CHECK(labels_of(names, 12, &rule, &warning) == by_bytes);
  CHECK(rule == "folder number");
  CHECK(warning.empty());
  CHECK(labels_of({"7", "999"}, 1000, &rule) == std::vector<int>{7, 999});  // a part of ImageNet-V2
  CHECK(labels_of({"00", "01"}, 2, &rule) == std::vector<int>{0, 1});
  CHECK(labels_of({"1", "10", "2"}, 3, &rule, &warning) == std::vector<int>{0, 2, 1});
  CHECK(rule == "rank of the folder number");
  CHECK(test::contains(warning, "1 to 10"));
  CHECK(test::contains(refusal_of({"1", "1000"}, 1000), "--labels"));
  CHECK(test::contains(refusal_of({"01", "1"}, 2), "same number"));
}

TEST_CASE("image_folder: other names are ranked by timm's order for its models, by bytes for others") {
  std::string rule, warning;
  CHECK(labels_of({"Zebra", "a10", "a2", "b"}, 4, &rule, &warning) == std::vector<int>{0, 1, 2, 3});
  CHECK(rule == "folder rank");
  CHECK(warning.empty());
  CHECK(labels_of({"Zebra", "a10", "a2", "b"}, {4, {}, true}, &rule) == std::vector<int>{3, 1, 0, 2});
  CHECK(rule == "natural folder rank");
  CHECK(labels_of({"x1", "x01", "x1a", "x"}, {4, {}, true}, &rule) == std::vector<int>{0, 1, 2, 3});  // x x01 x1 x1a
  CHECK(labels_of({"9b", "10a", "cat", "1_2", "1_10"}, {5, {}, true}, &rule) == std::vector<int>{3, 1, 0, 2, 4});
  std::vector<std::string> names;
  for (int i = 0; i < 1000; ++i) names.push_back("c" + std::to_string(i));
  labels_of(names, 1000, &rule, &warning);
  CHECK(test::contains(warning, "synset ids"));
}

TEST_CASE("image_folder: a class map says it for folders") {
  std::string rule;
  const std::string map = R"({"cat": 1, "dog.v2": 0, "dog.v1": 2})";
  CHECK(labels_of({"cat", "dog.v1", "dog.v2"}, 3, &rule, nullptr, map) == std::vector<int>{1, 2, 0});
  CHECK(test::contains(rule, "map.json"));
  // Keras' class index and transformers' id2label, from class to name.
  const std::string index = R"({"0": ["n01443537", "goldfish"], "1": ["n01440764", "tench"]})";
  CHECK(labels_of({"n01440764", "n01443537"}, 1000, &rule, nullptr, index) == std::vector<int>{1, 0});
  CHECK(labels_of({"goldfish", "tench"}, 2, &rule, nullptr, index) == std::vector<int>{0, 1});
  CHECK(labels_of({"a", "b"}, 2, &rule, nullptr, R"({"0": "b", "1": "a"})") == std::vector<int>{1, 0});
  CHECK(labels_of({"x", "y"}, {2, {"fox", "hen"}}, &rule, nullptr, R"({"x": "hen", "y": "fox"})") ==
        std::vector<int>{1, 0});
  const auto refused = [&](const std::string& text) {
    return test::message_of<InputError>([&] { labels_of({"a", "b"}, 2, nullptr, nullptr, text); });
  };
  CHECK(test::contains(refused(R"({"a": 0})"), "\"b\""));
  CHECK(test::contains(refused(R"({"a": 0, "b": 2})"), "label 2"));
  // One that names the images instead.
  CHECK(labels_of({"all"}, 3, &rule, nullptr, R"({"a.png": 2})") == std::vector<int>{2});
}

}  // namespace
}  // namespace bcq
