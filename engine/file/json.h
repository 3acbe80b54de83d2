// nlohmann/json with what it lacks here: refusal of duplicate keys, depth and bytes that are not UTF-8, and errors
// that name the file and the key. Whole configurations are read by engine/file/config.h.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <utility>

#include "engine/core/check.h"
#include "engine/file/file.h"
#include "engine/file/json_fwd.h"

namespace bcq {

// A required / optional member of an object; InputError names file, key and the type expected.
template <class T>
T get(const json& object, const char* key, const std::string& where) {
  require_input(object.is_object() && object.contains(key), "%s: key \"%s\" is missing", where, key);
  const json& value = object.at(key);
  try {
    // The library would also turn 2.5, true and what does not fit into integers.
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      if (value.is_number_unsigned() && std::in_range<T>(value.get<uint64_t>())) return value.get<T>();
      if (value.is_number_integer() && !value.is_number_unsigned() && std::in_range<T>(value.get<int64_t>()))
        return value.get<T>();
    } else {
      return value.get<T>();
    }
  } catch (const json::exception&) {
  }
  throw InputError(format("%s: key \"%s\" has the wrong type or size: %s", where, key, shown(value)));
}
template <class T>
T get_or(const json& object, const char* key, T fallback, const std::string& where) {
  if (!object.is_object() || !object.contains(key) || object.at(key).is_null()) return fallback;
  return get<T>(object, key, where);
}

}  // namespace bcq
