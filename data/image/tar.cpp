// Headers of tar archives (POSIX.1-1988 ustar, POSIX.1-2001 pax, GNU's extensions); see tar.h. Only headers are read:
// an index of a 138 GB archive costs one read of 512 bytes per member.
#include "data/image/tar.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

#include "engine/core/check.h"

namespace bcq {
namespace {

constexpr uint64_t kBlock = 512;
constexpr uint64_t kLongest = 1 << 20;  // of a long name or a pax header

class File {
 public:
  explicit File(const std::string& path) : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    require_input(fd_ >= 0, "%s: cannot be opened: %s", path, std::strerror(errno));
    struct stat status = {};
    const bool regular = ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
    size_ = static_cast<uint64_t>(status.st_size);
    if (!regular) ::close(fd_);
    require_input(regular, "%s: is not a regular file", path);
  }
  File(const File&) = delete;
  ~File() { ::close(fd_); }
  uint64_t size() const { return size_; }
  // Headers lie far apart: reading ahead would read the whole archive.
  void expect_jumps() const { ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM); }

  std::string read(uint64_t offset, uint64_t size) const {
    std::string bytes(size, '\0');
    for (uint64_t have = 0; have < size;) {
      const ssize_t n = ::pread(fd_, bytes.data() + have, size - have, static_cast<off_t>(offset + have));
      if (n < 0 && errno == EINTR) continue;
      require_input(n >= 0, "%s: cannot be read: %s", path_, std::strerror(errno));
      require_input(n > 0, "%s: ends at byte %d, in the middle of what was to be read", path_, offset + have);
      have += static_cast<uint64_t>(n);
    }
    return bytes;
  }

 private:
  std::string path_;
  int fd_;
  uint64_t size_ = 0;
};

// A field that ends at its first zero byte, or at its end.
std::string text(const std::string& header, size_t at, size_t length) {
  const std::string field = header.substr(at, length);
  return field.substr(0, field.find('\0'));
}

// Octal digits between blanks, or GNU's base 256 where the first bit is set. False: neither.
bool number(const std::string& header, size_t at, size_t length, uint64_t& value) {
  value = 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(header[at + i]); };
  if (byte(0) & 0x80) {
    for (size_t i = 0; i < length; ++i) {
      if (value >> 55) return false;
      value = value << 8 | (i == 0 ? byte(i) & 0x7f : byte(i));
    }
    return true;
  }
  const std::string field = text(header, at, length);
  const size_t first = field.find_first_not_of(' '), last = field.find_last_not_of(' ');
  if (first == std::string::npos) return true;  // an empty field is zero
  const char* const end = &field[last] + 1;
  const auto [stop, error] = std::from_chars(&field[first], end, value, 8);
  return error == std::errc() && stop == end;
}

// The sum of all bytes with the checksum field itself as blanks; some old writers summed signed bytes.
bool checksum_holds(const std::string& header) {
  constexpr size_t kAt = 148, kLength = 8;
  uint64_t stated = 0;
  if (!number(header, kAt, kLength, stated)) return false;
  int64_t plain = kLength * ' ', with_sign = plain;
  for (size_t i = 0; i < header.size(); ++i) {
    if (i >= kAt && i < kAt + kLength) continue;
    plain += static_cast<unsigned char>(header[i]);
    with_sign += static_cast<signed char>(header[i]);
  }
  return static_cast<int64_t>(stated) == plain || static_cast<int64_t>(stated) == with_sign;
}

std::string normal_path(const std::string& name) {
  std::string path;
  for (size_t at = 0; at < name.size();) {
    const size_t slash = std::min(name.find('/', at), name.size());
    const std::string part = name.substr(at, slash - at);
    if (!part.empty() && part != ".") path += (path.empty() ? "" : "/") + part;
    at = slash + 1;
  }
  return path;
}

// What pax headers or long-name members say of the member that follows.
struct Override {
  std::string path;
  uint64_t size = 0;
  bool has_size = false, sparse = false;
};

// Records "LENGTH key=value\n" where LENGTH counts the whole record. False: they are not that.
bool read_pax(std::string_view records, Override& said) {
  while (!records.empty()) {
    size_t length = 0;
    const char* const begin = records.data();
    const auto i = static_cast<size_t>(std::from_chars(begin, begin + records.size(), length).ptr - begin);
    if (length <= i + 1 || length > records.size() || records[i] != ' ' || records[length - 1] != '\n') return false;
    const std::string_view record = records.substr(i + 1, length - i - 2);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) return false;
    const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") said.path = value;
    if (key == "path" && value.find('\0') != value.npos) return false;
    if (key.rfind("GNU.sparse.", 0) == 0) said.sparse = true;
    if (key == "size") {
      said.has_size = !value.empty();
      said.size = 0;
      const char* const end = value.data() + value.size();
      const auto [stop, error] = std::from_chars(value.data(), end, said.size);
      if (said.has_size && (error != std::errc() || stop != end)) return false;
    }
    records.remove_prefix(length);
  }
  return true;
}

}  // namespace

std::vector<TarMember> list_tar(const std::string& path, uint64_t begin, uint64_t size,
                                const std::function<void(uint64_t)>& tick) {
  const File file(path);
  file.expect_jumps();
  require_input(begin <= file.size() && (size == kToEnd || size <= file.size() - begin),
                "%s: truncated: the archive inside it that starts at byte %d has %d bytes", path, begin, size);
  const uint64_t end = size == kToEnd ? file.size() : begin + size;
  std::vector<TarMember> members;
  Override said;
  for (uint64_t at = begin;;) {
    require_input(at + kBlock <= end,
                  "%s: truncated tar archive: it ends at byte %d without an end-of-archive mark; copy it again", path,
                  end);
    const std::string header = file.read(at, kBlock);
    if (header.find_first_not_of('\0') == std::string::npos) return members;
    uint64_t length = 0;
    const bool sound = checksum_holds(header) && number(header, 124, 12, length);
    require_input(sound || at != begin, "%s: not a tar archive%s", path,
                  header.rfind("\x1f\x8b", 0) == 0 ? " but a gzip file: unpack it with gunzip first" : "");
    require_input(sound, "%s: damaged tar archive: no member's header at byte %d; copy it again", path, at);
    const char type = header[156];
    if (said.has_size) length = said.size;
    if (type >= '1' && type <= '6') length = 0;  // links, devices, folders: a size stated means something else
    const uint64_t data = at + kBlock;
    require_input(length <= end - data,
                  "%s: truncated tar archive: the member at byte %d has %d bytes, %d are left; copy it again", path, at,
                  length, end - data);
    at = data + (length + kBlock - 1) / kBlock * kBlock;
    if (type == 'L' || type == 'x') {
      require_input(length <= kLongest, "%s: damaged tar archive: a name of %d bytes at byte %d", path, length, data);
      const std::string bytes = file.read(data, length);
      if (type == 'L') said.path = text(bytes, 0, bytes.size());
      require_input(type == 'L' || read_pax(bytes, said), "%s: damaged tar archive: pax header at byte %d", path, data);
      continue;
    }
    if (type == 'K' || type == 'g') continue;  // the target of a link; defaults no member here depends on
    std::string name = said.path;
    if (name.empty()) {
      name = text(header, 0, 100);
      // GNU's own format keeps times where ustar has the start of a long path.
      const std::string prefix = header.compare(257, 6, "ustar\0", 6) == 0 ? text(header, 345, 155) : "";
      if (!prefix.empty()) name = prefix + "/" + name;
    }
    require_input(!said.sparse && type != 'S', "%s: the member at byte %d is stored with holes: unpack the archive",
                  path, data - kBlock);
    const bool folder = type == '5' || (!name.empty() && name.back() == '/');
    const bool regular = type == '0' || type == '\0' || type == '7';
    members.push_back({normal_path(name), folder ? '5' : regular ? '0' : type, data, length});
    said = {};
    if (tick) tick(at);
  }
}

std::string read_range(const std::string& path, uint64_t offset, uint64_t size) {
  const File file(path);
  require_input(offset <= file.size() && size <= file.size() - offset, "%s: has %d bytes, not the %d from byte %d on",
                path, file.size(), size, offset);
  return file.read(offset, size);
}

}  // namespace bcq
