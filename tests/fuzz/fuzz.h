// What libFuzzer's harnesses share. One program holds all of them; BCQ_FUZZ names the one to run. Each makes files of
// an input, in memory, and gives them to a reader: what is wrong with them must end in InputError or UsageError,
// anything else is a fault. Seeds are written into the folder that is the program's last argument.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "engine/core/check.h"
#include "engine/file/file.h"

namespace bcq::fuzz {

struct Harness {
  Harness(const char* name, void (*run)(const std::string& input), std::vector<std::string> (*seeds)());
};

std::string path_of(const std::string& name);  // of a file in this process's folder, or of "" itself
std::string put(const std::string& name, const std::string& bytes);  // write it, and the folders above; its path
void restart();                                                      // an empty folder

// An input is parts that end in zero bytes; the last takes the rest. Always `n`; what is missing is empty.
std::vector<std::string> parts(const std::string& input, size_t n);
inline int choice(std::string& input, int n) {  // takes the first byte
  const int c = input.empty() ? 0 : static_cast<unsigned char>(input[0]) % n;
  input.erase(0, 1);
  return c;
}
inline std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) text += (i ? std::string(1, '\0') : "") + parts[i];
  return text;
}

// A safetensors file of a header and data, with the length of the header right.
std::string safetensors(const std::string& header, const std::string& data);
// A file's header; with `data`, that too.
std::string header_of(const std::string& path, std::string* data = nullptr);
// Bytes of `data` exchanged: of `edits` three give a place, the fourth the value.
void edit(std::string& data, const std::string& edits);

void show(const char* refusal);  // printed where BCQ_FUZZ_SHOW is set

template <class F>
void refused_or_read(const F& f) {
  try {
    f();
  } catch (const InputError& e) {
    show(e.what());
  } catch (const UsageError& e) {
    show(e.what());
  }
}

}  // namespace bcq::fuzz
