// The programs from outside: run one, look at its exit code, what it says and what it leaves.
#pragma once
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>

#include "engine/file/json.h"
#include "engine/file/safetensors.h"

namespace bcq::cli {

namespace fs = std::filesystem;

inline const std::string kMini = "data/mini";

struct Result {
  int code;
  std::string out, err;
};

struct Folder {
  fs::path path;
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "bcq-cli-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

// environment: "NAME=value " in front of the command.
inline Result run(const std::string& command, const std::string& environment = "") {
  const char* bin = std::getenv("BCQ_BIN");
  Folder folder;
  const std::string line =
      environment + (bin ? bin : "build/bin") + "/" + command + " >" + folder / "out" + " 2>" + folder / "err";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder / "out"), read_file(folder / "err")};
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The command fails with this code and says all of these on stderr.
inline void check_failure(const std::string& command, int code, std::initializer_list<const char*> says) {
  const Result r = run(command);
  CAPTURE(command);
  CAPTURE(r.err);
  CHECK(r.code == code);
  for (const char* part : says) CHECK_MESSAGE(contains(r.err, part), part);
}

// A copy of the embedded ViT whose tensors `change` edits.
template <class F>
std::string changed_vit(const Folder& folder, F change) {
  const std::string to = folder / "vit";
  fs::create_directory(to);
  fs::copy(kMini + "/vit/config.json", to + "/config.json");
  const SafeTensors file = SafeTensors::open(kMini + "/vit/model.safetensors");
  std::map<std::string, Tensor> tensors;
  for (const auto& entry : file.tensors()) tensors[entry.first] = file.get(entry.first).clone();
  change(tensors);
  write_safetensors(to + "/model.safetensors", tensors);
  return to;
}

// A record without what the machine adds to it: times, threads, memory.
inline json result_of(json record) {
  for (const char* key : {"seconds", "calibration", "walk_seconds", "evaluation_seconds", "threads", "peak_rss_mb"})
    record.erase(key);
  return record;
}
inline json result_of(const std::string& path) { return result_of(read_json(path)); }

// The rows of a table's JSON, whose records are so.
inline json undisturbed(json rows) {
  for (json& row : rows) row["record"] = row["record"].is_null() ? json() : result_of(row["record"]);
  return rows;
}

inline const std::string kVit = "imagenet --model data/mini/vit --data data/mini/images/val ";

}  // namespace bcq::cli
