// Tables of results in Markdown files, made anew from records.
#pragma once
#include <map>
#include <string>

#include "engine/file/json_fwd.h"

namespace bcq {

// A row for every method and width, a column for every model (and text, where there are several): top-1 in % and KL to
// the float network, or perplexity; "without → with" where the records hold a method without and with one form of bias
// compensation. `rows` are those of a table or result records; `where` is their file, for messages.
std::string markdown_table(const json& rows, const std::string& where);

// The text of a Markdown file in which, between every line "<!-- NAME ... -->" all names of which are in `rows` and the
// line "<!-- end -->" after it, a table of these rows stands. InputError naming `path`, the file, when a name is in no
// such line.
std::string with_tables(const std::string& markdown, const std::map<std::string, json>& rows, const std::string& path);

}  // namespace bcq
