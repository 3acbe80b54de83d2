#include "eval/tables/language_table.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "engine/core/check.h"
#include "eval/cli.h"
#include "eval/language.h"
#include "eval/tables/cells.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string table;  // language or groups
  std::string models, corpora, mini = "data/mini", out, json_path;
  LanguageRun run;
};

// A model, and the texts and calibration it is measured with; what is not there has an empty path. `paper` is an index
// into kLanguageColumns.
struct Column : TableColumn {
  std::vector<TextSource> texts;
  TextSource calib;
  std::vector<std::map<std::string, json>> rows;  // per cell: records by definition of the text
  json record(size_t cell, size_t text) const {   // null: there is none
    const auto found = rows[cell].find(name_of(texts[text].definition));
    return found == rows[cell].end() ? json() : found->second;
  }
};

// A folder called `name`, or that below the name of its owner on the hub.
std::string find_model(const std::string& models, const std::string& name) {
  for (const char* owner : {"", "facebook", "bigscience"}) {
    const fs::path path = fs::path(models) / owner / name;
    if (fs::is_directory(path)) return path.string();
  }
  return "";
}

std::vector<Column> columns(const Options& o) {
  std::vector<Column> all;
  if (o.models.empty()) {
    const TextSource test{Definition::Plain, o.mini + "/text/test.txt"};
    const TextSource calib{Definition::Plain, o.mini + "/text/calib.txt"};
    for (const char* name : {"opt", "bloom"})
      if (fs::exists(fs::path(o.mini) / name))
        all.push_back({{name, o.mini + "/" + name, -1, "", ""}, {test}, calib, {}});
    return all;
  }
  require_input(fs::is_directory(o.models), "%s: no such folder", o.models);
  std::vector<TextSource> texts;
  for (const Definition text : {Definition::Wikitext2, Definition::Ptb, Definition::C4})
    texts.push_back({text, find_corpus(text, o.corpora, Split::Evaluation)});
  const TextSource calib{Definition::C4, find_corpus(Definition::C4, o.corpora, Split::Calibration)};
  for (size_t i = 0; i < std::size(kLanguageColumns); ++i) {
    if (o.table == "groups" && i == 1) continue;  // OPT-350M is not in that table
    const LanguageColumn& column = kLanguageColumns[i];
    all.push_back({{column.label, find_model(o.models, column.folder), static_cast<int>(i), "", ""}, texts, calib, {}});
  }
  return all;
}

bool calibrates(const LanguageCell& cell) { return cell.method == "gptq"; }

// Path and size: which file a text came from.
json file_facts(const TextSource& text) {
  return {{"path", fs::absolute(text.path).string()}, {"bytes", fs::file_size(text.path)}};
}

// What a cell's number depends on besides the cell.
json settings_of(const Options& o, const Column& column, const LanguageCell& cell, const TextSource& text) {
  json s = {
      {"model", column.fingerprint}, {"text", file_facts(text)}, {"seqlen", o.run.seqlen}, {"limit", o.run.limit}};
  if (calibrates(cell))
    s.update({{"calib", file_facts(column.calib)}, {"nsamples", o.run.nsamples}, {"seed", o.run.seed}});
  return s;
}

std::string name_of(const Column& column, const LanguageCell& cell, const TextSource& text) {
  return format("%s-%s-%s-%s-%s", column.label, cell.width(), cell.method, cell.bc, name_of(text.definition));
}

// Whether all that the cell needs is there.
bool possible(const Column& column, const LanguageCell& cell, const TextSource& text) {
  return !column.path.empty() && !text.path.empty() && cell.method != "awq" &&
         (!calibrates(cell) || !column.calib.path.empty());
}

// Fills column.rows with the cells measured before, and measures what is missing.
void measure(const Options& o, const Cells& store, ProgressLine& progress, Column& column) {
  const std::vector<LanguageCell> cells = language_cells(o.table, o.models.empty());
  std::vector<std::vector<size_t>> missing(cells.size());  // texts
  bool complete = true;
  for (size_t c = 0; c < cells.size(); ++c)
    for (size_t t = 0; t < column.texts.size(); ++t) {
      const TextSource& text = column.texts[t];
      if (!possible(column, cells[c], text)) continue;
      const json record =
          store.find(name_of(column, cells[c], text), settings_of(o, column, cells[c], text), progress.warn());
      if (!record.is_null()) {
        column.rows[c][name_of(text.definition)] = record;
        continue;
      }
      missing[c].push_back(t);
      complete = false;
    }
  if (complete) return;

  const auto model = load_model(column.path);
  const Tokenizer tokenizer = Tokenizer::load(model->info().directory);
  std::vector<EvaluationText> texts(column.texts.size());  // read when a cell wants them
  Calibration calib;
  LanguageRun run = o.run;
  std::string quantized;  // the method and width the model stands in
  double quantization_seconds = 0;
  for (size_t c = 0; c < cells.size(); ++c) {
    const LanguageCell& cell = cells[c];
    if (missing[c].empty()) continue;
    run.method = cell.method;
    run.bc = cell.bc;
    run.weights.bits = cell.bits;
    run.weights.groupsize = cell.groupsize;
    if (calibrates(cell) && calib.batches.empty()) calib = read_calibration(*model, column.calib, &tokenizer, run);
    if (quantized != cell.method + cell.width()) {
      model->clear();
      Timer quantization;
      quantize_language(*model, calib.batches, run, progress.callback(), progress.warn());
      quantization_seconds = quantization.seconds();
      quantized = cell.method + cell.width();
    }
    Timer rest;
    model->clear_compensation();
    const int64_t values = compensate_language(*model, calib.batches, run, progress.callback()).fitted();
    for (const size_t t : missing[c]) {
      const TextSource& text = column.texts[t];
      if (texts[t].windows.count == 0) texts[t] = read_evaluation(*model, text, &tokenizer, run);
      const std::vector<Perplexity> p = evaluate_language(*model, texts[t], run, progress.callback());
      progress.finish();
      json record = language_record(*model, run, texts[t], p, {}, values, quantization_seconds + rest.seconds());
      record.update(run_facts());
      record["warnings"] = progress.warnings();
      record["window_nll"] = p[0].nll;  // what pairs it with other cells
      store.keep(name_of(column, cell, text), settings_of(o, column, cell, text), record);
      column.rows[c][name_of(text.definition)] = record;
      print(stderr, "%s %s %s, %s: %.2f\n", column.label, cell.width(), cell.label(), name_of(text.definition),
            p[0].perplexity);
    }
  }
}

// How much higher the perplexity of a record is than that of another on the same windows; nothing when one is missing.
std::optional<Ratio> change(const json& record, const json& base) {
  if (record.is_null() || base.is_null()) return {};
  const auto of = [](const json& r) {
    const auto nll = r.at("window_nll").get<std::vector<double>>();
    return perplexity("gptq", nll, std::vector<double>(nll.size(), 1.0));
  };
  return paired_ratio(of(record), of(base));
}

// Writes it into a row of the JSON table, and returns the cell of the printed one.
std::string put_change(const std::optional<Ratio>& change, const std::string& key, json& row) {
  row[key] = change ? json(change->percent) : json(nullptr);
  row[key + "_se"] = change && std::isfinite(change->se) ? json(change->se) : json(nullptr);
  if (!change) return "";
  return format("%+.2f +/- %s", change->percent, std::isfinite(change->se) ? format("%.2f", change->se).c_str() : "?");
}

std::vector<std::string> notes_of(const Options& o, const std::vector<Column>& all) {
  std::vector<std::string> notes = {
      format("Perplexity as GPTQ defines it; +/- is one standard error over the windows. Calibrated on %d windows, "
             "seed %d.",
             o.run.nsamples, o.run.seed),
      "Over FP: change against the float model, in %; by BC: against the same quantized model without it. Both on the "
      "same windows, with the standard error of the paired difference.",
      "BC (position) is what the paper's scripts fit: one value per position and channel."};
  for (const Column& c : all)
    if (!c.failure.empty()) notes.push_back(c.label + " failed: " + c.failure);
  if (o.models.empty()) return notes;
  for (const char* note :
       {"PTB is the validation split and C4 256 random crops, as in the paper's scripts (not GPTQ's --new-eval).",
        "The paper ran in float16, this is float32.",
        "RTN with groups exists only in the paper's repository. AWQ is cited there without a command; on BLOOM-560M it "
        "is worse than RTN, as if untuned.",
        "GPTQ's author saw 36.96 to 37.96 for one cell (GPTQ, 4 bit, OPT-125M, PTB) on three machines.",
        "\"not run\": no such checkpoint in --models, or no such text in --corpora (GPTQ needs C4's training file)."})
    notes.push_back(note);
  return notes;
}

void print_table(const Options& o, const std::vector<Column>& all) {
  print(
      "| bits  | method                   | model      | text      | paper   | ours                | difference | "
      "over FP          | by BC           | BC values |\n"
      "|-------|--------------------------|------------|-----------|---------|---------------------|------------|-"
      "-----------------|-----------------|-----------|\n");
  json rows = json::array();
  const std::vector<LanguageCell> cells = language_cells(o.table, o.models.empty());
  size_t uncompensated = 0;  // the cell a compensated one comes from
  for (size_t c = 0; c < cells.size(); ++c) {
    const LanguageCell& cell = cells[c];
    if (cell.bc == "none") uncompensated = c;
    for (const Column& column : all)
      for (size_t t = 0; t < column.texts.size(); ++t) {
        const TextSource& text = column.texts[t];
        json record = column.record(c, t);
        const double paper = column.paper < 0 ? 0 : paper_perplexity(cell, static_cast<size_t>(column.paper), t);
        std::string ours = cell.method == "awq"            ? "paper only"
                           : !possible(column, cell, text) ? "not run"
                                                           : column.state(record);
        json row = {{"bits", cell.width()},  {"method", cell.label()},
                    {"model", column.label}, {"text", name_of(text.definition)},
                    {"state", ours},         {"paper", paper > 0 ? json(paper) : json(nullptr)},
                    {"difference", nullptr}};
        const std::string over_float =
            put_change(c > 0 ? change(record, column.record(0, t)) : std::nullopt, "change_percent", row);
        const std::string by_bc =
            put_change(c != uncompensated ? change(record, column.record(uncompensated, t)) : std::nullopt,
                       "bc_change_percent", row);
        std::string difference, values;
        if (!record.is_null()) {
          const double ppl = record.at("perplexity");
          const json& se = record.at("perplexity_se");
          ours = format("%8.2f +/- %s", ppl, se.is_null() ? "?" : format("%.2f", se.get<double>()));
          if (paper > 0) {
            difference = format("%+.2f", ppl - paper);
            row["difference"] = ppl - paper;
          }
          if (cell.bc != "none") values = record.at("bc_parameters").dump();
          record.erase("window_nll");
        }
        row["record"] = record;
        print("| %-5s | %-24s | %-10s | %-9s | %7s | %19s | %10s | %16s | %15s | %9s |\n", cell.width(), cell.label(),
              column.label, name_of(text.definition), paper > 0 ? format("%.2f", paper).c_str() : "", ours, difference,
              over_float, by_bc, values);
        rows.push_back(row);
      }
  }
  const std::vector<std::string> notes = notes_of(o, all);
  print("\n");
  for (const std::string& note : notes) print("- %s\n", note);
  write_record(o.json_path, {{"rows", rows}, {"notes", notes}});
}

}  // namespace

std::string LanguageCell::label() const {
  const char* name = method == "fp" ? "FP" : method == "rtn" ? "RTN" : method == "awq" ? "AWQ" : "GPTQ";
  return name + (bc == "none" ? "" : " + BC (" + bc + ")");
}

std::string LanguageCell::width() const {
  return std::to_string(bits) + (groupsize > 0 ? "g" + std::to_string(groupsize) : "");
}

std::vector<LanguageCell> language_cells(const std::string& table, bool mini) {
  struct Width {
    int bits;
    int64_t groupsize;
    bool rtn, awq;
  };
  std::vector<Width> widths = {{4, -1, true, false}, {3, -1, true, false}, {2, 64, true, false}};
  if (table == "groups" && mini)
    widths = {{4, -1, true, false}, {4, 64, true, false}, {4, 32, true, false}, {3, -1, true, false},
              {3, 64, true, false}, {3, 32, true, false}, {2, 64, true, false}, {2, 32, true, false}};
  else if (table == "groups")
    widths = {{4, -1, true, false},  {4, 256, false, true}, {4, 128, false, true}, {3, -1, true, false},
              {3, 256, false, true}, {3, 128, false, true}, {2, 64, true, true}};
  std::vector<LanguageCell> cells = {{32, -1, "fp", "none"}};
  for (const Width& w : widths) {
    if (w.rtn) cells.push_back({w.bits, w.groupsize, "rtn", "none"});
    if (w.awq) cells.push_back({w.bits, w.groupsize, "awq", "none"});
    for (const char* bc : {"none", "channel", "position"}) cells.push_back({w.bits, w.groupsize, "gptq", bc});
  }
  return cells;
}

double paper_perplexity(const LanguageCell& cell, size_t column, size_t text) {
  struct Row {
    int bits;
    int64_t groupsize;
    const char *method, *bc;
    double perplexity[3][3];  // of OPT-125M, OPT-350M, BLOOM-560M on WikiText-2, PTB, C4
  };
  static const Row rows[] = {
      {32, -1, "fp", "none", {{27.66, 32.55, 24.61}, {22.00, 26.08, 20.71}, {22.42, 41.26, 24.38}}},
      {4, -1, "rtn", "none", {{37.28, 45.11, 31.64}, {25.94, 31.12, 23.94}, {25.89, 48.57, 27.42}}},
      {4, -1, "gptq", "none", {{31.22, 36.93, 26.94}, {24.20, 28.89, 22.60}, {23.98, 44.53, 25.60}}},
      {4, -1, "gptq", "position", {{29.90, 36.11, 26.03}, {22.85, 27.23, 21.34}, {23.77, 44.44, 25.46}}},
      {3, -1, "rtn", "none", {{1276.92, 1209.34, 731.60}, {64.56, 81.85, 50.14}, {56.98, 117.15, 58.96}}},
      {3, -1, "gptq", "none", {{54.68, 65.74, 38.27}, {33.75, 38.66, 28.53}, {32.45, 62.66, 32.25}}},
      {3, -1, "gptq", "position", {{45.19, 52.15, 33.78}, {27.78, 33.79, 24.79}, {31.49, 60.36, 31.35}}},
      {2, 64, "rtn", "none", {{7042.44, 5057.60, 3869.38}, {4354.61, 3560.32, 2346.04}, {502.39, 627.17, 326.20}}},
      {2, 64, "gptq", "none", {{192.96, 200.53, 114.07}, {519.97, 506.01, 231.55}, {74.06, 182.64, 59.23}}},
      {2, 64, "gptq", "position", {{108.98, 137.12, 70.11}, {88.09, 95.57, 56.17}, {69.12, 178.73, 56.43}}},
      {4, 256, "gptq", "none", {{30.16, 35.78, 26.38}, {}, {23.39, 42.99, 25.08}}},
      {4, 256, "awq", "none", {{30.38, 35.23, 26.35}, {}, {28.45, 52.93, 34.96}}},
      {4, 256, "gptq", "position", {{28.99, 33.96, 25.40}, {}, {23.24, 42.68, 24.97}}},
      {4, 128, "gptq", "none", {{29.79, 35.25, 25.95}, {}, {23.23, 42.72, 24.93}}},
      {4, 128, "awq", "none", {{29.14, 34.96, 25.90}, {}, {28.22, 55.37, 34.93}}},
      {4, 128, "gptq", "position", {{28.50, 33.77, 25.21}, {}, {23.10, 42.68, 24.83}}},
      {3, 256, "gptq", "none", {{41.64, 52.96, 32.46}, {}, {26.76, 51.06, 28.11}}},
      {3, 256, "awq", "none", {{41.87, 50.92, 35.55}, {}, {33.21, 62.04, 41.32}}},
      {3, 256, "gptq", "position", {{35.65, 44.33, 29.04}, {}, {26.35, 50.11, 27.69}}},
      {3, 128, "gptq", "none", {{37.78, 43.20, 30.00}, {}, {25.52, 48.44, 27.15}}},
      {3, 128, "awq", "none", {{36.52, 44.02, 32.02}, {}, {31.77, 62.97, 39.66}}},
      {3, 128, "gptq", "position", {{33.63, 39.54, 27.79}, {}, {25.15, 47.51, 26.84}}},
      {2, 64, "awq", "none", {{133.27, 147.97, 97.18}, {}, {111.49, 316.53, 145.12}}}};
  for (const Row& row : rows)
    if (row.bits == cell.bits && row.groupsize == cell.groupsize && row.method == cell.method && row.bc == cell.bc)
      return row.perplexity[column][text];
  return 0;
}

std::function<bool()> add_language_tables(CLI::App& app) {
  app.require_subcommand(0, 1);
  std::vector<std::pair<CLI::App*, std::shared_ptr<Options>>> tables;
  for (const auto& [name, help] :
       {std::pair{"language", "The paper's table 2: methods on OPT and BLOOM"},
        std::pair{"groups", "The paper's table 3: group sizes, beside AWQ's printed figures"}}) {
    const auto o = std::make_shared<Options>();
    o->table = name;
    o->out = std::string("build/table-") + name;
    CLI::App* sub = app.add_subcommand(name, help);
    auto* models = sub->add_option("--models", o->models,
                                   "Folder with opt-125m, opt-350m and bloom-560m; without it the embedded models")
                       ->type_name("DIR");
    auto* corpora = sub->add_option("--corpora", o->corpora,
                                    "Folder with wiki.test.raw, ptb.valid.txt and C4's en/*.json.gz, at any depth")
                        ->type_name("DIR");
    models->needs(corpora);
    corpora->needs(models);
    sub->add_option("--mini", o->mini, "The embedded models")->capture_default_str()->type_name("DIR");
    sub->add_option("--out", o->out, "Finished cells; a run that was stopped goes on from them")
        ->capture_default_str()
        ->type_name("DIR");
    sub->add_option("--limit", o->run.limit, "Evaluate the first N windows of each text only")->type_name("N");
    sub->add_option("--seqlen", o->run.seqlen,
                    "Tokens of a window (default: the model's positions, at most 2048; 256 for the embedded models)")
        ->type_name("L");
    sub->add_option("--nsamples", o->run.nsamples, "Calibration windows")->capture_default_str();
    sub->add_option("--seed", o->run.seed, "Seed of their draw")->capture_default_str();
    sub->add_option("--json", o->json_path, "Write the table as JSON (-: stdout)")->type_name("FILE");
    add_threads_option(*sub);
    sub->footer(std::string("Examples:\n  table ") + name + "\n  table " + name + " --models hub --corpora corpora");
    tables.emplace_back(sub, o);
  }
  return [tables] {
    for (const auto& table : tables) {
      if (!table.first->parsed()) continue;
      Options o = *table.second;
      if (o.models.empty() && o.run.seqlen == 0) o.run.seqlen = kMiniSeqlen;
      const Cells store(o.out);
      std::vector<Column> all = columns(o);
      for (Column& column : all) {
        column.rows.resize(language_cells(o.table, o.models.empty()).size());
        ProgressLine progress(column.label + ": ");
        column.attempt(progress, [&] { measure(o, store, progress, column); });
      }
      print_table(o, all);
      for (const Column& column : all) column.require_measured();
      return true;
    }
    return false;
  };
}

}  // namespace bcq
