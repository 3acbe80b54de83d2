// Tables of results in Markdown files, made anew from records.
#pragma once
#include <string>
#include <vector>

#include "engine/file/json_fwd.h"

namespace bcq {

// A row for every method and width, a column for every model (and text, where there are several): top-1 in % and KL to
// the float network, or perplexity; "without → with" where the records hold a method without and with one form of bias
// compensation. `rows` are those of a table or result records; `where` is their file, for messages.
std::string markdown_table(const json& rows, const std::string& where);

// The text of a Markdown file with another table between the lines "<!-- NAME -->" and "<!-- end -->". InputError
// naming `path`, the file, when it has no such lines.
std::string with_table(const std::string& markdown, const std::string& name, const std::string& table,
                       const std::string& path);

}  // namespace bcq
