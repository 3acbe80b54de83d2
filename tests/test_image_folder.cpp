// Listing class folders in torchvision's order, drawing calibration images, loading batches.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "data/image/cache.h"
#include "data/image/image.h"
#include "data/image/image_folder.h"
#include "data/random.h"
#include "engine/core/check.h"
#include "tests/support.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;
const std::string kPng = "tests/fixtures/image/rgb.png";

void put(const test::Folder& root, const std::string& name) {
  fs::create_directories(fs::path(root.file(name)).parent_path());
  fs::copy_file(kPng, root.file(name));
}

std::string refusal(const std::string& root) {
  return test::message_of<InputError>([&] { list_images(root); });
}

TEST_CASE("image_folder: classes by name, then folders by path, then files by string order") {
  const test::Folder root;
  for (const char* name : {"n2/x_2.JPEG", "n2/x_10026.JPEG", "n10/b.png", "n10/sub/a.jpg", "n10/a.Jpeg", "Z/1.png",
                           "n10/notes.txt", "n10/sub.d/0.PNG", "readme.png"}) {
    put(root, name);
  }
  const ImageFolder folder = list_images(root.path);
  CHECK(folder.root == root.path);
  CHECK(folder.classes == std::vector<std::string>{"Z", "n10", "n2"});
  std::vector<std::string> names;
  std::vector<int> labels;
  for (const auto& item : folder.items) {
    names.push_back(item.path.substr(root.path.size() + 1));
    labels.push_back(item.label);
  }
  CHECK(names == std::vector<std::string>{"Z/1.png", "n10/a.Jpeg", "n10/b.png", "n10/sub/a.jpg", "n10/sub.d/0.PNG",
                                          "n2/x_10026.JPEG", "n2/x_2.JPEG"});
  CHECK(labels == std::vector<int>{0, 1, 1, 1, 1, 2, 2});
}

TEST_CASE("image_folder: what is missing is named") {
  const test::Folder root;
  CHECK(test::contains(refusal(root.file("nowhere")), "nowhere"));
  CHECK(test::contains(refusal(root.path), "no class folders and no images"));
  put(root, "cat/1.png");
  fs::create_directories(root.file("dog"));
  CHECK(test::contains(refusal(root.path), "dog: no images"));
  put(root, "dog/1.webp");
  CHECK(test::contains(refusal(root.path), "1.webp"));
}

TEST_CASE("image_folder: synset folders keep ImageNet's classes in a subset, other names are ranked") {
  const test::Folder root;
  for (const char* name : {"n15075141/a.png", "n01440764/b.png", "n02119789/c.png"}) put(root, name);
  const ImageFolder folder = list_images(root.path, 1000);
  REQUIRE(folder.items.size() == 3);
  CHECK(folder.labelled_by == "synset folder");
  CHECK(folder.items[0].label == 0);
  CHECK(folder.items[1].label == 278);  // kit fox
  CHECK(folder.items[2].label == 999);
  const ImageFolder ranked = list_images(root.path, 3);  // a model of these three classes
  CHECK(ranked.labelled_by == "folder rank");
  CHECK(ranked.items[2].label == 2);
  put(root, "n00000000/d.png");  // not one of the 1000: every class would need its folder
  CHECK(test::contains(test::message_of<InputError>([&] { list_images(root.path, 1000); }), "4 class folders"));
}

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

// Labels of class folders with these names, in byte order of the names.
std::vector<int> labels_of(const std::vector<std::string>& folders, const ModelClasses& classes, std::string* rule,
                           std::string* warning = nullptr, const std::string& map = "") {
  const test::Folder root;
  for (const std::string& name : folders) put(root, "data/" + name + "/a.png");
  if (!map.empty()) test::write_text(root.file("map.json"), map);
  const ImageFolder folder = list_images(root.file("data"), classes, map.empty() ? "" : root.file("map.json"));
  std::vector<int> labels;
  for (const auto& item : folder.items) labels.push_back(item.label);
  if (rule) *rule = folder.labelled_by;
  if (warning) *warning = folder.warning;
  return labels;
}
std::string refusal_of(const std::vector<std::string>& folders, const ModelClasses& classes) {
  return test::message_of<InputError>([&] { labels_of(folders, classes, nullptr); });
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

void shell(const std::string& command) {
  CAPTURE(command);
  REQUIRE(std::system(command.c_str()) == 0);
}

// Two listings name the same images with the same labels in the same order, and their bytes are equal. Paths are
// compared behind the root.
void check_same(const ImageFolder& a, const std::string& a_root, const ImageFolder& b, const std::string& b_root) {
  CHECK(a.classes == b.classes);
  CHECK(a.labelled_by == b.labelled_by);
  REQUIRE(a.items.size() == b.items.size());
  for (size_t i = 0; i < a.items.size(); ++i) {
    CHECK(a.items[i].path.substr(a_root.size()) == b.items[i].path.substr(b_root.size()));
    CHECK(a.items[i].label == b.items[i].label);
    CHECK(read_item(a.items[i]) == read_item(b.items[i]));
  }
}

TEST_CASE("image_folder: archives list as the folders they were made of") {
  const test::Folder root;
  for (const char* name : {"train/n02119789/n02119789_2.JPEG", "train/n02119789/n02119789_10026.JPEG",
                           "train/n01440764/n01440764_7.JPEG", "train/n15075141/n15075141_1.JPEG"})
    put(root, name);
  for (const char* name : {"val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000001.JPEG"}) put(root, name);
  fs::copy_file("tests/fixtures/image/tall.png", root.file("train/n01440764/n01440764_2.JPEG"));
  const ImageFolder train = list_images(root.file("train"), 1000);
  REQUIRE(train.items.size() == 5);
  // As published: an archive of one archive per class, in any order; and unpacked once.
  shell(
      "cd " + root.file("train") +
      " && mkdir ../tars && for c in n15075141 n02119789 n01440764; do (cd $c && tar -cf ../../tars/$c.tar *); done"
      " && cd ../tars && tar --format=ustar -cf ../ILSVRC2012_img_train.tar n15075141.tar n01440764.tar n02119789.tar");
  const std::string tar = root.file("ILSVRC2012_img_train.tar");
  check_same(train, train.root, list_images(tar, 1000), tar);
  check_same(train, train.root, list_images(root.file("tars"), 1000), root.file("tars"));
  CHECK(!list_images(tar).items[0].archive->empty());
  CHECK(calibration_indices(5, 3, 3) == calibration_indices(static_cast<int64_t>(list_images(tar).items.size()), 3, 3));
  // Left beside what was unpacked from it, an archive counts for nothing.
  shell("cp " + tar + " " + root.file("train") + " && cp " + root.file("tars/n01440764.tar") + " " +
        root.file("train"));
  check_same(train, train.root, list_images(root.file("train"), 1000), train.root);

  // Packed by hand: with the folders in it, and with one around them.
  shell("cd " + root.path + " && tar -cf by_hand.tar train/n* && tar -cf dot.tar -C train --exclude=*.tar .");
  check_same(train, train.root, list_images(root.file("by_hand.tar"), 1000), root.file("by_hand.tar/train"));
  check_same(train, train.root, list_images(root.file("dot.tar"), 1000), root.file("dot.tar"));

  // The flat validation archive, alone in its folder too.
  test::write_text(root.file("val.txt"), "ILSVRC2012_val_00000001 7\nILSVRC2012_val_00000002 n02119789\n");
  shell("cd " + root.path +
        " && mkdir alone && tar -cf alone/ILSVRC2012_img_val.tar -C val "
        "ILSVRC2012_val_00000002.JPEG ILSVRC2012_val_00000001.JPEG");
  const ImageFolder val = list_images(root.file("val"), 1000, root.file("val.txt"));
  const std::string archive = root.file("alone/ILSVRC2012_img_val.tar");
  check_same(val, val.root, list_images(archive, 1000, root.file("val.txt")), archive);
  check_same(val, val.root, list_images(root.file("alone"), 1000, root.file("val.txt")), archive);
  CHECK(val.items[0].label == 7);
  fs::copy_file(tar, root.file("alone/ILSVRC2012_img_train.tar"));
  CHECK(test::contains(refusal(root.file("alone")), "name the one to read"));

  // Pixels come from the archive's bytes.
  ImageConfig config;
  config.height = config.width = 16;
  CHECK(test::same_bits(load_pixels(train, {0, 4, 2}, config), load_pixels(list_images(tar), {0, 4, 2}, config)));
}

TEST_CASE("image_folder: what an archive lacks is named") {
  const test::Folder root;
  put(root, "in/n01440764/a.JPEG");
  shell("cd " + root.path + " && tar -cf n01440764.tar -C in/n01440764 a.JPEG && tar -cf outer.tar n01440764.tar");
  const std::string whole = test::read_text(root.file("outer.tar"));
  test::write_text(root.file("short.tar"), whole.substr(0, 1024));
  CHECK(test::contains(refusal(root.file("short.tar")), "truncated"));
  std::string damaged = whole;
  damaged[512] ^= 1;  // the header inside the inner archive
  test::write_text(root.file("damaged.tar"), damaged);
  CHECK(test::contains(refusal(root.file("damaged.tar")), "damaged.tar"));
  shell("cd " + root.path + " && mkdir links && ln -s nowhere links/b.JPEG && tar -cf links.tar -C links b.JPEG");
  CHECK(test::contains(refusal(root.file("links.tar")), "b.JPEG is a link"));
  shell("cd " + root.path + " && mkdir none && tar -cf none.tar none");
  CHECK(test::contains(refusal(root.file("none.tar")), "no images"));
  // An archive that shrinks after it was listed.
  const ImageFolder folder = list_images(root.file("outer.tar"));
  test::write_text(root.file("outer.tar"), whole.substr(0, 1200));
  CHECK(test::contains(test::message_of<InputError>([&] { load_pixels(folder, {0}, ImageConfig()); }), "outer.tar"));
}

// Every file below, with what tells whether it was written again.
std::map<std::string, fs::file_time_type> files_below(const std::string& folder) {
  std::map<std::string, fs::file_time_type> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[entry.path().string()] = entry.last_write_time();
  return files;
}

TEST_CASE("image_folder: decoded images and indices are kept in a cache and used while nothing has changed") {
  const test::Folder root;
  put(root, "in/n01440764/1.png");
  fs::copy_file("tests/fixtures/image/tall.png", root.file("in/n01440764/2.png"));
  fs::copy_file("tests/fixtures/image/baseline.jpg", root.file("in/n01440764/3.jpg"));
  shell("tar -cf " + root.file("in.tar") + " -C " + root.file("in") + " n01440764");
  ImageConfig config;
  config.height = config.width = 16;
  const std::vector<int64_t> all{2, 0, 1};
  for (const std::string name : {"in", "in.tar"}) {
    CAPTURE(name);
    const std::string cache = root.file("cache-" + name), source = root.file(name);
    const auto pixels = [&](const std::string& kept, const ImageConfig& c) {
      return load_pixels(list_images(source, 0, "", kept), all, c);
    };
    const Tensor plain = pixels("", config);
    CHECK(test::same_bits(pixels(cache, config), plain));
    const auto first = files_below(cache);
    CHECK(first.size() == 3 + (name == "in.tar"));
    CHECK(test::same_bits(pixels(cache, config), plain));
    CHECK(files_below(cache) == first);  // nothing was decoded: it would have been written again
    CHECK(test::same_on_two_threads([&] { return pixels(cache, config); }));
    ImageConfig other = config;
    other.mean[0] = 0.25f;  // what comes after the pixels does not matter to them
    CHECK(test::same_bits(pixels(cache, other), pixels("", other)));
    CHECK(files_below(cache) == first);
    other.crop_pct = 0.5;
    CHECK(test::same_bits(pixels(cache, other), pixels("", other)));
    CHECK(files_below(cache).size() == first.size() + 3);
    other.interpolation = "bilinear";
    CHECK(test::same_bits(pixels(cache, other), pixels("", other)));
    CHECK(files_below(cache).size() == first.size() + 6);
    other.resize = ImageConfig::Resize::Shortest;
    other.resize_to[0] = 16;
    other.crop = ImageConfig::Crop::Transformers;
    CHECK(test::same_bits(pixels(cache, other), pixels("", other)));
    CHECK(files_below(cache).size() == first.size() + 9);
  }
  // Another picture under the same name, size and time.
  const std::string cache = root.file("cache-in"), path = root.file("in/n01440764/1.png");
  const ImageFolder folder = list_images(root.file("in"), 0, "", cache);
  const Tensor before = load_pixels(folder, {0}, config);
  const auto time = fs::last_write_time(path);
  std::string bytes = test::read_text(path);
  bytes[bytes.size() / 2] ^= 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the clock of file systems ticks every 4 ms
  test::write_text(path, bytes);
  fs::last_write_time(path, time);
  CHECK(test::contains(test::message_of<InputError>([&] { load_pixels(folder, {0}, config); }), "checksum"));
  std::map<int64_t, std::string> unreadable;
  load_pixels(folder, {0}, config, &unreadable);
  CHECK(unreadable.size() == 1);  // and a failure is not kept
}

TEST_CASE("image_folder: hidden files and what systems leave behind count for nothing, in archives as well") {
  const test::Folder root;
  for (const char* name :
       {"in/cat/1.png", "in/dog/2.png", "in/cat/._1.png", "in/.ipynb_checkpoints/3.png", "in/__MACOSX/cat/._1.png",
        "in/cat/@eaDir/1.png", "in/dog/.thumbs/2.png", "in/.DS_Store.png"})
    put(root, name);
  fs::create_directories(root.file("in/lost+found"));
  put(root, "in/dog/..x/4.png");
  shell("tar -cf " + root.file("in.tar") + " -C " + root.file("in") + " .");
  for (const std::string name : {"in", "in.tar"}) {
    CAPTURE(name);
    const ImageFolder folder = list_images(root.file(name), 2);
    CHECK(folder.classes == std::vector<std::string>{"cat", "dog"});
    REQUIRE(folder.items.size() == 2);
    CHECK(folder.items[0].path == root.file(name + "/cat/1.png"));
    CHECK(folder.items[1].path == root.file(name + "/dog/2.png"));
  }
  // Below a hidden folder everything is as usual, and beside images in one folder, too.
  put(root, ".cache/val/1_n01440764.png");
  put(root, ".cache/val/._1_n01440764.png");
  fs::create_directories(root.file(".cache/val/lost+found"));
  CHECK(list_images(root.file(".cache/val"), 1000).items.size() == 1);
}

TEST_CASE("image_folder: names that are not UTF-8 are names like any other") {
  const test::Folder root;
  const std::string cafe = "caf\xe9";
  put(root, cafe + "/\xff\xfe.png");
  put(root, "tee/1.png");
  test::write_text(root.file("tee/kaputt\xe9.png"), "x");
  test::write_text(root.file(cafe + ".txt"), cafe + " 1\ntee 0\n");
  const ImageFolder folder = list_images(root.path, 2, root.file(cafe + ".txt"));
  REQUIRE(folder.items.size() == 3);
  CHECK(folder.items[0].label == 1);
  CHECK(test::contains(folder.labelled_by, cafe));
  std::map<int64_t, std::string> unreadable;
  load_pixels(folder, {0, 1, 2}, ImageConfig(), &unreadable);
  REQUIRE(unreadable.size() == 1);
  CHECK(test::contains(unreadable.at(2), "kaputt\xe9"));
  CHECK(test::contains(refusal_of({cafe, "b", "c"}, {3, {"b", "c", "d"}}), "caf"));
  CHECK(!list_images(root.path, {2, {"x", "y"}}).warning.empty());
}

TEST_CASE("image_folder: entries of a cache that strangers wrote are not believed") {
  const test::Folder root;
  put(root, "in/n01440764/1.png");
  shell("tar -cf " + root.file("in.tar") + " -C " + root.file("in") + " n01440764");
  ImageConfig config;
  config.height = config.width = 16;
  const auto pixels = [&](const std::string& cache) {
    return load_pixels(list_images(root.file("in.tar"), 0, "", cache), {0}, config);
  };
  const Tensor plain = pixels("");
  const std::string cache = root.file("cache");
  pixels(cache);
  const auto entries = files_below(cache);
  CHECK(entries.size() == 2);
  for (const std::string& value : {std::string(), std::string("short"), std::string("0 1 2"), std::string("0 x\0", 4),
                                   std::string(768, '\0'), std::string(769, 'x')}) {
    for (const auto& entry : entries) {
      const std::string whole = test::read_text(entry.first), head = whole.substr(0, whole.find('\0') + 1);
      const uint64_t sum = checksum(value, 0);
      test::write_text(entry.first, head + std::string(reinterpret_cast<const char*>(&sum), 8) + value);
    }
    if (value.size() == 768) continue;  // a crop it could be; as an index it is none
    CHECK(test::same_bits(pixels(cache), plain));
  }
}

TEST_CASE("image_folder: folders that link to themselves end in an error") {
  const test::Folder root;
  put(root, "cat/1.png");
  fs::create_directory_symlink(root.file("cat"), root.file("cat/again"));
  CHECK(!refusal(root.path).empty());
}

TEST_CASE("image_folder: the calibration draw is NumPy's") {
  CHECK(calibration_indices(1281167, 4, 3) == std::vector<int64_t>{1196785, 17592, 414871, 928526});
  CHECK(calibration_indices(10, 10, 3) == numpy_permutation(3, 10));
  CHECK(calibration_indices(10, 0, 3).empty());
  CHECK_THROWS_AS(calibration_indices(10, 11, 3), UsageError);
}

TEST_CASE("image_folder: a batch holds the chosen images in order, on any number of threads") {
  const test::Folder root;
  put(root, "a/1.png");
  fs::copy_file("tests/fixtures/image/tall.png", root.file("a/2.png"));
  fs::copy_file("tests/fixtures/image/baseline.jpg", root.file("a/3.jpg"));
  const ImageFolder folder = list_images(root.path);
  ImageConfig config;
  config.height = config.width = 32;
  const std::vector<int64_t> indices{2, 0, 1, 0};
  const Tensor batch = load_pixels(folder, indices, config);
  CHECK(batch.shape == Shape{4, 3, 32, 32});
  for (size_t b = 0; b < indices.size(); ++b) {
    const Tensor one = preprocess(load_image(folder.items[static_cast<size_t>(indices[b])].path), config);
    CHECK(test::same_bits(batch.slice(static_cast<int64_t>(b), static_cast<int64_t>(b) + 1).reshaped(one.shape), one));
  }
  CHECK(test::same_on_two_threads([&] { return load_pixels(folder, indices, config); }));
  CHECK_THROWS_AS(load_pixels(folder, {3}, config), Error);
}

TEST_CASE("image_folder: a damaged image in a batch is named") {
  const test::Folder root;
  put(root, "a/1.png");
  test::write_text(root.file("a/broken.png"), test::read_text(kPng).substr(0, 200));
  const ImageFolder folder = list_images(root.path);
  const std::string message = test::message_of<InputError>([&] { load_pixels(folder, {0, 1}, ImageConfig()); });
  CHECK(test::contains(message, "broken.png"));
  std::map<int64_t, std::string> unreadable;
  const Tensor batch = load_pixels(folder, {1, 0}, ImageConfig(), &unreadable);
  REQUIRE(unreadable.size() == 1);
  CHECK(test::contains(unreadable.at(0), "broken.png"));
  CHECK(test::same_bits(batch.slice(1, 2), load_pixels(folder, {0}, ImageConfig())));
}

}  // namespace
}  // namespace bcq
