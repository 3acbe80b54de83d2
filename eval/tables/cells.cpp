#include "eval/tables/cells.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <vector>

#include "data/image/cache.h"
#include "engine/core/check.h"

namespace bcq {

namespace fs = std::filesystem;

namespace {

json versioned(json settings) {
  settings["version"] = version();
  return settings;
}

// The members that differ: "limit, version".
std::string differences(const json& a, const json& b) {
  std::string names;
  json all = a;
  all.update(b);
  for (const auto& [key, value] : all.items())
    if (a.value(key, json()) != b.value(key, json())) names += (names.empty() ? "" : ", ") + key;
  return names;
}

}  // namespace

Cells::Cells(std::string folder) : folder_(std::move(folder)) { fs::create_directories(folder_); }

std::string Cells::path_of(const std::string& name) const { return (fs::path(folder_) / (name + ".json")).string(); }

json Cells::find(const std::string& name, const json& settings, const Warn& warn) const {
  const std::string path = path_of(name);
  if (!fs::exists(path)) return nullptr;
  try {
    json record = read_json(path);
    const json kept = get<json>(record, "settings", path), wanted = versioned(settings);
    require_input(kept.is_object(), "%s: key \"settings\" is not an object", path);
    if (kept == wanted) return record;
    warn(format("%s is of another run (%s): it is measured again", path, differences(kept, wanted)));
  } catch (const InputError& e) {
    warn(format("%s: it is measured again", e.what()));
  }
  return nullptr;
}

void Cells::keep(const std::string& name, const json& settings, json record) const {
  record["settings"] = versioned(settings);
  write_file(path_of(name), record.dump(2) + "\n");
}

void TableColumn::attempt(ProgressLine& progress, const std::function<void()>& measure) {
  if (path.empty()) return;
  try {
    fingerprint = bcq::fingerprint(path);
    measure();
  } catch (const UsageError&) {
    throw;
  } catch (const Error& e) {
    progress.finish();
    failure = e.what();
    print(stderr, "%s failed: %s\n", label, e.what());
  }
}

const char* TableColumn::state(const json& record) const {
  return !record.is_null() ? "measured" : failure.empty() ? "not run" : "failed";
}

void TableColumn::require_measured() const {
  if (!failure.empty()) throw Incomplete(label + " could not be measured: " + failure);
}

std::string fingerprint(const std::string& model) {
  const fs::path folder = fs::is_directory(model) ? fs::path(model) : fs::path(model).parent_path();
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder.empty() ? "." : folder))
    if (entry.path().extension() == ".safetensors" || entry.path().extension() == ".json")
      files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  uint64_t hash = 0;
  std::vector<char> piece(1 << 20);
  for (const fs::path& file : files) {
    hash = checksum(file.filename().string(), hash);
    std::ifstream in(file, std::ios::binary);
    while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0)
      hash = checksum({piece.data(), static_cast<size_t>(in.gcount())}, hash);
    require_input(in.eof(), "%s: cannot be read", file);
  }
  return format("%016x", hash);
}

}  // namespace bcq
