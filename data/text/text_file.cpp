// Reading text files; see text_file.h.
#include "data/text/text_file.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <memory>

#include "data/text/split.h"
#include "engine/core/check.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

// Containers that are no text, by their first bytes.
void refuse_containers(const std::string& head, const std::string& path) {
  const std::pair<const char*, const char*> known[] = {
      {"PAR1",
       "Parquet; write its text as JSON lines, in Python: "
       "pandas.read_parquet(FILE)[['text']].to_json('FILE.jsonl', orient='records', lines=True)"},
      {"ARROW1", "Arrow; save the data set with to_json('FILE.jsonl') of the datasets library"},
      {"\xff\xff\xff\xff", "Arrow; save the data set with to_json('FILE.jsonl') of the datasets library"},
      {"\xff\xfe", "UTF-16; write it as UTF-8 first (iconv -f UTF-16 -t UTF-8)"},
      {"\xfe\xff", "UTF-16; write it as UTF-8 first (iconv -f UTF-16 -t UTF-8)"},
      {"PK\x03\x04", "a zip archive; unpack it first"},
      {"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first (zstd -d)"},
      {"\xfd\x37zXZ", "compressed with xz; decompress it first (xz -d)"}};
  for (const auto& [magic, what] : known)
    require_input(head.compare(0, std::strlen(magic), magic) != 0, "%s: this is %s", path, what);
}

// The four hexadecimal digits of a \u escape that begins at `at`; -1: there is none.
int escaped_unit(std::string_view s, size_t at) {
  if (s.substr(at, 2) != "\\u" || s.size() < at + 6) return -1;
  int unit = 0;
  const auto [stop, error] = std::from_chars(s.data() + at + 2, s.data() + at + 6, unit, 16);
  return error == std::errc() && stop == s.data() + at + 6 && unit >= 0 ? unit : -1;
}

// The length of the escape that begins at `at`; negative: of a surrogate alone; 0: it is none.
int escape_length(std::string_view s, size_t at) {
  const int unit = escaped_unit(s, at);
  if (unit < 0) return at + 1 < s.size() && std::strchr("\"\\/bfnrt", s[at + 1]) && s[at + 1] ? 2 : 0;
  if (unit < 0xd800 || unit > 0xdfff) return 6;
  const int other = escaped_unit(s, at + 6);
  return unit < 0xdc00 && other >= 0xdc00 && other <= 0xdfff ? 12 : -6;
}

// A JSON text with U+FFFD for what its strings may not hold, and how often.
std::pair<std::string, int64_t> mended_json(std::string_view line) {
  auto [text, replaced] = as_utf8(line);
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    const int length = in_string && c == '\\' ? escape_length(text, i) : 1;
    const bool control = in_string && c >= 0 && c < ' ';
    in_string ^= c == '"';
    if (length > 0 && !control) {
      out.append(text, i, static_cast<size_t>(length));
    } else {
      out += kReplacement;
      ++replaced;
    }
    i += static_cast<size_t>(std::max(1, std::abs(length)));
  }
  return {out, replaced};
}

}  // namespace

std::string read_bytes(const std::string& path) {
  namespace fs = std::filesystem;
  require_input(fs::exists(path), "%s: no such file", path);
  require_input(!fs::is_directory(path), "%s: this is a folder", path);
  const bool regular = fs::is_regular_file(path);
  errno = 0;
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"),
                                                        gzclose);  // passes on what is not gzip
  require_input(file != nullptr, "%s: cannot read: %s", path, std::strerror(errno));
  gzbuffer(file.get(), 1 << 18);
  std::string bytes;
  if (regular) bytes.reserve(fs::file_size(path));
  std::vector<char> part(size_t{1} << 20);
  int n = 0;
  while ((n = gzread(file.get(), part.data(), static_cast<unsigned>(part.size()))) > 0) {
    if (bytes.empty()) refuse_containers({part.data(), static_cast<size_t>(std::min(n, 8))}, path);
    bytes.append(part.data(), static_cast<size_t>(n));
  }
  int code = Z_OK;
  const char* problem = gzerror(file.get(), &code);
  if (code == Z_BUF_ERROR) problem = "the compressed data ends early";
  require_input(code == Z_OK, "%s: damaged gzip file: %s", path, problem);
  require_input(!bytes.empty(), "%s: the text is empty%s", path,
                std::string(regular ? "" : "; a pipe can be read once"));
  return bytes;
}

std::string read_text(const std::string& path, const Warn& warn) {
  std::string text = read_bytes(path);
  const int64_t bad = invalid_utf8(text);
  if (bad < 0) return text;
  require_input(warn != nullptr, "%s: not valid UTF-8 at byte %d", path, bad);
  std::string_view rest = text;
  auto [utf8, replaced] = as_utf8(rest);
  warn(format("%s: not valid UTF-8 in %d places, the first at byte %d: they were read as U+FFFD", path, replaced, bad));
  return utf8;
}

std::vector<std::string> python_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    if (end < text.size()) lines.back() += '\n';
    begin = end + (text.compare(end, 2, "\r\n") == 0 ? 2 : 1);
  }
  return lines;
}

std::string python_strip(const std::string& text) {
  const auto separator = [](char c) { return c >= 0x1c && c <= 0x1f; };
  size_t begin = 0, end = text.size();
  for (size_t before = text.npos; before != begin;) {
    before = begin;
    begin = spaces_after(text, begin);
    if (begin < end && separator(text[begin])) ++begin;
  }
  for (size_t before = text.npos; before != end && end > begin;) {
    before = end;
    end = std::max(begin, spaces_before(text, end));
    if (end > begin && separator(text[end - 1])) --end;
  }
  return text.substr(begin, end - begin);
}

Documents::Documents(const std::string& path) : path_(path), bytes_(read_bytes(path)) {
  int64_t number = 0;
  const size_t mark = bytes_.compare(0, 3, "\xef\xbb\xbf") == 0 ? 3 : 0;  // of byte order
  for (size_t begin = mark; begin < bytes_.size();) {
    const size_t end = std::min(bytes_.find('\n', begin), bytes_.size());
    ++number;
    if (bytes_.find_first_not_of(" \t\r", begin) < end) {
      require_input(bytes_[begin] == '{', "%s: line %d is no JSON object; C4 has one {\"text\": ...} per line", path,
                    number);
      lines_.push_back({begin, end, number});
    }
    begin = end + 1;
  }
  require_input(!lines_.empty(), "%s: no documents", path);
}

std::string Documents::text(int64_t i) const {
  const Line& line = lines_[static_cast<size_t>(i)];
  const std::string where = format("%s: line %d", path_, line.number);
  const auto [json_text, replaced] = mended_json(std::string_view(bytes_).substr(line.begin, line.end - line.begin));
  if (replaced > 0) mended_.insert(line.number);
  return get<std::string>(parse_json(json_text, where), "text", where);
}

void Documents::report(const Warn& warn) const {
  if (mended_.empty()) return;
  const int64_t first = *mended_.begin();
  require_input(warn != nullptr, "%s: line %d holds bytes or escapes that are no characters", path_, first);
  warn(
      format("%s: %d documents, the first in line %d, hold bytes or escapes that are no characters: they were read as "
             "U+FFFD",
             path_, mended_.size(), first));
}

std::vector<int32_t> read_tokens(const std::string& path) {
  const std::string bytes = read_file(path);
  std::vector<int32_t> ids;
  if (bytes.find('\0') != bytes.npos) {  // an id below 2^24 has a zero byte, text has none
    require_input(bytes.size() % 4 == 0, "%s: %d bytes are no whole number of int32 token ids", path, bytes.size());
    ids.resize(bytes.size() / 4);
    std::memcpy(ids.data(), bytes.data(), bytes.size());
  } else {
    const size_t open = bytes.find_first_not_of(" \t\r\n");
    const bool list = open != bytes.npos && bytes[open] == '[';
    if (list) {
      const json tree = parse_json(bytes, path);
      for (const json& id : tree) {
        require_input(id.is_number_integer() && id.is_number_unsigned() && id < (1 << 24),
                      "%s: entry %d, %s, is no token id", path, ids.size(), id.dump().substr(0, 40));
        ids.push_back(id.get<int32_t>());
      }
    }
    for (size_t i = list ? bytes.size() : open; i < bytes.size();) {
      int32_t id = 0;
      const char* end = bytes.data() + bytes.size();
      const auto [stop, error] = std::from_chars(bytes.data() + i, end, id);
      require_input(error == std::errc() && (stop == end || std::strchr(" \t\r\n", *stop)),
                    "%s: \"%s\" at byte %d is no token id", path, bytes.substr(i, 12), i);
      ids.push_back(id);
      i = std::min(bytes.find_first_not_of(" \t\r\n", static_cast<size_t>(stop - bytes.data())), bytes.size());
    }
  }
  for (size_t i = 0; i < ids.size(); ++i)
    require_input(ids[i] >= 0 && ids[i] < (1 << 24), "%s: entry %d, %d, is no token id", path, i, ids[i]);
  require_input(!ids.empty(), "%s: no token ids", path);
  return ids;
}

}  // namespace bcq
