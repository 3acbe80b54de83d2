// Errors. Broken input or wiring throws once, where it is noticed, with the
// values that make it clear; main() prints the message and exits with the code
// of the error's class (see eval/cli.h). There are no return codes.
#pragma once
#include <stdexcept>
#include <string>

namespace bcq {

// The run cannot go on: wrong wiring, numbers that stopped being finite.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// A model or data file is not what it has to be. Names the file and the tensor or line.
struct InputError : Error {
  using Error::Error;
};
// The command line asks for something that does not exist or fit together.
struct UsageError : Error {
  using Error::Error;
};

// printf into a std::string.
std::string format(const char* fmt, ...) __attribute__((format(printf, 1, 2)));

// Throw Error / InputError / UsageError with a printf message unless `ok`.
void require(bool ok, const char* fmt, ...) __attribute__((format(printf, 2, 3)));
void require_input(bool ok, const char* fmt, ...) __attribute__((format(printf, 2, 3)));
void require_usage(bool ok, const char* fmt, ...) __attribute__((format(printf, 2, 3)));

}  // namespace bcq
