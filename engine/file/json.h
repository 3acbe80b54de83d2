// nlohmann/json with the two things it lacks here: refusal of duplicate keys, and
// errors that name the file and the key.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "engine/core/check.h"

namespace bcq {

using nlohmann::json;

// Parse text that came from `where` (a file name, for messages). Throws InputError on
// malformed JSON, invalid UTF-8, nesting deeper than 128 and duplicate keys.
json parse_json(const std::string& text, const std::string& where);
json read_json(const std::string& path);         // the same for a file
std::string read_file(const std::string& path);  // whole file; InputError when it cannot be read
// Write to a temporary file beside `path`, then rename: whole or not at all. Throws Error. `lasting`: on the disk
// before it is renamed, so that a crash of the machine leaves no empty file; not needed for what checks itself.
void write_file(const std::string& path, const std::string& text);
void write_file(const std::string& path, const std::vector<std::string_view>& pieces,  // one after the other
                bool lasting = true);
std::string quoted(const std::string& text);  // "text" for a message: escaped, shortened when long

// A required / optional member of an object; InputError names file, key and the type expected.
template <class T>
T get(const json& object, const char* key, const std::string& where) {
  require_input(object.is_object() && object.contains(key), "%s: key \"%s\" is missing", where, key);
  const json& value = object.at(key);
  // The library would also turn 2.5 and true into integers.
  const bool fits = !std::is_integral_v<T> || std::is_same_v<T, bool> || value.is_number_integer();
  try {
    if (fits) return value.get<T>();
  } catch (const json::exception&) {
  }
  throw InputError(format("%s: key \"%s\" has the wrong type: %s", where, key, value.dump()));
}
template <class T>
T get_or(const json& object, const char* key, T fallback, const std::string& where) {
  if (!object.is_object() || !object.contains(key) || object.at(key).is_null()) return fallback;
  return get<T>(object, key, where);
}

}  // namespace bcq
