#include "data/image/cache.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/json.h"

namespace fs = std::filesystem;

namespace bcq {

// Eight bytes at a time through steps that are bijective in the sum so far.
uint64_t checksum(std::string_view bytes, uint64_t seed) {
  uint64_t h = seed ^ (bytes.size() * 0x9e3779b97f4a7c15u);
  for (size_t i = 0; i < bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(8, bytes.size() - i));
    h = (h ^ word) * 0xff51afd7ed558ccdu;
    h ^= h >> 32;
  }
  return h;
}

std::string cached(const std::string& folder, const std::string& key, const std::function<std::string()>& make,
                   const std::function<bool(const std::string&)>& valid) {
  if (folder.empty()) return make();
  const std::string name = format("%016x%016x", checksum(key, 1), checksum(key, 2));
  const fs::path place = fs::path(folder) / name.substr(0, 2);  // a folder of 50,000 files is slow to list
  const std::string path = (place / name.substr(2)).string();
  // The file: the key and a zero byte, the checksum of the value, the value.
  const std::string head = "bcq cache\n" + key + std::string(1, '\0');
  uint64_t sum = 0;
  if (fs::exists(path)) {
    std::string file;
    try {
      file = read_file(path);
    } catch (const InputError&) {  // removed meanwhile, or not readable: then it cannot be used
    }
    if (file.compare(0, head.size(), head) == 0 && file.size() >= head.size() + sizeof sum) {
      std::memcpy(&sum, file.data() + head.size(), sizeof sum);
      file.erase(0, head.size() + sizeof sum);
      if (sum == checksum(file, 0) && (!valid || valid(file))) return file;
    }
  }
  const std::string value = make();
  std::error_code failure;
  fs::create_directories(place, failure);
  require(!failure, "%s: cannot be made for the cache: %s", place, failure.message());
  sum = checksum(value, 0);
  write_file(path, {head, {reinterpret_cast<const char*>(&sum), sizeof sum}, value}, /*lasting=*/false);
  return value;
}

std::string file_stamp(const std::string& path) {
  struct stat s = {};
  require_input(::stat(path.c_str(), &s) == 0, "%s: cannot be opened: %s", path, std::strerror(errno));
  return format("%s\n%d bytes, %d.%09d, %d.%09d", fs::absolute(path).lexically_normal(), s.st_size, s.st_mtim.tv_sec,
                s.st_mtim.tv_nsec, s.st_ctim.tv_sec, s.st_ctim.tv_nsec);
}

}  // namespace bcq
