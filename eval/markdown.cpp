#include "eval/markdown.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <set>
#include <sstream>
#include <vector>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "eval/results.h"

namespace bcq {
namespace {

// What stands at one place of a table.
struct Entry {
  std::string row, column, form, figure;  // form: of bias compensation, "" without
};

// As many digits as say something: ".0072", ".136", "1.58".
std::string kl_text(double kl) {
  const std::string text = number_text(kl, kl < .01 ? 4 : kl < 1 ? 3 : 2);
  return text.starts_with("0.") ? text.substr(1) : text;
}

std::string figure_of(const json& row) {
  const double figure = number_in(row, "ours"), error = number_in(row, "standard_error");
  const json paired = row.value("paired", json());
  const double kl = paired.is_object() ? number_in(paired, "kl") : NAN;
  const std::string text = number_text(figure, error >= .5 || figure >= 1000 ? 1 : 2);
  return std::isfinite(kl) && kl > 0 ? text + ", " + kl_text(kl) : text;
}

// "4/8" as "W4A8", "3g128" as "3 bits, groups of 128".
std::string width_text(const std::string& width) {
  if (const size_t slash = width.find('/'); slash != std::string::npos)
    return "W" + width.substr(0, slash) + "A" + width.substr(slash + 1);
  const size_t g = width.find('g');
  return width.substr(0, g) + " bits" + (g == std::string::npos ? "" : ", groups of " + width.substr(g + 1));
}

// A result record as a row of a table.
json as_row(const json& record) {
  json row = {{"method", label_of(record)}, {"model", text_in(record, "model")}, {"text", text_in(record, "text")}};
  const bool vision = is_vision(record);
  row["ours"] = number_in(record, vision ? "top1" : "perplexity");
  row["standard_error"] = number_in(record, vision ? "top1_se" : "perplexity_se");
  row["paired"] = record.value("paired", json());
  return row;
}

Entry entry_of(const json& row) {
  Entry entry{text_in(row, "method"), text_in(row, "model"), "", figure_of(row)};
  if (const std::string text = text_in(row, "text"); !text.empty()) entry.column += " on " + text;
  if (const size_t bc = entry.row.find(" + BC ("); bc != std::string::npos) {
    entry.form = entry.row.substr(bc, entry.row.find(')', bc) + 1 - bc);
    entry.row.erase(bc, entry.form.size());
  }
  const std::string width = text_in(row, "width");
  if (!width.empty() && !width.starts_with("32")) entry.row += " " + width_text(width);
  return entry;
}

const std::string kEnd = "<!-- end -->";

// NAME.json ... of a line "<!-- NAME.json ... -->"; none of another line.
std::vector<std::string> names_in(const std::string& line) {
  if (!line.starts_with("<!-- ") || !line.ends_with(".json -->")) return {};
  std::istringstream words(line.substr(5, line.size() - 9));
  return {std::istream_iterator<std::string>(words), {}};
}

// In the order they come.
void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::string line_of(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += " " + cell + (cell.empty() ? "|" : " |");
  return line + "\n";
}

}  // namespace

std::string markdown_table(const json& rows, const std::string& where) {
  std::vector<Entry> entries;
  std::set<std::string> forms;
  for (const json& row : rows) {
    require_input(row.is_object() && (row.contains("ours") || is_result(row)), "%s: neither a table nor results",
                  where);
    entries.push_back(entry_of(row.contains("ours") ? row : as_row(row)));
    if (!entries.back().form.empty()) forms.insert(entries.back().form);
  }
  std::vector<std::string> names, columns;
  std::map<std::pair<std::string, std::string>, std::array<std::string, 2>> figures;  // without, with compensation
  for (Entry& entry : entries) {
    if (forms.size() > 1) entry.row += entry.form;
    add_once(names, entry.row);
    add_once(columns, entry.column);
    std::string& figure = figures[{entry.row, entry.column}][forms.size() == 1 && !entry.form.empty()];
    require_input(figure.empty(), "%s: two results of %s%s on %s", where, entry.row, entry.form, entry.column);
    figure = entry.figure;
  }
  std::string table = "| " + line_of(columns) + "|---|";
  for (size_t i = 0; i < columns.size(); ++i) table += "---|";
  table += "\n";
  for (const std::string& name : names) {
    std::vector<std::string> cells = {name};
    for (const std::string& column : columns) {
      const auto& [without, with] = figures[{name, column}];
      cells.push_back(without + (without.empty() || with.empty() ? "" : " → ") + with);
    }
    table += line_of(cells);
  }
  return table;
}

std::string with_tables(const std::string& markdown, const std::map<std::string, json>& rows, const std::string& path) {
  std::istringstream lines(markdown);
  std::string made;
  std::set<std::string> used;
  for (std::string line; std::getline(lines, line);) {
    made += line + "\n";
    const std::vector<std::string> names = names_in(line);
    if (names.empty() || !std::all_of(names.begin(), names.end(), [&](const auto& n) { return rows.contains(n); }))
      continue;
    json all = json::array();
    std::string where;
    for (const std::string& name : names) {
      used.insert(name);
      where += (where.empty() ? "" : ", ") + name;
      for (const json& row : rows.at(name)) all.push_back(row);
    }
    made += "\n" + markdown_table(all, where) + "\n" + kEnd + "\n";
    while (line != kEnd)
      require_input(!!std::getline(lines, line), "%s: no line \"%s\" follows <!-- %s -->", path, kEnd, where);
  }
  for (const auto& [name, of_name] : rows)
    require_input(used.contains(name),
                  "%s: no table is made of %s and of records that are given: put the lines \"<!-- %s -->\" and \"%s\" "
                  "where it shall stand",
                  path, name, name, kEnd);
  return made;
}

}  // namespace bcq
