#include "engine/file/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <random>
#include <utility>

#include "engine/core/check.h"

namespace bcq {
namespace fs = std::filesystem;
namespace {

struct Descriptor {
  int fd;
  explicit Descriptor(int opened) : fd(opened) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  int close() { return ::close(std::exchange(fd, -1)); }  // network file systems report a full disk here
};

bool same_file(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

// What `path` names after links, also when that is not there yet.
std::string resolved(std::string path) {
  std::error_code failure;
  for (int links = 0; links < 40; ++links) {
    const fs::path target = fs::read_symlink(path, failure);
    if (failure) break;
    path = target.is_absolute() ? target.string() : (fs::path(path).parent_path() / target).string();
  }
  return path;
}

std::string folder_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// A new file in the folder of `path`; fd -1 with errno when there can be none. Where the file system can do that it has
// no name (`name` empty), so that nothing is left of it when the process is killed.
int create_beside(const std::string& path, std::string& name) {
  name.clear();
  if (::access("/proc/self/fd", X_OK) == 0) {  // by which it gets its name
    const int fd = ::open(folder_of(path).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
    if (fd >= 0) return fd;
  }
  for (int tries = 0; tries < 100; ++tries) {
    name = temporary_name(path);
    const int fd = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EEXIST) return fd;
  }
  return -1;
}

// Gives a file that create_beside() made without a name one beside `path`. False with errno when that cannot be.
bool give_name(int fd, const std::string& path, std::string& name) {
  const std::string opened = format("/proc/self/fd/%d", fd);
  for (int tries = 0; tries < 100; ++tries) {
    const std::string chosen = temporary_name(path);
    if (::linkat(AT_FDCWD, opened.c_str(), AT_FDCWD, chosen.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      name = chosen;
      return true;
    }
    if (errno != EEXIST) return false;
  }
  return false;
}

// Errors of a folder that takes no new file, or of a file that cannot be replaced: mounted (EBUSY, EXDEV), or another's
// in a sticky folder.
bool is_forbidden(int error) {
  return error == EACCES || error == EPERM || error == EROFS || error == EBUSY || error == EXDEV ||
         error == ENAMETOOLONG;
}

using Pieces = std::vector<std::string_view>;

[[noreturn]] void fail(const std::string& path, int error) {
  throw Error(format("%s: cannot be written: %s", path, std::strerror(error)));
}

void write_to(int fd, const std::string& path, const Pieces& pieces) {
  for (std::string_view piece : pieces) {
    while (!piece.empty()) {
      const ssize_t n = ::write(fd, piece.data(), piece.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(path, errno);
      piece.remove_prefix(static_cast<size_t>(n));
    }
  }
}

// By way of a temporary file. False, with nothing done, when there is a file that only can be written in place.
bool replace(const std::string& path, const struct stat* found, const Pieces& pieces, bool lasting) {
  const std::string target = resolved(path);
  struct stat at_target = {};
  if (found && (::stat(target.c_str(), &at_target) != 0 || !same_file(*found, at_target))) return false;
  std::string name;
  Descriptor file(create_beside(target, name));
  if (file.fd < 0 && found && is_forbidden(errno)) return false;
  if (file.fd < 0) fail(path, errno);
  try {
    write_to(file.fd, path, pieces);
    if (found) (void)!::fchmod(file.fd, found->st_mode & 07777);
    if (lasting && ::fsync(file.fd) != 0) fail(path, errno);
    if (name.empty() && !give_name(file.fd, target, name)) fail(path, errno);
    if (file.close() != 0) fail(path, errno);
    if (::rename(name.c_str(), target.c_str()) == 0) return true;
    if (!found || !is_forbidden(errno)) fail(path, errno);
    ::unlink(name.c_str());
    return false;
  } catch (...) {
    if (!name.empty()) ::unlink(name.c_str());
    throw;
  }
}

void write_in_place(const std::string& path, const Pieces& pieces, bool lasting) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
  if (file.fd < 0) fail(path, errno);
  write_to(file.fd, path, pieces);
  if (lasting && ::fsync(file.fd) != 0 && errno != EINVAL) fail(path, errno);
  if (file.close() != 0) fail(path, errno);
}

}  // namespace

std::string temporary_name(const std::string& path) {
  static thread_local std::random_device random;
  return format("%s/.bcq-%08x%08x.tmp", folder_of(path), random(), random());
}

std::string read_file(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  require_input(file.fd >= 0, "%s: cannot be opened: %s", path, std::strerror(errno));
  struct stat status = {};
  require_input(::fstat(file.fd, &status) == 0 && !S_ISDIR(status.st_mode), "%s: is a directory, not a file", path);
  std::string text;
  // The size is only a first guess: a pipe has none, a growing file more.
  text.resize(status.st_size > 0 ? static_cast<size_t>(status.st_size) + 1 : 4096);
  size_t used = 0;
  for (;;) {
    if (used == text.size()) text.resize(2 * used);
    const ssize_t n = ::read(file.fd, text.data() + used, text.size() - used);
    if (n < 0 && errno == EINTR) continue;
    require_input(n >= 0, "%s: cannot be read: %s", path, std::strerror(errno));
    if (n == 0) break;
    used += static_cast<size_t>(n);
  }
  text.resize(used);
  return text;
}

void write_file(const std::string& path, const std::string& text) { write_file(path, Pieces{text}); }

void write_file(const std::string& path, const Pieces& pieces, bool lasting) {
  struct stat found = {};
  const bool exists = ::stat(path.c_str(), &found) == 0;
  if (!exists && errno != ENOENT) fail(path, errno);  // a circle of links, or a file where a folder should be
  require(!exists || !S_ISDIR(found.st_mode), "%s: cannot be written: it is a folder", path);
  for (const int stream : {1, 2}) {
    struct stat of_stream = {};
    if (!exists || ::fstat(stream, &of_stream) != 0 || !same_file(found, of_stream)) continue;
    std::cout.flush();
    std::fflush(nullptr);
    return write_to(stream, path, pieces);
  }
  if (exists && !S_ISREG(found.st_mode)) return write_in_place(path, pieces, false);
  if (!replace(path, exists ? &found : nullptr, pieces, lasting)) write_in_place(path, pieces, lasting);
}

void probe_output(const std::string& path) {
  if (path.empty() || path == "-") return;
  struct stat found = {};
  if (::stat(path.c_str(), &found) == 0) {
    require_usage(!S_ISDIR(found.st_mode), "%s: cannot be written: it is a folder, and a file is wanted", path);
    require_usage(::access(path.c_str(), W_OK) == 0, "%s: cannot be written: %s", path, std::strerror(errno));
    return;
  }
  const std::string folder = folder_of(resolved(path));
  std::error_code ignored;
  require_usage(fs::exists(folder, ignored), "%s: cannot be written: there is no folder %s", path, folder);
  require_usage(fs::is_directory(folder, ignored), "%s: cannot be written: %s is not a folder", path, folder);
  std::string name;
  const Descriptor file(create_beside(folder + "/probe", name));
  require_usage(file.fd >= 0, "%s: cannot be written: %s in %s", path, std::strerror(errno), folder);
  if (!name.empty()) ::unlink(name.c_str());
}

}  // namespace bcq
