#include "data/text/normalize.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "engine/core/check.h"

namespace bcq {
namespace {

// A run of characters none of which but the first is ASCII: what lies outside has no part in its normal form.
void append_nfc(std::string_view run, std::string& out) {
  std::vector<utf8proc_int32_t> points;  // decomposed
  for (size_t i = 0; i < run.size();) {
    utf8proc_int32_t whole = 0, parts[4];
    i += static_cast<size_t>(utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(run.data()) + i,
                                              static_cast<utf8proc_ssize_t>(run.size() - i), &whole));
    const auto n = utf8proc_decompose_char(whole, parts, 4, UTF8PROC_DECOMPOSE, nullptr);
    require(n >= 1 && n <= 4, "U+%x has %d canonical parts", whole, n);
    points.insert(points.end(), parts, parts + n);
  }
  // Marks are ordered by class. (The library's own sort is quadratic in their number.)
  const auto mark_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  const auto is_mark = [&](utf8proc_int32_t c) { return mark_class(c) != 0; };
  for (auto begin = points.begin(); (begin = std::find_if(begin, points.end(), is_mark)) != points.end();) {
    const auto end = std::find_if_not(begin, points.end(), is_mark);
    std::stable_sort(begin, end, [&](auto a, auto b) { return mark_class(a) < mark_class(b); });
    begin = end;
  }
  const auto n = static_cast<utf8proc_ssize_t>(points.size());
  points.push_back(0);  // the bytes take the place of the characters, and end in a zero
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  const auto bytes = utf8proc_reencode(points.data(), n, options);
  require(bytes >= 0, "normalizing %d characters: %s", n, std::string(utf8proc_errmsg(bytes)));
  out.append(reinterpret_cast<const char*>(points.data()), static_cast<size_t>(bytes));
}

}  // namespace

std::string nfc(std::string_view utf8) {
  const auto is_ascii = [](char c) { return static_cast<signed char>(c) >= 0; };
  std::string out;
  for (auto begin = utf8.begin(); begin != utf8.end();) {
    auto other = std::find_if_not(begin, utf8.end(), is_ascii);
    if (other != utf8.end() && other != begin) --other;  // a mark may compose with the ASCII character before it
    out.append(begin, other);
    if (other == utf8.end()) break;
    begin = std::find_if(other + 1, utf8.end(), is_ascii);
    append_nfc(utf8.substr(static_cast<size_t>(other - utf8.begin()), static_cast<size_t>(begin - other)), out);
  }
  return out;
}

}  // namespace bcq
