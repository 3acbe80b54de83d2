#include "engine/check.h"

#include <cstdarg>
#include <cstdio>

namespace bcq {
namespace {

std::string vformat(const char* fmt, va_list args) {
  va_list again;
  va_copy(again, args);
  const int n = std::vsnprintf(nullptr, 0, fmt, again);
  va_end(again);
  std::string s(static_cast<size_t>(n < 0 ? 0 : n), '\0');
  std::vsnprintf(s.data(), s.size() + 1, fmt, args);
  return s;
}

}  // namespace

// The body of the three require functions; va_start needs the variadic function itself.
#define THROW_UNLESS(ok, fmt, ErrorType)       \
  if (ok) return;                              \
  va_list args;                                \
  va_start(args, fmt);                         \
  const std::string what = vformat(fmt, args); \
  va_end(args);                                \
  throw ErrorType(what)

std::string format(const char* fmt, ...) {
  va_list args;
  va_start(args, fmt);
  std::string s = vformat(fmt, args);
  va_end(args);
  return s;
}

void require(bool ok, const char* fmt, ...) { THROW_UNLESS(ok, fmt, Error); }
void require_input(bool ok, const char* fmt, ...) { THROW_UNLESS(ok, fmt, InputError); }
void require_usage(bool ok, const char* fmt, ...) { THROW_UNLESS(ok, fmt, UsageError); }

}  // namespace bcq
