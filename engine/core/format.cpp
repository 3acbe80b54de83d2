#include "engine/core/format.h"

namespace bcq {

std::string format_args(const char* text, std::initializer_list<FormatArg> args) {
  std::string result;
  const FormatArg* arg = args.begin();
  while (*text) {
    if (*text != '%') {
      result += *text++;
      continue;
    }
    const char* end = text + 1;
    const char asked = next_conversion(end);
    std::string conversion(text, end);
    text = end;
    if (asked == 0) {
      result += '%';
      continue;
    }
    const FormatArg& value = *arg++;
    if (conversion == "%s") {
      result += value.text;
      continue;
    }
    const auto put = [&](auto x) {  // the conversion has been checked against the type
      const int n = std::snprintf(nullptr, 0, conversion.c_str(), x);
      std::string piece(static_cast<size_t>(n < 0 ? 0 : n) + 1, '\0');
      std::snprintf(piece.data(), piece.size(), conversion.c_str(), x);
      piece.pop_back();
      result += piece;
    };
    if (asked == 's') {
      put(std::string(value.text).c_str());
    } else if (asked == 'f') {
      put(value.real);
    } else if (conversion.back() == 'c') {
      put(static_cast<int>(value.integer));
    } else {
      if (value.kind == 'u' && conversion.back() == 'd') conversion.back() = 'u';
      conversion.insert(conversion.size() - 1, "ll");
      put(static_cast<long long>(value.integer));
    }
  }
  return result;
}

std::string replace_all(std::string_view text, const std::string& from, const std::string& to) {
  std::string out;
  out.reserve(text.size());
  for (size_t done = 0;;) {
    const size_t at = text.find(from, done);
    out += text.substr(done, at - done);
    if (at == std::string_view::npos) return out;
    out += to;
    done = at + from.size();
  }
}

}  // namespace bcq
