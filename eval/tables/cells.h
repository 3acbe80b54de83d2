// What the tables share: columns, of which one that cannot be measured does not end the others, and finished cells, a
// JSON file each, so that a run that was stopped goes on where it was.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "engine/file/json.h"
#include "eval/cli.h"

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

// A checkpoint whose cells are measured.
struct TableColumn {
  std::string label;
  std::string path;         // empty: not there
  int paper = -1;           // index into the paper's columns
  std::string fingerprint;  // of the checkpoint, set by attempt()
  std::string failure;      // why it could not be measured

  // Runs measure() when the checkpoint is there. An error in it or in its data ends measure() alone: it is said, and
  // kept as `failure`.
  void attempt(ProgressLine& progress, const std::function<void()>& measure);
  // Of a cell: "measured", "failed" or "not run".
  const char* state(const json& record) const;
  // Throws Incomplete when the column failed, once the table is printed.
  void require_measured() const;
};

// Of the contents of a model's files: *.safetensors and *.json in its folder, or beside it. 16 hex digits.
std::string fingerprint(const std::string& model);

}  // namespace bcq
