// What is shown of result records: their fields as numbers and texts, what their rows are called, and tables of them in
// Markdown files, made anew.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/file/json_fwd.h"

namespace bcq {

// A field of a record: NaN where it is no number; "" where there is none, JSON where it is no text.
double number_in(const json& record, const char* key);
std::string text_in(const json& record, const char* key);
// A number with so many decimals, "" for NaN and infinity.
std::string number_text(double x, int decimals);

// Results are of imagenet (top-1) and of perplexity.
bool is_vision(const json& record);
bool is_result(const json& record);
// "ptq4vit W4A4 + BC (position)", "gptq 3 bit g128".
std::string label_of(const json& record);

// The names in lines "<!-- NAME.json ... -->" of a Markdown file, each once. InputError naming `path`, the file, when
// its lines end in CR LF.
std::vector<std::string> tables_in(const std::string& markdown, const std::string& path);

// The text of a Markdown file with new tables: what stands between a line "<!-- NAME ... -->" and the next line
// "<!-- end -->" becomes the table of rows.at(NAME). Lines whose names are not in `rows` are left. InputError naming
// `path`, the file, when only some names of a line are in `rows`, a line has no end, or a name in `rows` has no line.
std::string with_tables(const std::string& markdown, const std::map<std::string, json>& rows, const std::string& path);

}  // namespace bcq
