// JSON as the engine accepts it, and whole files read and written. Refuses what
// nlohmann/json would let pass (duplicate keys, unlimited depth) and says what is
// wrong before it would, in words that name the file (invalid UTF-8).
#include "engine/file/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <unordered_set>
#include <utility>

namespace bcq {
namespace {

constexpr int kMaxDepth = 128;

// Offset of the first byte that is not part of well-formed UTF-8 (RFC 3629: no overlong forms,
// no surrogates, nothing above U+10FFFF), or npos.
size_t find_invalid_utf8(const std::string& text) {
  const size_t n = text.size();
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (size_t i = 0; i < n;) {
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || n - i < length) return i;
    for (size_t k = 1; k < length; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return i;
    const unsigned char second = byte(i + 1);
    const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
    if (overlong || (lead == 0xed && second > 0x9f) || (lead == 0xf4 && second > 0x8f)) return i;
    i += length;
  }
  return std::string::npos;
}

// Called by the parser at every key, opening and closing bracket.
struct Strictness {
  const std::string& where;
  std::vector<std::unordered_set<std::string>> keys = {};  // of the objects that are open now

  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    using Event = json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start)
      require_input(depth < kMaxDepth, "%s: JSON is nested deeper than %d", where, kMaxDepth);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      require_input(keys.back().insert(key).second, "%s: key %s appears twice in the same JSON object", where,
                    quoted(key));
    }
    return true;
  }
};

// The parser's own message without its exception number, and without the token it had read
// so far, which can be as long as the file.
std::string plain_message(const json::exception& error) {
  std::string what = error.what();
  const size_t bracket = what.find("] ");
  if (bracket != std::string::npos) what.erase(0, bracket + 2);
  constexpr size_t kLongest = 300;
  if (what.size() > kLongest) what = what.substr(0, kLongest) + "...";
  return what;
}

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// A file that removes itself unless it was renamed to its final name.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& final_path) : final_path_(final_path) {
    static std::atomic<unsigned> counter{0};
    path_ = format("%s.tmp-%d-%d", final_path, static_cast<int>(::getpid()), counter++);
    file_.fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_.fd < 0) fail();
  }
  TemporaryFile(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!renamed_) ::unlink(path_.c_str());
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(file_.fd, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail();
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }

  void sync() {
    if (::fsync(file_.fd) != 0) fail();
  }

  void rename() {
    const int fd = std::exchange(file_.fd, -1);
    if (::close(fd) != 0) fail();  // network file systems report a full disk here
    if (::rename(path_.c_str(), final_path_.c_str()) != 0) fail();
    renamed_ = true;
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(format("%s: cannot be written: %s", final_path_, std::strerror(errno)));
  }

  std::string final_path_, path_;
  Descriptor file_{-1};
  bool renamed_ = false;
};

}  // namespace

std::string quoted(const std::string& text) {
  constexpr size_t kLongest = 120;
  std::string cut = text.substr(0, kLongest);
  if (cut.size() < text.size()) {
    // A character that was cut in two would read as garbage.
    const size_t invalid = find_invalid_utf8(cut);
    if (invalid != std::string::npos && invalid + 4 > cut.size()) cut.resize(invalid);
    cut += "...";
  }
  return json(cut).dump(-1, ' ', false, json::error_handler_t::replace);
}

json parse_json(const std::string& text, const std::string& where) {
  const size_t invalid = find_invalid_utf8(text);
  require_input(invalid == std::string::npos, "%s: byte %d is not valid UTF-8", where, invalid);
  const size_t nul = text.find('\0');  // the parser would take it for the end of the text
  require_input(nul == std::string::npos, "%s: not valid JSON: byte %d is zero", where, nul);
  try {
    return json::parse(text, Strictness{where});
  } catch (const json::exception& error) {
    throw InputError(format("%s: not valid JSON: %s", where, plain_message(error)));
  }
}

json read_json(const std::string& path) { return parse_json(read_file(path), path); }

std::string read_file(const std::string& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
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

void write_file(const std::string& path, const std::string& text) {
  write_file(path, std::vector<std::string_view>{text});
}

void write_file(const std::string& path, const std::vector<std::string_view>& pieces, bool lasting) {
  struct stat status = {};
  const bool exists = ::stat(path.c_str(), &status) == 0;
  // Renaming over /dev/null would replace the device, over a directory fails obscurely.
  require(!exists || S_ISREG(status.st_mode), "%s: cannot be written: it exists and is not a regular file", path);
  TemporaryFile file(path);
  for (const std::string_view piece : pieces) file.write(piece);
  if (lasting) file.sync();
  file.rename();
}

}  // namespace bcq
