// Cutting text into pieces before byte-pair encoding, with the regular expression of the
// tokenizer file, run by PCRE2.
//
// Tokenizer files are written for Oniguruma. The subset that byte-level tokenizers use is
// translated; whatever else a pattern holds is refused by name, never guessed. \s means
// Unicode White_Space, and \p{L} and \p{N} are those of Unicode 16, as in the Hugging Face
// tokenizers library, even where the installed PCRE2 knows only Unicode 14.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/file/json_fwd.h"

namespace bcq {

// GPT-2's pattern, which a ByteLevel pre-tokenizer implies.
extern const char* const kGpt2Pattern;

inline constexpr char kReplacement[] = "\xef\xbf\xbd";  // U+FFFD

// `text` with U+FFFD for what is not UTF-8, one for each run that a character could have begun with, and how often.
// It empties `text`; unless `all`, bytes at the end that may yet become a character are left in it.
std::pair<std::string, int64_t> as_utf8(std::string_view& text, bool all = true);

// Oniguruma pattern to PCRE2 pattern. Understood: literals, escaped punctuation and \r \n \t,
// \s \S, \p{L} \p{N} \P{L} \P{N}, classes with nested sets (a union), groups (...) (?:...) (?i:...)
// (?=...) (?!...), | ? * + {m,n}. InputError naming `where` and the construct for the rest.
std::string to_pcre2(const std::string& pattern, const std::string& where);

// The processor time that splitting may take, all texts of a tokenizer together: half a second, and a microsecond for
// every byte that a step has split, some 20 times what the patterns of known tokenizers take. Patterns can be written
// that take longer than any time (nested repeats, alternatives that match the same), and PCRE2's limits are those of
// one match. For many threads.
class SplitBudget {
 public:
  // False when it is used up.
  bool spend(std::chrono::nanoseconds time, size_t bytes) {
    return (left_ += static_cast<int64_t>(1000 * bytes) - time.count()) >= 0;
  }

 private:
  std::atomic<int64_t> left_ = 500'000'000;  // ns
};

// One compiled pattern; copies share it, and it may be used from many threads.
class Splitter {
 public:
  // InputError when the pattern is not understood or can match the empty string.
  Splitter(const std::string& pattern, const std::string& where);

  // Call piece(part) for every match and for every gap between matches, in order: the parts
  // are views into `text` and join up to it. `text` has to be valid UTF-8. InputError when a match or all of them
  // take too long; `budget` may be null.
  void split(std::string_view text, const std::function<void(std::string_view)>& piece,
             SplitBudget* budget = nullptr) const;

 private:
  std::string where_, pattern_;
  std::shared_ptr<void> code_;  // pcre2_code
};

// Unicode White_Space at the end of the text before `at` / at its start from `at`: returns
// where that run begins / ends. Valid UTF-8, `at` on a character.
size_t spaces_before(std::string_view text, size_t at);
size_t spaces_after(std::string_view text, size_t at);
// Whether the character before / at `at` is a word character (letter, mark, digit,
// connector), as \w of Unicode's regular-expression standard. False at the ends. Marks and
// digits newer than PCRE2's Unicode version are not known here.
bool word_before(std::string_view text, size_t at);
bool word_after(std::string_view text, size_t at);

}  // namespace bcq
