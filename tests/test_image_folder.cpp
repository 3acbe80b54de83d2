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
#include "tests/image_folders.h"
#include "tests/support.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;
using namespace test;

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

TEST_CASE("image_folder: classes of an archive without entries for folders are in byte order, too") {
  const test::Folder root;
  for (const char* name : {"in/a-b/1.png", "in/a/x/1.png", "in/a0/1.png"}) put(root, name);
  shell("cd " + root.file("in") + " && tar -cf ../in.tar a-b/1.png a/x/1.png a0/1.png");
  const ImageFolder folder = list_images(root.file("in"));
  CHECK(folder.classes == std::vector<std::string>{"a", "a-b", "a0"});
  check_same(folder, folder.root, list_images(root.file("in.tar")), root.file("in.tar"));
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
