// Values that are slow to make, kept in files between runs: decoded images and the indices of archives.
//
// One small file per value, not one large one per data set: a run that wants some of the images adds only those,
// models that crop alike share them, an entry is whole or absent because it is renamed into place, and two runs at
// once write the same bytes to the same name. Reading 150 KB costs some 50 us where decoding costs milliseconds.
// An entry names all it depends on, so one that is out of date is never found; remove the folder to reclaim the space.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace bcq {

// The value of `key` in the cache folder, or make() and then kept there. An entry that is truncated, damaged, of
// another key or not what the caller takes for valid counts as absent: its checksum shows damage, not who wrote it.
// folder "": make() alone. Error when the folder cannot be written.
std::string cached(const std::string& folder, const std::string& key, const std::function<std::string()>& make,
                   const std::function<bool(const std::string&)>& valid = nullptr);

// A sum in which one damaged word always shows; that of a piece may seed that of the next.
uint64_t checksum(std::string_view bytes, uint64_t seed);

// What tells a file from another one and from itself before a change: absolute path, size, times of the last change of
// contents and of anything else (which catches contents changed with the old time restored).
std::string file_stamp(const std::string& path);

}  // namespace bcq
