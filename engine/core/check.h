// Errors. Broken input or wiring throws once, where it is noticed, with the
// values that make it clear; main() prints the message and exits with the code
// of the error's class (see eval/cli.h). There are no return codes.
#pragma once
#include <stdexcept>

#include "engine/core/format.h"

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

// Throw Error / InputError / UsageError with a message as of format() unless `ok`.
template <class... Args>
void require(bool ok, std::type_identity_t<FormatText<Args...>> text, const Args&... args) {
  if (!ok) throw Error(format_args(text.text, {format_arg(args)...}));
}
template <class... Args>
void require_input(bool ok, std::type_identity_t<FormatText<Args...>> text, const Args&... args) {
  if (!ok) throw InputError(format_args(text.text, {format_arg(args)...}));
}
template <class... Args>
void require_usage(bool ok, std::type_identity_t<FormatText<Args...>> text, const Args&... args) {
  if (!ok) throw UsageError(format_args(text.text, {format_arg(args)...}));
}

}  // namespace bcq
