// Listing class folders in torchvision's order, drawing calibration images, loading batches.
#include <doctest/doctest.h>

#include <filesystem>

#include "data/image.h"
#include "data/image_folder.h"
#include "data/random.h"
#include "engine/check.h"
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
  CHECK(test::contains(refusal(root.path), "no class folders"));
  put(root, "cat/1.png");
  fs::create_directories(root.file("dog"));
  CHECK(test::contains(refusal(root.path), "dog: no JPEG or PNG"));
  put(root, "dog/1.webp");
  CHECK(test::contains(refusal(root.path), "1.webp"));
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
}

}  // namespace
}  // namespace bcq
