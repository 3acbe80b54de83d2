// What is made of a program's option table besides --help: its manual page and bash's completion.
#pragma once
#include <string>
#include <vector>

namespace bcq {

// An option of a program: names, what follows ("FILE"; nothing for a flag), help.
struct Arg {
  const char *flags, *type;
  std::string help;
  const char* group = "Options";
  bool required = false;
};

// For man(1), in the roff macros of man(7). `examples` as --help shows them.
std::string man_page(const std::string& program, const std::string& description, const std::string& examples,
                     const std::vector<Arg>& args);
// A script for bash: names of options, the words an option takes ("{float,quantized}"), else file names.
std::string bash_completion(const std::string& program, const std::vector<Arg>& args);

}  // namespace bcq
