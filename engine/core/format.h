// printf into a std::string, with the types of the arguments known: %s takes strings, %d and %x take integers of any
// width, %f, %g, %e and %a take floating-point numbers. A conversion that does not fit its argument, or has none, does
// not compile; length modifiers (%lld, %zu) are not needed.
#pragma once
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

namespace bcq {

struct FormatArg {
  char kind;  // 'd' signed integer, 'u' unsigned integer, 'f' floating point, 's' text
  int64_t integer = 0;
  double real = 0;
  std::string_view text = {};
};

template <class T>
constexpr char format_kind() {
  if constexpr (std::is_floating_point_v<T>) return 'f';
  if constexpr (std::is_integral_v<T>) return std::is_signed_v<T> || sizeof(T) < 4 ? 'd' : 'u';
  return 's';
}

template <class T>
FormatArg format_arg(const T& value) {
  if constexpr (format_kind<T>() == 'f')
    return {'f', 0, static_cast<double>(value), {}};
  else if constexpr (requires { value.native(); })  // a path
    return {'s', 0, 0, value.native()};
  else if constexpr (format_kind<T>() == 's')
    return {'s', 0, 0, std::string_view(value)};
  else
    return {format_kind<T>(), static_cast<int64_t>(value), 0, {}};
}

// What a conversion such as "%-8.3f" asks for: 'd', 'f' or 's' as in FormatArg, 0 for "%%"; moves `s` behind it. Fails
// to compile, or throws, for one that is not known.
constexpr char next_conversion(const char*& s) {
  while (*s == '-' || *s == '+' || *s == ' ' || *s == '#' || *s == '.' || (*s >= '0' && *s <= '9')) ++s;
  const char c = *s ? *s++ : '\0';
  if (c == 'd' || c == 'x' || c == 'c') return 'd';
  if (c == 'f' || c == 'g' || c == 'e' || c == 'a') return 'f';
  if (c == 's') return 's';
  if (c == '%') return 0;
  throw "unknown conversion in a format";
}

template <class... Args>
struct FormatText {
  const char* text;
  consteval FormatText(const char* s) : text(s) {  // NOLINT: a literal is a format
    constexpr char kinds[] = {format_kind<std::remove_cvref_t<Args>>()..., '\0'};
    const char* kind = kinds;
    while (*s) {
      if (*s++ != '%') continue;
      const char asked = next_conversion(s);
      if (asked == 0) continue;
      if ((*kind == 'u' ? 'd' : *kind) != asked) throw "a conversion does not fit its argument";
      ++kind;
    }
    if (*kind) throw "an argument without a conversion";
  }
};

std::string format_args(const char* text, std::initializer_list<FormatArg> args);

template <class... Args>
std::string format(std::type_identity_t<FormatText<Args...>> text, const Args&... args) {
  return format_args(text.text, {format_arg(args)...});
}
// `text` with every `from`, which is not empty, as `to`.
std::string replace_all(std::string_view text, const std::string& from, const std::string& to);
// To a stream, or to stdout.
template <class... Args>
void print(std::FILE* stream, std::type_identity_t<FormatText<Args...>> text, const Args&... args) {
  std::fputs(format_args(text.text, {format_arg(args)...}).c_str(), stream);
}
template <class... Args>
void print(std::type_identity_t<FormatText<Args...>> text, const Args&... args) {
  std::fputs(format_args(text.text, {format_arg(args)...}).c_str(), stdout);
}

}  // namespace bcq
