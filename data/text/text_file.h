// Text as people have it on disk: plain or gzip-compressed, one text, one row per line, or one JSON object
// per line. What the rows mean is corpus.h's business.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "engine/core/progress.h"

namespace bcq {

// The bytes of a file or of a pipe, which can be read once; decompressed when it is gzip (several members too).
// InputError naming the file when it cannot be read, is empty, cut off or damaged, or is Parquet, Arrow, zip, zstd, xz
// or UTF-16: with what to do instead.
std::string read_bytes(const std::string& path);
// The same, as UTF-8: what is none becomes U+FFFD, one for each run that a character could have begun with (as
// errors="replace" of Python), and is counted in a warning; without `warn` it is an InputError with the byte offset.
std::string read_text(const std::string& path, const Warn& warn = {});

// Lines as Python reads a text file: \n, \r\n and \r end one, the end is kept as \n. Byte-order marks stay.
std::vector<std::string> python_lines(const std::string& text);
// str.strip(): Unicode white space and U+001C to U+001F off both ends.
std::string python_strip(const std::string& text);

// A JSON-lines file as C4 has it: one object with a member "text" per line, blank lines passed over. All of the
// file is in memory, a document is decoded when it is asked for. Bytes that are not UTF-8, control characters in a
// string, surrogates without their other half and backslashes that escape nothing become U+FFFD.
class Documents {
 public:
  explicit Documents(const std::string& path);  // InputError naming the line that is no JSON object
  int64_t size() const { return static_cast<int64_t>(lines_.size()); }
  std::string text(int64_t i) const;    // InputError naming file and line
  void report(const Warn& warn) const;  // how many of the documents asked for have a U+FFFD of that kind

 private:
  struct Line {
    size_t begin, end;
    int64_t number;
  };
  std::string path_, bytes_;
  std::vector<Line> lines_;
  mutable std::set<int64_t> mended_;  // numbers of lines
};

// Token ids from a file: little-endian int32 (recognized by its zero bytes), a JSON list, or decimal numbers
// between white space. InputError naming what is no id.
std::vector<int32_t> read_tokens(const std::string& path);

}  // namespace bcq
