// JSON as the engine accepts and writes it: nlohmann/json without its definitions, which take long to compile. What
// reads or makes values includes engine/file/json.h.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace bcq {

using nlohmann::json;

// Byte offset of the first byte that is not valid UTF-8 (RFC 3629: no surrogates, no overlong forms, nothing above
// U+10FFFF), or -1.
int64_t invalid_utf8(std::string_view text);

// Parse text that came from `where` (a file name, for messages). Throws InputError on
// malformed JSON, invalid UTF-8, nesting deeper than 128 and duplicate keys.
json parse_json(const std::string& text, const std::string& where);
json read_json(const std::string& path);  // the same for a file

// As text; bytes that are not UTF-8 (names of files) become U+FFFD. indent -1: on one line.
std::string dump(const json& value, int indent = -1);
std::string quoted(const std::string& text);  // "text" for a message: escaped, shortened when long
std::string shown(const json& value);         // for a message: shortened when long

}  // namespace bcq
