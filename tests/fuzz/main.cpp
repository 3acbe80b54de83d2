// libFuzzer's entry points.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "engine/core/parallel.h"
#include "engine/core/process.h"
#include "tests/fuzz/fuzz.h"

namespace bcq::fuzz {
namespace {

namespace fs = std::filesystem;

struct Entry {
  void (*run)(const std::string&);
  std::vector<std::string> (*seeds)();
};
std::map<std::string, Entry>& harnesses() {
  static std::map<std::string, Entry> all;
  return all;
}
Entry chosen;

struct Place {
  fs::path path = fs::path(fs::exists("/dev/shm") ? "/dev/shm" : "/tmp") / format("bcq-fuzz-%d", ::getpid());
  Place() { fs::create_directories(path); }
  ~Place() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};
const fs::path& place() {
  static Place place;
  return place.path;
}

}  // namespace

Harness::Harness(const char* name, void (*run)(const std::string&), std::vector<std::string> (*seeds)()) {
  harnesses()[name] = {run, seeds};
}

void show(const char* refusal) {
  static const bool shown = std::getenv("BCQ_FUZZ_SHOW") != nullptr;
  if (shown) print(stderr, "%s\n", refusal);
}

std::string path_of(const std::string& name) { return (place() / name).string(); }

std::string put(const std::string& name, const std::string& bytes) {
  const fs::path path = place() / name;
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) {
    fs::create_directories(path.parent_path());
    file = std::fopen(path.c_str(), "wb");
  }
  if (!file || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::abort();
  std::fclose(file);
  return path.string();
}

void restart() {
  fs::remove_all(place());
  fs::create_directories(place());
}

std::vector<std::string> parts(const std::string& input, size_t n) {
  std::vector<std::string> parts(1);
  for (const char c : input)
    if (c == '\0' && parts.size() < n)
      parts.emplace_back();
    else
      parts.back() += c;
  parts.resize(n);
  return parts;
}

std::string safetensors(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string header_of(const std::string& path, std::string* data) {
  const std::string file = read_file(path);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  if (data) *data = file.substr(8 + length);
  return file.substr(8, length);
}

void edit(std::string& data, const std::string& edits) {
  for (size_t i = 0; i + 4 <= edits.size() && !data.empty(); i += 4) {
    const auto byte = [&](size_t k) { return static_cast<size_t>(static_cast<unsigned char>(edits[i + k])); };
    data[(byte(0) << 16 | byte(1) << 8 | byte(2)) % data.size()] = edits[i + 3];
  }
}

}  // namespace bcq::fuzz

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  using namespace bcq;
  const char* name = std::getenv("BCQ_FUZZ");
  const auto found = fuzz::harnesses().find(name ? name : "");
  if (found == fuzz::harnesses().end()) {
    for (const auto& entry : fuzz::harnesses()) print("%s\n", entry.first);
    std::exit(name ? 2 : 0);
  }
  tune_process();
  set_threads(1);
  fuzz::chosen = found->second;
  const std::string last = (*argv)[*argc - 1];
  int n = 0;
  if (std::filesystem::is_directory(last))
    for (const std::string& seed : fuzz::chosen.seeds()) write_file(last + format("/seed-%03d", n++), {seed}, false);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bcq::fuzz::chosen.run(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
