#include "engine/file/new_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/core/check.h"
#include "engine/file/file.h"

namespace bcq {

namespace fs = std::filesystem;

namespace {

void sync(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool ok = fd >= 0 && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  require(ok, "%s: cannot be written: %s", path, std::strerror(error));
}

}  // namespace

NewFolder::NewFolder(const fs::path& final_path) : final_(final_path) {
  int error = EEXIST;
  for (int tries = 0; tries < 100 && error == EEXIST; ++tries) {
    path_ = temporary_name(final_.string());
    error = ::mkdir(path_.c_str(), 0777) == 0 ? 0 : errno;
  }
  require(error == 0, "%s: cannot be created: %s", path_, std::strerror(error));
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void NewFolder::commit() {
  sync(path_);  // its files are there
  int error = ENOENT;
  // Another process may put a folder there, or take it away, between the look and the renaming.
  for (int tries = 0; tries < 100 && (error == ENOENT || error == EEXIST || error == ENOTEMPTY); ++tries) {
    const bool replaces = fs::exists(final_);
    const unsigned flag = replaces ? RENAME_EXCHANGE : 0;
    error = ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, final_.c_str(), flag) == 0 ? 0 : errno;
    if (error == EBUSY || error == EXDEV) return fill();
    if (error == ENOSYS || error == EINVAL) error = rename_twice(replaces);
  }
  require(error == 0, "%s: cannot be written: %s", final_, std::strerror(error));
  sync(final_.parent_path());
}

int NewFolder::rename_twice(bool replaces) {
  const std::string old = temporary_name(final_.string());
  if (replaces && ::rename(final_.c_str(), old.c_str()) != 0) return errno;
  const int error = ::rename(path_.c_str(), final_.c_str()) == 0 ? 0 : errno;
  if (replaces && error != 0 && ::rename(old.c_str(), final_.c_str()) != 0 && (errno == ENOTEMPTY || errno == EEXIST)) {
    std::error_code ignored;
    fs::remove_all(old, ignored);  // another process's folder has taken its place
  }
  if (replaces && error == 0) path_ = old;  // vanishes
  return error;
}

void NewFolder::fill() {
  for (const auto& entry : fs::directory_iterator(final_)) fs::remove_all(entry.path());
  for (const auto& entry : fs::directory_iterator(path_)) {
    fs::copy_file(entry.path(), final_ / entry.path().filename());
    sync(final_ / entry.path().filename());
  }
  sync(final_);
}

}  // namespace bcq
