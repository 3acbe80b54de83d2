// Folders that are there whole or not at all.
#pragma once
#include <filesystem>

namespace bcq {

// A folder that is filled under another name and then takes the place of `final_path`, or vanishes.
class NewFolder {
 public:
  explicit NewFolder(const std::filesystem::path& final_path);
  NewFolder(const NewFolder&) = delete;
  ~NewFolder();
  const std::filesystem::path& path() const { return path_; }

  // What was there is replaced in one step where the file system can exchange two folders. A folder that something is
  // mounted on stays, and gets the files.
  void commit();

 private:
  int rename_twice(bool replaces);
  void fill();

  std::filesystem::path final_, path_;
};

}  // namespace bcq
