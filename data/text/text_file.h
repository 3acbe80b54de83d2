// Text as people have it on disk: plain or gzip-compressed, one text, one row per line, or one JSON object
// per line. What the rows mean is corpus.h's business.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace bcq {

// The bytes of a file, decompressed when it is gzip (several members too). InputError naming the file when it
// cannot be read, is empty, cut off or damaged, or is Parquet, Arrow, zip or zstd: with what to do instead.
std::string read_bytes(const std::string& path);
// The same, and InputError with the byte offset unless it is UTF-8.
std::string read_text(const std::string& path);

// Lines as Python reads a text file: \n, \r\n and \r end one, the end is kept as \n. Byte-order marks stay.
std::vector<std::string> python_lines(const std::string& text);
// str.strip(): Unicode white space and U+001C to U+001F off both ends.
std::string python_strip(const std::string& text);

// A JSON-lines file as C4 has it: one object with a member "text" per line, blank lines passed over. All of the
// file is in memory, a document is decoded when it is asked for.
class Documents {
 public:
  explicit Documents(const std::string& path);  // InputError naming the line that is no JSON object
  int64_t size() const { return static_cast<int64_t>(lines_.size()); }
  std::string text(int64_t i) const;  // InputError naming file and line

 private:
  struct Line {
    size_t begin, end;
    int64_t number;
  };
  std::string path_, bytes_;
  std::vector<Line> lines_;
};

// Token ids from a file: little-endian int32 (recognized by its zero bytes), a JSON list, or decimal numbers
// between white space. InputError naming what is no id.
std::vector<int32_t> read_tokens(const std::string& path);

}  // namespace bcq
