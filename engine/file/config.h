// A configuration that came with a model, read key by key: each value with its type and its range, each error with the
// file and the key. Whoever obeys all keys of an object says so at the end (require_known).
#pragma once
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/file/json_fwd.h"

namespace bcq {

// What an integer of a configuration may be, both ends included. By default a size or a count: above the largest
// networks there are (a vocabulary of 250,880), and small enough that products of three do not overflow.
struct Range {
  int64_t min = 1, max = 1 << 20;
};

constexpr Range kWidth = {1, 1 << 17}, kDepth = {1, 1024};  // channels, blocks

class ConfigReader {
 public:
  // Names of one value, of which old and new files have one each. InputError when two are there and differ.
  using Keys = std::initializer_list<const char*>;

  // `object` outlives the reader; `where`: the file; `prefix` precedes keys in messages ("model_args."). InputError
  // unless it is an object.
  ConfigReader(const json& object, std::string where, std::string prefix = "");

  const std::string& where() const { return where_; }
  bool has(const char* key) const;  // is there, and is not null; asked for
  // The value, or null; asked for.
  const json& value(const char* key) const;

  // InputError when it is missing (in the forms without a fallback: null is missing), of another type or out of range.
  int64_t integer(Keys keys, Range range = {}) const;
  int64_t integer(Keys keys, Range range, int64_t fallback) const;
  // An integer that may also be a list of equal ones: the side of a square, [224, 224].
  int64_t side(const char* key, Range range, int64_t fallback) const;
  std::vector<int64_t> integers(const char* key, Range range, std::vector<int64_t> fallback) const;
  double number(const char* key, double min, double max, double fallback) const;
  std::vector<double> numbers(const char* key, double min, double max, std::vector<double> fallback) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, const std::string& fallback) const;
  std::vector<std::string> texts(const char* key) const;  // empty: not there
  // An object inside; an empty one when it is not there.
  ConfigReader object(const char* key) const;

  void ignore(Keys keys) const;  // keys that may be there with any value
  // Keys that may be there with these values alone (JSON texts, as "null|0").
  void only(std::initializer_list<std::pair<const char*, const char*>> fixed) const;
  // InputError when there are keys that nothing above was asked for.
  void require_known() const;

  [[noreturn]] void refuse(const char* key, const std::string& wanted) const;  // "FILE: KEY is VALUE, but must be ..."

 private:
  const json* found(Keys keys) const;  // null: none is there
  int64_t integer_of(const json& value, const char* key, Range range) const;
  double number_of(const json& value, const char* key, double min, double max) const;

  const json* object_;
  std::string where_, prefix_;
  mutable std::set<std::string> asked_;
};

}  // namespace bcq
