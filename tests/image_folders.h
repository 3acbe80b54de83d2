// Folders of images to list.
#pragma once
#include <filesystem>

#include "data/image/image_folder.h"
#include "engine/core/check.h"
#include "tests/support.h"

namespace bcq::test {

const std::string kPng = "tests/fixtures/image/rgb.png";

inline void put(const Folder& root, const std::string& name) {
  std::filesystem::create_directories(std::filesystem::path(root.file(name)).parent_path());
  std::filesystem::copy_file(kPng, root.file(name));
}

inline std::string refusal(const std::string& root) {
  return message_of<InputError>([&] { list_images(root); });
}

// Labels of class folders with these names, in byte order of the names.
inline std::vector<int> labels_of(const std::vector<std::string>& folders, const ModelClasses& classes,
                                  std::string* rule, std::string* warning = nullptr, const std::string& map = "") {
  const Folder root;
  for (const std::string& name : folders) put(root, "data/" + name + "/a.png");
  if (!map.empty()) write_text(root.file("map.json"), map);
  const ImageFolder folder = list_images(root.file("data"), classes, map.empty() ? "" : root.file("map.json"));
  std::vector<int> labels;
  for (const auto& item : folder.items) labels.push_back(item.label);
  if (rule) *rule = folder.labelled_by;
  if (warning) *warning = folder.warning;
  return labels;
}
inline std::string refusal_of(const std::vector<std::string>& folders, const ModelClasses& classes) {
  return message_of<InputError>([&] { labels_of(folders, classes, nullptr); });
}

}  // namespace bcq::test
