// JSON as the engine accepts it. Refuses what nlohmann/json would let pass (duplicate keys, unlimited depth) and says
// what is wrong before it would, in words that name the file (invalid UTF-8).
#include "engine/file/json.h"

#include <utf8proc.h>

#include <vector>

namespace bcq {
namespace {

constexpr int kMaxDepth = 128;

// The parser's own message without its exception number, and without the token it had read
// so far, which can be as long as the file.
std::string plain_message(const json::exception& error) {
  std::string what = error.what();
  const size_t bracket = what.find("] ");
  if (bracket != std::string::npos) what.erase(0, bracket + 2);
  constexpr size_t kLongest = 300;
  if (what.size() > kLongest) what = what.substr(0, kLongest) + "...";
  return what;
}

// The parser calls it for every value, key and bracket, in order; `root` is the result. (nlohmann's parse() with a
// callback scans a whole array or object each time an object inside it ends, which is quadratic.)
struct Builder : json::json_sax_t {
  explicit Builder(const std::string& file) : where(file) {}
  const std::string& where;
  json root;
  std::vector<json*> open;  // arrays and objects, the outermost first
  json* value = &root;      // where the next one goes, unless into an array

  json* add(json v) {
    if (!open.empty() && open.back()->is_array()) return &open.back()->emplace_back(std::move(v));
    *value = std::move(v);
    return value;
  }
  bool start(json v) {
    require_input(open.size() < kMaxDepth, "%s: JSON is nested deeper than %d", where, kMaxDepth);
    open.push_back(add(std::move(v)));
    return true;
  }
  bool end() {
    open.pop_back();
    return true;
  }
  bool null() override { return add(nullptr); }
  bool boolean(bool v) override { return add(v); }
  bool number_integer(int64_t v) override { return add(v); }
  bool number_unsigned(uint64_t v) override { return add(v); }
  bool number_float(double v, const std::string&) override { return add(v); }
  bool string(std::string& v) override { return add(std::move(v)); }
  bool binary(json::binary_t&) override { return false; }  // not in JSON's text
  bool start_array(size_t) override { return start(json::array()); }
  bool start_object(size_t) override { return start(json::object()); }
  bool end_array() override { return end(); }
  bool end_object() override { return end(); }
  bool key(std::string& name) override {
    const auto [at, fresh] = open.back()->get_ref<json::object_t&>().try_emplace(name);
    require_input(fresh, "%s: key %s appears twice in the same JSON object", where, bcq::quoted(name));
    value = &at->second;
    return true;
  }
  bool parse_error(size_t, const std::string&, const json::exception& error) override {
    throw InputError(format("%s: not valid JSON: %s", where, plain_message(error)));
  }
};

}  // namespace

int64_t invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    utf8proc_ssize_t length = 1;
    utf8proc_int32_t point = 0;  // unused
    const auto* rest = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + i;
    if (*rest >= 0x80) length = utf8proc_iterate(rest, static_cast<utf8proc_ssize_t>(text.size() - i), &point);
    if (length < 0) return static_cast<int64_t>(i);
    i += static_cast<size_t>(length);
  }
  return -1;
}

std::string dump(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

std::string quoted(const std::string& text) {
  constexpr size_t kLongest = 120;
  std::string cut = text.substr(0, kLongest);
  if (cut.size() < text.size()) {
    // A character that was cut in two would read as garbage.
    const int64_t invalid = invalid_utf8(cut);
    if (invalid >= 0 && invalid + 4 > std::ssize(cut)) cut.resize(static_cast<size_t>(invalid));
    cut += "...";
  }
  return dump(json(cut));
}

std::string shown(const json& value) {
  constexpr size_t kLongest = 80;
  const std::string text = dump(value);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

json parse_json(const std::string& text, const std::string& where) {
  const int64_t invalid = invalid_utf8(text);
  require_input(invalid < 0, "%s: byte %d is not valid UTF-8", where, invalid);
  const size_t nul = text.find('\0');  // the parser would take it for the end of the text
  require_input(nul == std::string::npos, "%s: not valid JSON: byte %d is zero", where, nul);
  Builder builder(where);
  json::sax_parse(text, &builder);
  return std::move(builder.root);
}

json read_json(const std::string& path) { return parse_json(read_file(path), path); }

}  // namespace bcq
