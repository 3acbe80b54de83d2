#include "eval/tables/table.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "engine/core/check.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"

namespace bcq {

namespace fs = std::filesystem;

namespace {

std::string table_path(const std::string& name) {
  if (name.ends_with(".json")) return name;
  std::error_code ignored;
  const std::string file = name + ".json";
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const fs::path& folder :
       {fs::path("eval/tables"), program / "../../eval/tables", program / "../share/bcq/tables"})
    if (fs::exists(folder / file)) return (folder / file).string();
  throw InputError(format("eval/tables/%s: not found; it belongs beside the sources or into %s", file,
                          (program / "../share/bcq/tables").lexically_normal()));
}

const std::set<std::string> kRowKeys = {"bits", "abits", "group", "method", "bc", "name", "options", "paper"};

// `given` loses what the row's own options decide, and what its method does not have.
Cell cell_of(const json& row, Family family, json& given, const std::string& path) {
  require_input(row.is_object(), "%s: a row is no object: %s", path, row.dump());
  for (const auto& [key, value] : row.items())
    require_input(kRowKeys.contains(key), "%s: a row has no key %s", path, quoted(key));
  const auto text = [&](const char* key, const char* without) { return get_or<std::string>(row, key, without, path); };
  Cell cell{recipe_of(family), "", text("name", ""), "", "", get_or(row, "paper", json(), path)};
  const int bits = get<int>(row, "bits", path);
  const int64_t group = get_or<int64_t>(row, "group", -1, path);
  const bool vision = family == Family::Vision;
  json values = get_or<std::map<std::string, json>>(row, "options", {}, path);
  require_input(values.empty() || !cell.name.empty(), "%s: a row with options needs a name", path);
  for (const Option& option : recipe_options(family)) {
    if (!values.contains(option.key)) continue;
    require_input(option.in_table != InTable::Keys,
                  "%s: %s is none of the options of a row: it has a key of its own there (bits, abits, group, method, "
                  "bc), or tables do not have it",
                  path, quoted(option.key));
    require_input(option.in_table != InTable::Drawn,
                  "%s: %s is none of the options of a row: it is for the command line alone", path, quoted(option.key));
    given.erase(option.key);
  }
  values.update({{"method", get<std::string>(row, "method", path)}, {"bc", text("bc", "none")}});
  if (bits < 32) values["wbits"] = bits;
  if (bits < 32 && vision) values["abits"] = bits;
  if (row.contains("abits")) values["abits"] = get<int>(row, "abits", path);
  if (group > 0) values["groupsize"] = group;
  Recipe r = recipe_of(family);
  for (const Option& option : recipe_options(family)) {  // those after it may depend on it
    if (values.contains(option.key))
      option.set(r, values[option.key]);
    else if (given.contains(option.key) && option.applies(r))
      option.set(r, given[option.key]);
    else
      given.erase(option.key);
  }
  try {
    cell.recipe = read_recipe(family, values, path, given);  // which says what is wrong with a value
  } catch (const UsageError& e) {
    throw UsageError(format("%s: row %s: %s", path, row.dump(), e.what()));
  }
  cell.label = label_of(cell.recipe) + (cell.name.empty() ? "" : ", " + cell.name);
  const std::string weights = std::to_string(bits) + (group > 0 ? format("g%d", group) : "");
  const int abits = to_json(cell.recipe).value("abits", 32);
  cell.width = vision || abits < 32 ? format("%s/%d", weights, abits) : weights;
  const bool named = vision ? abits != bits : abits < 32;
  cell.key = weights + (named ? format("a%d", abits) : "") + "-" + name_of(cell.recipe) + "-" + name_of(cell.recipe.bc);
  if (!cell.name.empty()) cell.key += "-";
  for (const char c : cell.name) cell.key += std::isalnum(static_cast<unsigned char>(c)) ? c : '-';
  return cell;
}

Family family_of(const json& file, const std::string& path) {
  const auto family = get_or<std::string>(file, "family", "vision", path);
  require_input(family == "vision" || family == "language", "%s: family \"%s\" is neither vision nor language", path,
                family);
  return family == "vision" ? Family::Vision : Family::Language;
}

}  // namespace

AboutTable about_table(const std::string& name) {
  try {
    const std::string path = table_path(name);
    const json file = read_json(path);
    return {family_of(file, path), get_or<std::string>(file, "about", path, path)};
  } catch (const InputError&) {
    return {};
  }
}

PaperTable read_table(const std::string& name, Family family, const json& given, const char* rows) {
  const std::string path = table_path(name);
  PaperTable table{path, read_json(path), {}};
  require_input(family_of(table.file, path) == family, "%s: a table of the other family of models", path);
  std::set<std::string> keys;  // which files of cells are named by
  json unused = given;
  for (const json& row : get<json>(table.file, rows, path)) {
    json used = given;
    const Cell& cell = table.cells.emplace_back(cell_of(row, family, used, path));
    require_input(keys.insert(cell.key).second, "%s: two rows are %s %s (%s)", path, cell.width, cell.label, cell.key);
    for (const auto& [key, value] : used.items()) unused.erase(key);
  }
  require_input(table.cells.size() > 1 && !quantizes(table.cells[0].recipe),
                "%s: the first row has to be that of the float network, and others have to follow", path);
  for (const Option& option : recipe_options(family))
    require_usage(!unused.contains(option.key), "%s has no effect on any row of the table", option.flag());
  return table;
}

std::vector<std::string> embedded_models(const PaperTable& table, const std::string& folder) {
  std::vector<std::string> names;
  const auto all = get<std::vector<std::string>>(table.file, "embedded", table.path);
  for (const std::string& name : all)
    if (fs::exists(fs::path(folder) / name / "config.json")) names.push_back(name);
  require_input(!names.empty(), "%s: none of the models %s is in it", folder, json(all).dump());
  return names;
}

json quantization_of(const Recipe& r) {
  Recipe part = r;
  if (!in_one_walk(r)) part.bc = BcForm::None;
  return to_json(part);
}

void measure_cells(Task& task, const std::vector<Cell>& cells, size_t data,
                   const std::function<bool(size_t, size_t)>& wanted, ProgressLine& progress, const CellDone& done,
                   const CellFailed& failed) {
  Outcome outcome;
  double quantization_seconds = 0;
  const std::vector<std::string> of_all = progress.warnings();
  std::vector<std::string> of_quantization;  // each cell has those of its own, whichever were measured before it
  const Warn warn = [&](const std::string& message) {
    progress.warn()(message);
    if (std::find(of_quantization.begin(), of_quantization.end(), message) == of_quantization.end())
      of_quantization.push_back(message);
  };
  json quantized;  // the recipe the model stands in, less what compensation adds
  json failing;    // the last recipe that failed so, and why
  std::string why;
  const auto make = [&](const Recipe& r) {
    if (!quantizes(r) || quantized == quantization_of(r)) return;
    if (failing == quantization_of(r)) throw Error(why);
    quantized = nullptr;
    failing = quantization_of(r);
    const Timer timer;
    of_quantization.clear();
    outcome = quantize(task, r, progress.callback(), warn);
    quantization_seconds = timer.seconds();
    quantized = quantization_of(r);
    failing = nullptr;
  };
  for (size_t c = 0; c < cells.size(); ++c) {
    const Recipe& r = cells[c].recipe;
    std::optional<Timer> rest;  // what the quantization did not take; runs where the model stands as the cell has it
    for (size_t i = 0; i < data; ++i) {
      if (!wanted(c, i)) continue;
      try {
        if (!rest) {
          make(r);
          const Timer compensation;
          compensate(task, r, outcome, progress.callback());
          rest = compensation;
        }
        json record = model_record(task.model, r, outcome.fitted);
        const Measured measured = task.measure(r, i, record, progress.callback());
        progress.finish();
        record.update(run_facts());
        std::vector<std::string> warnings = of_all;
        if (quantizes(r)) warnings.insert(warnings.end(), of_quantization.begin(), of_quantization.end());
        record["warnings"] = warnings;
        record["seconds"] = rest->seconds() + (quantizes(r) ? quantization_seconds : 0);
        done(c, i, record, measured);
      } catch (const UsageError&) {
        throw;
      } catch (const Error& e) {
        if (!failed) throw;
        if (quantized.is_null()) why = e.what();
        progress.finish();
        failed(c, i, e);
      }
    }
  }
}

void print_headings(const std::vector<Heading>& headings) {
  std::string names = "|", rule = "|";
  for (const Heading& h : headings) {
    const std::string name = h.name;
    names += " " + name + std::string(static_cast<size_t>(h.width) - name.size() + 1, ' ') + "|";
    rule += std::string(static_cast<size_t>(h.width) + 2, '-') + "|";
  }
  print("%s\n%s\n", names, rule);
}

void print_line(const std::vector<Heading>& headings, const std::vector<std::string>& values) {
  std::string line = "|";
  for (size_t i = 0; i < headings.size(); ++i) {
    const size_t width = static_cast<size_t>(headings[i].width);
    const std::string space(width - std::min(width, values[i].size()), ' ');
    line += " " + (headings[i].left ? values[i] + space : space + values[i]) + " |";
  }
  print("%s\n", line);
  std::fflush(stdout);
}

}  // namespace bcq
