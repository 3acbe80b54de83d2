// The finished cells of a table: a JSON file each, so that a run that was stopped goes on where it was.
#pragma once
#include <cstdint>
#include <string>

#include "engine/json.h"
#include "engine/progress.h"

namespace bcq {

class Cells {
 public:
  explicit Cells(std::string folder);

  // What keep() was given for `name` under exactly these settings by this version of the program; null when there
  // is nothing. A file of other settings, of another version or that cannot be read is said through `warn`, once, and
  // counts as nothing.
  json find(const std::string& name, const json& settings, const Warn& warn) const;
  void keep(const std::string& name, const json& settings, json record) const;

 private:
  std::string path_of(const std::string& name) const;
  std::string folder_;
};

// Of the contents of a model's files: *.safetensors and *.json in its folder, or beside it. 16 hex digits.
std::string fingerprint(const std::string& model);

}  // namespace bcq
