// Tables of results in Markdown files, made anew from records.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/file/json_fwd.h"

namespace bcq {

// A row for every method and width, a column for every model (and text, where there are several): top-1 in % and KL to
// the float network, or perplexity; "without → with" where the records hold a method without and with one form of bias
// compensation. Of records of bench and bench_peers.py: a row for every work, a column for every precision or engine,
// with milliseconds and a ratio. `rows` are those of a table or records; `where` is their file, for messages.
std::string markdown_table(const json& rows, const std::string& where);

// The names in lines "<!-- NAME.json ... -->" of a Markdown file, each once. InputError naming `path`, the file, when
// its lines end in CR LF.
std::vector<std::string> tables_in(const std::string& markdown, const std::string& path);

// The text of a Markdown file with new tables: what stands between a line "<!-- NAME ... -->" and the next line
// "<!-- end -->" becomes the table of rows.at(NAME). Lines whose names are not in `rows` are left. InputError naming
// `path`, the file, when only some names of a line are in `rows`, a line has no end, or a name in `rows` has no line.
std::string with_tables(const std::string& markdown, const std::map<std::string, json>& rows, const std::string& path);

}  // namespace bcq
