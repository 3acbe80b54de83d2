// Translation and matching of split patterns, and the few character tests that added tokens
// need; see split.h.
#include "data/text/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <ctime>

#include "engine/core/check.h"

namespace bcq {

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Letters and numbers that Unicode 15, 15.1 and 16 added to what PCRE2 10.42 (Unicode 14)
// knows. None of the older code points changed. With a newer PCRE2 this repeats what it has.
const char* const kNewLetters =
    "\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"
    "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}\\x{1138E}"
    "\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}\\x{11F04}-\\x{11F10}"
    "\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}\\x{16100}-\\x{1611D}"
    "\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}\\x{1E030}-\\x{1E06D}"
    "\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}";
const char* const kNewNumbers =
    "\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}\\x{16130}-\\x{16139}"
    "\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}\\x{1E4F0}-\\x{1E4F9}\\x{1E5F1}-\\x{1E5FA}";

// Reads an Oniguruma pattern left to right and writes the PCRE2 one.
class Translator {
 public:
  Translator(const std::string& pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (i_ < in_.size()) {
      const char c = in_[i_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        set();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        repeat();
      } else if (c == '^' || c == '$' || c == '.') {
        refuse(std::string(1, c));
      } else {
        out_ += in_[i_++];
      }
    }
    return out_;
  }

 private:
  char at(size_t i) const { return i < in_.size() ? in_[i] : '\0'; }
  [[noreturn]] void refuse(const std::string& what) const {
    throw InputError(format("%s: split pattern \"%s\": \"%s\" at byte %d is not supported", where_, in_, what, i_));
  }

  // A backslash; inside a set properties go without brackets and cannot be negated.
  void escape(bool in_set) {
    const char c = at(i_ + 1);
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      i_ += 2;
    } else if (c == 'p' || c == 'P') {
      const std::string property = in_.substr(i_, 5);
      const bool letter = property.substr(2) == "{L}";
      const bool negated = c == 'P';
      if ((!letter && property.substr(2) != "{N}") || (negated && in_set)) refuse(property);
      const std::string members = std::string(letter ? "\\p{L}" : "\\p{N}") + (letter ? kNewLetters : kNewNumbers);
      out_ += in_set ? members : (negated ? "[^" : "[") + members + "]";
      i_ += 5;
    } else if (c == 'r' || c == 'n' || c == 't' || std::ispunct(static_cast<unsigned char>(c))) {
      out_ += {'\\', c};
      i_ += 2;
    } else {
      refuse(in_.substr(i_, 2));
    }
  }

  // A bracketed set. A set inside is a union: its members are simply listed. What could turn
  // into something else by that (a range at the seam, a negation, an intersection) is refused.
  void set() {
    int depth = 1;
    out_ += in_[i_++];
    if (at(i_) == '^') out_ += in_[i_++];
    if (at(i_) == ']') refuse("[]");
    while (depth > 0) {
      const char c = at(i_), next = at(i_ + 1);
      if (i_ >= in_.size()) refuse("[ without ]");
      if (c == '[') {
        if (next == ':' || next == '^' || next == ']' || next == '-' || at(i_ - 1) == '-')
          refuse(in_.substr(i_ - 1, 3));
        ++depth;
        ++i_;
      } else if (c == ']') {
        if (--depth == 0) out_ += c;
        ++i_;
        if (depth > 0 && (at(i_ - 2) == '-' || at(i_) == '-')) refuse("range at the end of a nested set");
      } else if (c == '&' && next == '&') {
        refuse("&&");
      } else if (c == '\\') {
        escape(true);
      } else {
        out_ += c;
        ++i_;
      }
    }
  }

  void group() {
    if (at(i_ + 1) == '?') {
      const char kind = at(i_ + 2);
      const size_t n = kind == 'i' && at(i_ + 3) == ':' ? 4 : 3;
      if (n == 3 && kind != ':' && kind != '=' && kind != '!') refuse(in_.substr(i_, 3));
      out_ += in_.substr(i_, n);
      i_ += n;
    } else if (at(i_ + 1) == '*') {
      refuse("(*");
    } else {
      out_ += in_[i_++];
    }
  }

  // {m}, {m,} or {m,n}; the two engines read other uses of braces differently.
  void repeat() {
    size_t j = i_ + 1;
    const auto digits = [&] {
      const size_t from = j;
      while (std::isdigit(static_cast<unsigned char>(at(j)))) ++j;
      return j > from;
    };
    const bool low = digits();
    if (at(j) == ',') {
      ++j;
      digits();
    }
    if (!low || at(j) != '}' || at(j + 1) == '+') refuse(in_.substr(i_, j - i_ + 1));
    out_ += in_.substr(i_, j - i_ + 1);
    i_ = j + 1;
  }

  const std::string& in_;
  const std::string& where_;
  std::string out_;
  size_t i_ = 0;
};

const pcre2_code* code_of(const std::shared_ptr<void>& p) { return static_cast<const pcre2_code*>(p.get()); }

std::string pcre2_message(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

std::shared_ptr<void> compile(const std::string& pattern, const std::string& where) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::shared_ptr<pcre2_compile_context> context(pcre2_compile_context_create(nullptr),
                                                       pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT, &error,
                                   &offset, context.get());
  require_input(code != nullptr, "%s: split pattern \"%s\": %s at byte %d", where, pattern, pcre2_message(error),
                static_cast<size_t>(offset));
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it the interpreter is used
  return {code, [](pcre2_code* c) { pcre2_code_free(c); }};
}

size_t next_character(std::string_view s, size_t at) {
  do ++at;
  while (at < s.size() && (static_cast<uint8_t>(s[at]) & 0xc0) == 0x80);
  return at;
}

// Matches of a pattern in a text, in steps that each end soon, whatever the pattern.
class Matcher {
 public:
  struct Found {
    size_t begin, end;  // equal: no match begins before them
    int error;          // of PCRE2, or 0
    bool slow;          // it took more than usual
  };

  Matcher(const pcre2_code* code, std::string_view text)
      : code_(code),
        text_(text),
        match_(pcre2_match_data_create(1, nullptr), pcre2_match_data_free),
        context_(pcre2_match_context_create(nullptr), pcre2_match_context_free) {
    pcre2_set_heap_limit(context_.get(), 1 << 18);  // KiB
  }

  // The first match that begins at or after `from`, or the place up to which there is none.
  Found next(size_t from) {
    constexpr uint32_t kSteps = 10'000;  // PCRE2's count of one match; those of known patterns take below 100
    size_t last = std::min(from + 15, text_.size());  // where a match may begin
    int found = match(from, last, kSteps);
    const bool slow = found == PCRE2_ERROR_MATCHLIMIT;
    if (slow) {
      last = from;
      found = match(from, last,
                    static_cast<uint32_t>(std::min<size_t>(1'000'000 + 64 * (text_.size() - from), UINT32_MAX)));
    }
    if (found == PCRE2_ERROR_NOMATCH) {
      const size_t end = last < text_.size() ? next_character(text_, last) : text_.size();
      return {end, end, 0, slow};
    }
    if (found < 0) return {from, from, found, slow};
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match_.get());
    const bool forwards = span[0] >= from && span[1] > span[0];
    return {span[0], span[1], forwards ? 0 : PCRE2_ERROR_BADOFFSET, slow};
  }

 private:
  int match(size_t from, size_t last, uint32_t steps) {
    pcre2_set_offset_limit(context_.get(), last);
    pcre2_set_match_limit(context_.get(), steps);
    // The text was validated as a whole; checking it again at every match would be quadratic.
    const auto with = [&](uint32_t options) {
      return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from,
                         PCRE2_NO_UTF_CHECK | options, match_.get(), context_.get());
    };
    const int found = with(0);
    return found == PCRE2_ERROR_JIT_STACKLIMIT ? with(PCRE2_NO_JIT) : found;
  }

  const pcre2_code* code_;
  std::string_view text_;
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match_;
  std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context_;
};

// Code point that starts at `at`.
uint32_t code_point(std::string_view s, size_t at) {
  utf8proc_int32_t point = 0;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(s.data()) + at,
                   static_cast<utf8proc_ssize_t>(s.size() - at), &point);
  return static_cast<uint32_t>(point);
}

size_t previous_character(std::string_view s, size_t at) {
  do --at;
  while (at > 0 && (static_cast<uint8_t>(s[at]) & 0xc0) == 0x80);
  return at;
}

// Unicode White_Space, unchanged since Unicode 6.3.
bool is_white_space(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_word(std::string_view character) {
  static const std::shared_ptr<void> code = compile(
      std::string("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}") + kNewLetters + "]", "word character");
  const std::shared_ptr<pcre2_match_data> match(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  return pcre2_match(code_of(code), reinterpret_cast<PCRE2_SPTR>(character.data()), character.size(), 0,
                     PCRE2_NO_UTF_CHECK, match.get(), nullptr) >= 0;
}

// How many bytes at the start of a text that is not valid there could have been followed by the rest of a character; 0
// when the first begins none.
size_t character_start(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t b = text.empty() ? 0 : byte(0);
  const size_t length = b >= 0xc2 && b < 0xe0 ? 2 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xf0 && b < 0xf5 ? 4 : 0;
  // The second byte decides about overlong forms, surrogates and what lies beyond U+10FFFF.
  const uint32_t low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80, high = b == 0xed ? 0xa0 : b == 0xf4 ? 0x90 : 0xc0;
  size_t n = std::min<size_t>(length, 1);
  for (; n > 0 && n < length && n < text.size(); ++n)
    if (n == 1 ? byte(1) < low || byte(1) >= high : (byte(n) & 0xc0) != 0x80) break;
  return n;
}

// Processor time of this thread: what others take of the machine does not count.
std::chrono::nanoseconds thread_time() {
  timespec now = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

}  // namespace

std::pair<std::string, int64_t> as_utf8(std::string_view& text, bool all) {
  std::string out;
  for (int64_t replaced = 0;; ++replaced) {
    const size_t good = std::min(static_cast<size_t>(invalid_utf8(text)), text.size());  // -1: all
    out += text.substr(0, good);
    text.remove_prefix(good);
    const size_t run = character_start(text);
    if (text.empty() || (!all && run == text.size())) return {out, replaced};
    out += kReplacement;
    text.remove_prefix(std::max<size_t>(1, run));
  }
}

std::string to_pcre2(const std::string& pattern, const std::string& where) { return Translator(pattern, where).run(); }

Splitter::Splitter(const std::string& pattern, const std::string& where)
    : where_(where), pattern_(pattern), code_(compile(to_pcre2(pattern, where), where)) {
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code_of(code_), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  require_input(!matches_empty, "%s: split pattern \"%s\" can match the empty string", where, pattern);
}

void Splitter::split(std::string_view text, const std::function<void(std::string_view)>& piece,
                     SplitBudget* budget) const {
  const auto refuse = [&](size_t at, const std::string& why) {
    throw InputError(format(
        "%s: split pattern \"%s\": at byte %d of a text of %d: %s; it can match the same characters in too many ways",
        where_, pattern_, at, text.size(), why));
  };
  Matcher matcher(code_of(code_), text);
  std::array<std::string_view, 64> parts;  // found between two looks at the clock
  for (size_t done = 0, from = 0; done < text.size();) {
    const std::chrono::nanoseconds begin = thread_time();
    const size_t first = from;
    size_t n = 0;
    bool slow = false;
    for (int tries = 0; tries < 32 && done < text.size() && !slow; ++tries) {
      const Matcher::Found found = matcher.next(from);
      if (found.error) refuse(from, pcre2_message(found.error));
      slow = found.slow;
      from = found.end;
      const bool matched = found.begin < found.end;
      if (!matched && from < text.size()) continue;
      if (found.begin > done) parts[n++] = text.substr(done, found.begin - done);
      if (matched) parts[n++] = text.substr(found.begin, found.end - found.begin);
      done = found.end;
    }
    if (budget && !budget->spend(thread_time() - begin, from - first)) refuse(from, "this takes too long");
    for (size_t i = 0; i < n; ++i) piece(parts[i]);
  }
}

size_t spaces_before(std::string_view text, size_t at) {
  while (at > 0) {
    const size_t p = previous_character(text, at);
    if (!is_white_space(code_point(text, p))) break;
    at = p;
  }
  return at;
}

size_t spaces_after(std::string_view text, size_t at) {
  while (at < text.size() && is_white_space(code_point(text, at))) at = next_character(text, at);
  return at;
}

bool word_before(std::string_view text, size_t at) {
  if (at == 0) return false;
  const size_t p = previous_character(text, at);
  return is_word(text.substr(p, at - p));
}

bool word_after(std::string_view text, size_t at) {
  return at < text.size() && is_word(text.substr(at, next_character(text, at) - at));
}

}  // namespace bcq
