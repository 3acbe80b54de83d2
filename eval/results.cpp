#include "eval/results.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iomanip>
#include <iterator>
#include <set>
#include <sstream>

#include "engine/core/check.h"
#include "engine/file/json.h"

namespace bcq {

double number_in(const json& record, const char* key) {
  const auto found = record.find(key);
  return found != record.end() && found->is_number() ? found->get<double>() : NAN;
}
std::string text_in(const json& record, const char* key) {
  const auto found = record.find(key);
  return found == record.end() || found->is_null() ? ""
         : found->is_string()                      ? found->get<std::string>()
                                                   : found->dump();
}

std::string number_text(double x, int decimals) {
  std::ostringstream text;
  if (std::isfinite(x)) text << std::fixed << std::setprecision(decimals) << x;
  return text.str();
}

bool is_vision(const json& record) { return record.contains("top1"); }
bool is_result(const json& record) {
  return record.is_object() && (is_vision(record) || record.contains("perplexity")) && record.contains("model");
}

std::string label_of(const json& record) {
  std::string label = text_in(record, "method");
  const double bits = number_in(record, "wbits"), group = number_in(record, "groupsize");
  if (bits < 32) {
    const double abits = number_in(record, "abits");
    label += is_vision(record) || abits < 32 ? format(" W%.0f", bits) + (abits > 0 ? format("A%.0f", abits) : "")
                                             : format(" %.0f bit", bits);
    if (group > 0) label += format(" g%.0f", group);
  }
  if (const std::string inside = text_in(record, "billm_inside"); !inside.empty() && inside != "official")
    label += " " + inside;
  const std::string bc = text_in(record, "bc");
  const bool part = text_in(record, "method") == "joint" && bc == "channel";  // of the method
  if (!bc.empty() && bc != "none" && !part) label += " + BC (" + bc + ")";
  return record.value("qwt", json()) == true ? label + " + QwT" : label;
}

// ---- Tables in Markdown files ---------------------------------------------------------------------------------------

namespace {

// What stands at one place of a table.
struct Entry {
  std::string row, column, text, form, figure;  // form: of bias compensation, "" without
};

// As many digits as say something: ".0072", ".136", "1.58".
std::string kl_text(double kl) {
  const std::string text = number_text(kl, kl < .01 ? 4 : kl < 1 ? 3 : 2);
  return text.starts_with("0.") ? text.substr(1) : text;
}

// Top-1 in as many digits as its error leaves, with KL; perplexity in two decimals, below 10 in three, since what is
// compared is paired.
std::string figure_of(const json& row) {
  const double figure = number_in(row, "ours"), error = number_in(row, "standard_error");
  const json paired = row.value("paired", json());
  const double kl = paired.is_object() ? number_in(paired, "kl") : NAN;
  const bool top1 = row.contains("paired");
  const std::string text = number_text(figure, top1 ? (error >= 1 ? 1 : 2) : figure < 10 ? 3 : 2);
  return std::isfinite(kl) && kl > 0 ? text + ", " + kl_text(kl) : text;
}

// "4/8" as "W4A8", "3g128" as "3 bits, groups of 128".
std::string width_text(const std::string& width) {
  if (const size_t slash = width.find('/'); slash != std::string::npos)
    return "W" + width.substr(0, slash) + "A" + width.substr(slash + 1);
  const size_t g = width.find('g');
  const std::string bits = width.substr(0, g);
  return bits + (bits == "1" ? " bit" : " bits") + (g == std::string::npos ? "" : ", groups of " + width.substr(g + 1));
}

// A result record as a row of a table.
json as_row(const json& record) {
  json row = {{"method", label_of(record)}, {"model", text_in(record, "model")}, {"text", text_in(record, "text")}};
  const bool vision = is_vision(record);
  row["ours"] = number_in(record, vision ? "top1" : "perplexity");
  row["standard_error"] = number_in(record, vision ? "top1_se" : "perplexity_se");
  if (vision) row["paired"] = record.value("paired", json());
  return row;
}

Entry entry_of(const json& row) {
  Entry entry{text_in(row, "method"), text_in(row, "model"), text_in(row, "text"), "", figure_of(row)};
  if (const size_t bc = entry.row.find(" + BC ("); bc != std::string::npos) {
    entry.form = entry.row.substr(bc, entry.row.find(')', bc) + 1 - bc);
    entry.row.erase(bc, entry.form.size());
  }
  const std::string width = text_in(row, "width");
  if (!width.empty() && width != "32" && width != "32/32")  // before the name of a row: "GPTQ 3 bits, centred"
    entry.row.insert(std::min(entry.row.find(", "), entry.row.size()), " " + width_text(width));
  return entry;
}

// A record of bench, whose works are called "ViT-B/16, batch 1, W8A8", or of tests/reference/bench_peers.py, which
// names the engine beside the work: milliseconds, and in brackets FP32's time over this one, or this engine's over the
// other's.
Entry timing_of(const json& row) {
  const std::string work = text_in(row, "work"), engine = text_in(row, "engine");
  const size_t last = engine.empty() ? work.rfind(", ") : std::string::npos;
  Entry entry{work.substr(0, last), engine.substr(0, engine.find(',')), "", "", ""};
  if (engine.empty()) entry.column = last == std::string::npos ? "ms" : work.substr(last + 2);
  const double ms = number_in(row, "ms"), ratio = number_in(row, engine.empty() ? "fp32_over_this" : "ours_over_this");
  entry.figure = number_text(ms, ms < 10 ? 1 : 0);
  if (std::isfinite(ratio) && ratio != 1) entry.figure += " (" + number_text(ratio, 2) + ")";
  return entry;
}

const std::string kEnd = "<!-- end -->";

// NAME.json ... of a line "<!-- NAME.json ... -->"; none of another line.
std::vector<std::string> names_in(const std::string& line) {
  if (!line.starts_with("<!-- ") || !line.ends_with(".json -->")) return {};
  std::istringstream words(line.substr(5, line.size() - 9));
  const std::vector<std::string> names(std::istream_iterator<std::string>(words), {});
  const auto is_name = [](const std::string& word) {
    return word.ends_with(".json") && word.find('/') == std::string::npos;
  };
  return std::all_of(names.begin(), names.end(), is_name) ? names : std::vector<std::string>();
}

// The same of one line after the other; between lines of ``` nothing is a marker.
class Markers {
 public:
  std::vector<std::string> next(const std::string& line) {
    if (line.starts_with("```")) code_ = !code_;
    return code_ ? std::vector<std::string>() : names_in(line);
  }

 private:
  bool code_ = false;
};

void require_lf(const std::string& markdown, const std::string& path) {
  require_input(markdown.find('\r') == std::string::npos, "%s: its lines end in CR LF: convert it to LF first", path);
}

// In the order they come.
void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::string line_of(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) {
    line += ' ';
    for (const char c : cell) line += c == '|' ? "\\|" : c == '\n' ? " " : std::string(1, c);
    line += cell.empty() ? "|" : " |";
  }
  return line + "\n";
}

// A row for every method and width, a column for every model (and text, where there are several): top-1 in % and KL to
// the float network, or perplexity; "without → with" where the records hold a method without and with one form of bias
// compensation. Of records of bench and bench_peers.py: a row for every work, a column for every precision or engine,
// with milliseconds and a ratio. `rows` are those of a table or records; `where` is their file, for messages.
std::string markdown_table(const json& rows, const std::string& where) {
  std::vector<Entry> entries;
  std::set<std::string> forms, texts;
  require_input(rows.is_array() && !rows.empty(), "%s: there are no results in it", where);
  for (const json& row : rows) {
    const bool timing = row.is_object() && row.contains("work") && (row.contains("ms") || row.contains("engine"));
    require_input(row.is_object() && (timing || row.contains("ours") || is_result(row)),
                  "%s: neither a table nor results nor times", where);
    entries.push_back(timing ? timing_of(row) : entry_of(row.contains("ours") ? row : as_row(row)));
    if (!entries.back().form.empty()) forms.insert(entries.back().form);
    texts.insert(entries.back().text);
  }
  std::vector<std::string> names, columns;
  std::map<std::pair<std::string, std::string>, std::array<std::string, 2>> figures;  // without, with compensation
  for (Entry& entry : entries) {
    const bool apart = forms.size() > 1;  // compensated ones have rows of their own
    if (apart) entry.row += entry.form;
    if (texts.size() > 1 && !entry.text.empty()) entry.column += " on " + entry.text;
    add_once(names, entry.row);
    add_once(columns, entry.column);
    std::string& figure = figures[{entry.row, entry.column}][!apart && !entry.form.empty()];
    require_input(figure.empty(), "%s: two results of %s%s on %s: keep one of them", where, entry.row,
                  apart ? "" : entry.form, entry.column);
    figure = entry.figure;
  }
  std::string table = "| " + line_of(columns) + "|---|";
  for (size_t i = 0; i < columns.size(); ++i) table += "---|";
  table += "\n";
  for (const std::string& name : names) {
    std::vector<std::string> cells = {name};
    for (const std::string& column : columns) {
      const auto& [without, with] = figures[{name, column}];
      cells.push_back(with.empty() ? without : without + (without.empty() ? "→ " : " → ") + with);
    }
    table += line_of(cells);
  }
  return table;
}

}  // namespace

std::vector<std::string> tables_in(const std::string& markdown, const std::string& path) {
  require_lf(markdown, path);
  std::vector<std::string> tables;
  std::istringstream lines(markdown);
  Markers markers;
  for (std::string line; std::getline(lines, line);)
    for (const std::string& name : markers.next(line)) add_once(tables, name);
  return tables;
}

std::string with_tables(const std::string& markdown, const std::map<std::string, json>& rows, const std::string& path) {
  require_lf(markdown, path);
  std::istringstream lines(markdown);
  std::string made;
  std::set<std::string> used;
  Markers markers;
  for (std::string line; std::getline(lines, line);) {
    made += line + (lines.eof() ? "" : "\n");
    const std::vector<std::string> names = markers.next(line);
    const auto given = [&](const std::string& name) { return rows.contains(name); };
    if (std::none_of(names.begin(), names.end(), given)) continue;
    json all = json::array();
    for (const std::string& name : names) {
      require_input(given(name), "%s: %s needs %s, too: give both", path, line, name);
      used.insert(name);
      require_input(rows.at(name).is_array(), "%s: there are no results in it", name);
      for (const json& row : rows.at(name)) all.push_back(row);
    }
    made += "\n" + markdown_table(all, line) + "\n" + kEnd + "\n";
    const std::string begin = line;
    while (line != kEnd) {
      const bool more = !!std::getline(lines, line);
      require_input(more && names_in(line).empty(), "%s: no line \"%s\" follows \"%s\"", path, kEnd, begin);
    }
  }
  for (const auto& [name, of_name] : rows)
    require_input(used.contains(name),
                  "%s: no line \"<!-- %s -->\" is in it; write it where the table belongs, and \"%s\" below", path,
                  name, kEnd);
  return made;
}

}  // namespace bcq
