#include "engine/file/config.h"

#include <algorithm>
#include <sstream>

#include "engine/file/json.h"

namespace bcq {
namespace {

const json kNull, kEmpty = json::object();

}  // namespace

ConfigReader::ConfigReader(const json& object, std::string where, std::string prefix)
    : object_(&object), where_(std::move(where)), prefix_(std::move(prefix)) {
  require_input(object.is_object(), "%s: %smust be a JSON object, but is %s", where_,
                prefix_.empty() ? "" : prefix_.substr(0, prefix_.size() - 1) + " ", shown(object));
}

const json& ConfigReader::value(const char* key) const {
  asked_.insert(key);
  const auto at = object_->find(key);
  return at == object_->end() ? kNull : *at;
}

bool ConfigReader::has(const char* key) const { return !value(key).is_null(); }

void ConfigReader::refuse(const char* key, const std::string& wanted) const {
  throw InputError(format("%s: %s%s is %s, but must be %s", where_, prefix_, key, shown(value(key)), wanted));
}

const json* ConfigReader::found(Keys keys) const {
  const char* first = nullptr;
  for (const char* key : keys) {
    if (!has(key)) continue;
    require_input(!first || value(first) == value(key), "%s: %s%s is %s, but %s%s, another name of it, is %s", where_,
                  prefix_, first ? first : "", shown(value(first ? first : key)), prefix_, key, shown(value(key)));
    if (!first) first = key;
  }
  return first ? &value(first) : nullptr;
}

int64_t ConfigReader::integer_of(const json& value, const char* key, Range range) const {
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= std::numeric_limits<int64_t>::max()
                                               : value.is_number_integer();
  const int64_t n = fits ? value.get<int64_t>() : 0;
  if (!fits || n < range.min || n > range.max) refuse(key, format("an integer from %d to %d", range.min, range.max));
  return n;
}

double ConfigReader::number_of(const json& value, const char* key, double min, double max) const {
  if (!value.is_number() || value.get<double>() < min || value.get<double>() > max)
    refuse(key, format("a number from %g to %g", min, max));
  return value.get<double>();
}

int64_t ConfigReader::integer(Keys keys, Range range) const {
  const json* at = found(keys);
  require_input(at, "%s: key \"%s%s\" is missing", where_, prefix_, *keys.begin());
  return integer(keys, range, 0);
}

int64_t ConfigReader::integer(Keys keys, Range range, int64_t fallback) const {
  const json* at = found(keys);
  if (!at) return fallback;
  const char* key = *std::find_if(keys.begin(), keys.end(), [&](const char* k) { return has(k); });
  return integer_of(*at, key, range);
}

int64_t ConfigReader::side(const char* key, Range range, int64_t fallback) const {
  const json& found = value(key);
  if (!found.is_array()) return integer({key}, range, fallback);
  const std::vector<int64_t> sides = integers(key, range, {});
  if (sides.empty() || sides.size() > 2 || sides.front() != sides.back()) refuse(key, "one number, or two equal ones");
  return sides[0];
}

std::vector<int64_t> ConfigReader::integers(const char* key, Range range, std::vector<int64_t> fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_array()) refuse(key, "a list of integers");
  std::vector<int64_t> all;
  for (const json& one : value(key)) all.push_back(integer_of(one, key, range));
  return all;
}

double ConfigReader::number(const char* key, double min, double max, double fallback) const {
  return has(key) ? number_of(value(key), key, min, max) : fallback;
}

std::vector<double> ConfigReader::numbers(const char* key, double min, double max, std::vector<double> fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_array()) return {number(key, min, max, 0)};
  std::vector<double> all;
  for (const json& one : value(key)) all.push_back(number_of(one, key, min, max));
  return all;
}

bool ConfigReader::flag(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_boolean()) refuse(key, "true or false");
  return value(key).get<bool>();
}

std::string ConfigReader::text(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!value(key).is_string()) refuse(key, "a string");
  return value(key).get<std::string>();
}

std::vector<std::string> ConfigReader::texts(const char* key) const {
  std::vector<std::string> all;
  if (!has(key)) return all;
  if (!value(key).is_array()) refuse(key, "a list of strings");
  for (const json& one : value(key)) {
    if (!one.is_string()) refuse(key, "a list of strings");
    all.push_back(one.get<std::string>());
  }
  return all;
}

ConfigReader ConfigReader::object(const char* key) const {
  return ConfigReader(has(key) ? value(key) : kEmpty, where_, prefix_ + key + ".");
}

void ConfigReader::ignore(Keys keys) const { asked_.insert(keys.begin(), keys.end()); }

void ConfigReader::only(std::initializer_list<std::pair<const char*, const char*>> fixed) const {
  for (const auto& [key, wanted] : fixed) {
    asked_.insert(key);
    bool fits = !object_->contains(key);
    std::istringstream choices(wanted);
    for (std::string choice; !fits && std::getline(choices, choice, '|');) fits = value(key) == json::parse(choice);
    if (!fits) refuse(key, std::string(wanted) + ": others are not supported");
  }
}

void ConfigReader::require_known() const {
  for (const auto& [key, value] : object_->items())
    require_input(asked_.count(key), "%s: %s%s is not supported", where_, prefix_, key);
}

}  // namespace bcq
