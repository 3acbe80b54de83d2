// A run of a table: its checkpoints and data, the cells that are there from runs before, and what is printed.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>

#include "data/image/jpeg.h"
#include "engine/core/check.h"
#include "engine/core/pattern.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "eval/language.h"
#include "eval/tables/table.h"
#include "eval/vision.h"

namespace bcq {

namespace fs = std::filesystem;

namespace {

// A checkpoint whose cells are measured.
struct Column {
  std::string label, path;  // no path: it is not there
  int paper = -1;           // index into the paper's columns
  std::string fingerprint;
  std::string checkpoint;                          // "vit_base_patch16_224.augreg_in21k_ft_in1k", once loaded
  std::string failure;                             // why it could not be measured
  std::vector<std::vector<std::string>> failures;  // why a cell could not be, as in records; empty where nothing failed
  std::vector<std::vector<json>> records;          // by cell and data set, null where there is none
};

struct Run {
  const TableRun& o;
  PaperTable table;
  bool vision, embedded;
  std::vector<TextSource> texts;  // one for each data set; of images without a path
  TextSource calib;
  std::vector<Column> columns;
  int quantizations = 0;  // so far, over all columns: each is one rank's

  explicit Run(const TableRun& options);
  bool possible(const Column& column, size_t c, size_t i) const;
  json settings_of(const Column& column, size_t c, size_t i) const;
  std::string path_of(const Column& column, size_t c, size_t i) const;
  std::string images_of(const std::string& split) const;
  void require_same_files() const;
  std::unique_ptr<Task> task_of(Model& model, ProgressLine& progress) const;
  json find(const Column& column, size_t c, size_t i, const Warn& warn) const;
  void measure(Column& column, ProgressLine& progress);
  void share_cells(const Warn& warn);
  json row_of(const Column& column, size_t c, size_t i, std::vector<std::string>& values) const;
  std::string cell_name(const Column& column, size_t c, size_t i) const;
  std::vector<std::pair<std::string, std::string>> failures() const;  // of columns and cells: what, and why
  std::vector<std::string> notes() const;
};

// A folder called by the name of the model, with or without the tag, also below that of its owner on the hub.
std::string find_model(const std::string& models, const std::string& name, const json& owners) {
  std::vector<std::string> found;
  for (const json& owner : owners) {
    const fs::path folder = fs::path(models) / owner.get<std::string>();
    if (!fs::is_directory(folder)) continue;
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string called = entry.path().filename().string();
      if (entry.is_directory() && (called == name || called.rfind(name + ".", 0) == 0))
        found.push_back(entry.path().string());
    }
  }
  if (found.empty()) return "";
  require_input(found.size() == 1, "%s and %s are both %s: keep the one to measure", found[0], found.back(), name);
  return found[0];
}

Run::Run(const TableRun& options)
    : o(options),
      table(read_table(o.name, o.base.family, o.given)),
      vision(o.base.family == Family::Vision),
      embedded(o.models.empty()) {
  const Pattern only(o.only);
  std::erase_if(table.cells, [&](const Cell& cell) { return quantizes(cell.recipe) && !only.found_in(cell.key); });
  require_usage(table.cells.size() > 1, "--only %s: no row has such a name", o.only);
  if (vision) {
    texts = {{}};
  } else if (embedded) {
    texts = {{Definition::Plain, o.mini + "/text/test.txt"}};
    calib = {Definition::Plain, o.mini + "/text/calib.txt"};
  } else {
    for (const Definition text : {Definition::Wikitext2, Definition::Ptb, Definition::C4})
      texts.push_back({text, find_corpus(text, o.data, Split::Evaluation)});
    calib = {Definition::C4, find_corpus(Definition::C4, o.data, Split::Calibration)};
  }
  const auto add = [&](const std::string& label, const std::string& path, int paper) {
    columns.push_back({label, path, paper, "", "", "", {}, {}});
    columns.back().failures.assign(table.cells.size(), std::vector<std::string>(texts.size()));
    columns.back().records.assign(table.cells.size(), std::vector<json>(texts.size()));
  };
  if (embedded) {
    for (const std::string& name : embedded_models(table, o.mini)) add(name, o.mini + "/" + name, -1);
    return;
  }
  require_input(fs::is_directory(o.models), "%s: no such folder", o.models);
  const json owners = get_or<json>(table.file, "owners", json{""}, table.path);
  for (const json& column : get<json>(table.file, "columns", table.path))
    add(get<std::string>(column, "label", table.path),
        find_model(o.models, get<std::string>(column, "model", table.path), owners), static_cast<int>(columns.size()));
}

// Whether all that the cell needs is there.
bool Run::possible(const Column& column, size_t c, size_t i) const {
  const Cell& cell = table.cells[c];
  return !column.path.empty() &&
         (vision || (!texts[i].path.empty() && (!calibrates(cell.recipe) || !calib.path.empty())));
}

// What a cell's number depends on.
json Run::settings_of(const Column& column, size_t c, size_t i) const {
  const auto file_facts = [](const TextSource& text) {
    return json{{"path", fs::absolute(text.path).string()}, {"bytes", fs::file_size(text.path)}};
  };
  json s = to_json(table.cells[c].recipe);
  s.update({{"model", column.fingerprint}, {"limit", o.limit}, {"version", version()}});
  if (vision)
    s.update({{"data", embedded ? o.mini : o.data},
              {"labels", o.labels},
              {"paired", o.paired},
              {"jpeg_decoder", jpeg_decoder()}});
  else
    s["text"] = file_facts(texts[i]);
  if (!vision && calibrates(table.cells[c].recipe)) s["calib"] = file_facts(calib);
  return s;
}

// The file of a finished cell.
std::string Run::path_of(const Column& column, size_t c, size_t i) const {
  return o.out + "/" + column.label + "-" + table.cells[c].key +
         (vision ? "" : std::string("-") + name_of(texts[i].definition)) + ".json";
}

// The folder of a split, or the archive it is published as.
std::string Run::images_of(const std::string& split) const {
  if (embedded) return o.mini + "/images/" + (split == "train" ? "calib" : split);
  const std::string folder = o.data + "/" + split, tar = o.data + "/ILSVRC2012_img_" + split + ".tar";
  return !fs::exists(folder) && fs::exists(tar) ? tar : folder;
}

std::unique_ptr<Task> Run::task_of(Model& model, ProgressLine& progress) const {
  if (!vision) {
    auto task = std::make_unique<LanguageTask>(model, texts, calib, std::vector<std::string>{"gptq"}, o.limit);
    task->warn = progress.warn();
    return task;
  }
  auto task = std::make_unique<VisionTask>(
      model, list_images(images_of("val"), classes_of(model.info()), o.labels, o.cache, progress.callback()),
      list_images(images_of("train"), 0, "", o.cache, progress.callback()));
  task->limit = o.limit;
  task->batch_size = o.batch_size;
  task->paired = o.paired;
  return task;
}

// The finished cell of exactly these settings. A file of others, or that cannot be read, is said and counts as nothing.
json Run::find(const Column& column, size_t c, size_t i, const Warn& warn) const {
  const std::string path = path_of(column, c, i);
  if (!fs::exists(path)) return nullptr;
  try {
    json record = read_json(path);
    const json kept = get<json>(record, "settings", path), wanted = settings_of(column, c, i);
    require_input(kept.is_object(), "%s: key \"settings\" is not an object", path);
    get<double>(record, vision ? "top1" : "perplexity", path);
    if (!vision) get<std::vector<double>>(record, "window_nll", path);
    if (kept == wanted) return record;
    std::string names;
    json all = kept;
    all.update(wanted);
    for (const auto& [key, value] : all.items())
      if (kept.value(key, json()) != wanted.value(key, json())) names += (names.empty() ? "" : ", ") + key;
    warn(format("%s is of another run (%s): it is measured again", path, names));
  } catch (const InputError& e) {
    warn(format("%s: it is measured again", e.what()));
  }
  return nullptr;
}

std::string Run::cell_name(const Column& column, size_t c, size_t i) const {
  return column.label + " " + table.cells[c].width + " " + table.cells[c].label +
         (vision ? "" : std::string(", ") + name_of(texts[i].definition));
}

std::vector<std::pair<std::string, std::string>> Run::failures() const {
  std::vector<std::pair<std::string, std::string>> failures;
  for (const Column& column : columns) {
    if (!column.failure.empty()) failures.push_back({column.label, column.failure});
    for (size_t c = 0; c < table.cells.size(); ++c)
      for (size_t i = 0; i < texts.size(); ++i)
        if (!column.failures[c][i].empty()) failures.push_back({cell_name(column, c, i), column.failures[c][i]});
  }
  return failures;
}

// Of several ranks, whose disks may differ: UsageError unless all have the same models and data.
void Run::require_same_files() const {
  if (ranks() == 1) return;
  ProgressLine progress;
  std::string facts;
  const auto add = [&](const std::string& path, const std::function<std::string(const std::string&)>& hash) {
    if (path.empty()) return;
    try {
      facts += path + " with hash " + hash(path) + ", ";
    } catch (const Error& e) {  // of which the column, or the run, dies later
      facts += e.what() + std::string(", ");
    }
  };
  for (const Column& column : columns) add(column.path, fingerprint);
  for (const TextSource& text : texts) add(text.path, file_hash);
  add(calib.path, file_hash);
  for (const char* split : {"val", "train"})
    if (vision)
      add(images_of(split),
          [&](const std::string& path) { return hash_of(list_images(path, {}, "", o.cache, progress.callback())); });
  if (fs::is_regular_file(o.labels)) add(o.labels, file_hash);
  require_same_in_ranks(facts);
}

// Fills column.records with the cells measured before, and measures what is missing and this rank's; what fails is in
// column.failures.
void Run::measure(Column& column, ProgressLine& progress) {
  std::vector<bool> own(table.cells.size());
  for (size_t c = 0; c < own.size(); ++c) {
    if (c == 0 || quantization_of(table.cells[c - 1].recipe) != quantization_of(table.cells[c].recipe)) ++quantizations;
    own[c] = quantizations % ranks() == rank();
  }
  column.fingerprint = fingerprint(column.path);
  const Alone alone;
  size_t missing = 0, finished = 0;
  ProgressLine of_files(column.label + ": ");  // what is said of them belongs to no cell
  for (size_t c = 0; c < table.cells.size(); ++c)
    for (size_t i = 0; i < texts.size(); ++i)
      if (possible(column, c, i)) {
        if (!own[c]) continue;
        column.records[c][i] = find(column, c, i, of_files.warn());
        missing += column.records[c][i].is_null();
      }
  const auto model = load_model(column.path);
  require_usage(!model->info().packed, "%s is quantized already: a table quantizes the float networks", column.path);
  column.checkpoint = model->info().name + (model->info().tag.empty() ? "" : "." + model->info().tag);
  if (vision) warn_of_tag(*model, progress.warn());
  if (missing == 0) return;
  const std::unique_ptr<Task> task = task_of(*model, progress);
  measure_cells(
      *task, table.cells, texts.size(),
      [&](size_t c, size_t i) { return own[c] && possible(column, c, i) && column.records[c][i].is_null(); }, progress,
      [&](size_t c, size_t i, json& record, const Measured& measured) {
        require(std::isfinite(measured.figure), "%s %s: the perplexity is too large for a number", table.cells[c].width,
                table.cells[c].label);
        if (!vision) record["window_nll"] = measured.units;  // what pairs it with other cells
        record["settings"] = settings_of(column, c, i);
        write_record(path_of(column, c, i), record);
        column.records[c][i] = record;
        print(stderr, "%s: %.2f (cell %d of %d)\n", cell_name(column, c, i), measured.figure, ++finished, missing);
      },
      [&](size_t c, size_t i, const Error& e) {
        column.failures[c][i] = e.what();
        print(stderr, "%s failed: %s\n", cell_name(column, c, i), e.what());
      });
}

// The cells of all ranks, which are in files, and what failed.
void Run::share_cells(const Warn& warn) {
  wait_for_ranks();
  for (Column& column : columns)
    for (int r = 0; r < ranks(); ++r) {
      std::vector<std::vector<std::string>> said = column.failures;
      said.push_back({column.checkpoint, column.failure});
      if (r != rank()) said = {};
      share(said, r);
      if (column.checkpoint.empty()) column.checkpoint = said.back()[0];
      if (column.failure.empty()) column.failure = said.back()[1];
      for (size_t c = 0; c < table.cells.size(); ++c)
        for (size_t i = 0; i < texts.size(); ++i)
          if (column.failures[c][i].empty()) column.failures[c][i] = said[c][i];
    }
  for (Column& column : columns)
    for (size_t c = 0; c < table.cells.size(); ++c)
      for (size_t i = 0; i < texts.size(); ++i)
        if (possible(column, c, i) && column.records[c][i].is_null()) column.records[c][i] = find(column, c, i, warn);
}

const std::vector<Heading> kVisionHeadings = {{"W/A", 5, true}, {"method", 24, true}, {"model", 7, true}, {"paper", 5},
                                              {"ours", 7},      {"+/-", 4},           {"difference", 10}, {"KL", 17},
                                              {"BC adds", 9},   {"bytes", 10},        {"share", 8}};
const std::vector<Heading> kLanguageHeadings = {
    {"bits", 5, true}, {"method", 24, true}, {"model", 10, true}, {"text", 9, true}, {"paper", 7},
    {"ours", 19},      {"difference", 10},   {"over FP", 16},     {"by BC", 15},     {"BC values", 9}};

// How much higher the perplexity of a record is than that of another on the same windows, written into a row; returns
// the cell of the printed table.
std::string put_change(const json& record, const json& base, const std::string& key, json& row) {
  row[key] = row[key + "_se"] = nullptr;
  if (record.is_null() || base.is_null()) return "";
  const auto of = [](const json& r) { return Measured{r.at("window_nll").get<std::vector<double>>()}; };
  const Estimate change = paired_ratio(of(record), of(base));
  row[key] = change.value;
  if (std::isfinite(change.se)) row[key + "_se"] = change.se;
  return format("%+.2f +/- %s", change.value, std::isfinite(change.se) ? format("%.2f", change.se) : "?");
}

// A cell as a row of the JSON table, and as values under the headings.
json Run::row_of(const Column& column, size_t c, size_t i, std::vector<std::string>& values) const {
  const Cell& cell = table.cells[c];
  json record = column.records[c][i], paper;
  if (column.paper >= 0 && !cell.paper.is_null()) paper = cell.paper.at(static_cast<size_t>(column.paper));
  if (paper.is_array()) paper = json(paper.at(i));
  const bool failed = !column.failure.empty() || !column.failures[c][i].empty();
  const std::string state = !possible(column, c, i) ? "not run"
                            : !record.is_null()     ? "measured"
                            : failed                ? "failed"
                                                    : "not run";
  json row = {{"width", cell.width}, {"method", cell.label},  {"model", column.label}, {"state", state},
              {"paper", paper},      {"difference", nullptr}, {"ours", nullptr},       {"standard_error", nullptr}};
  std::string ours = state, difference, se = "?";
  const bool compensated = !record.is_null() && compensates(cell.recipe);
  if (!record.is_null()) {
    const double figure = record.at(vision ? "top1" : "perplexity");
    const json& error = record.at(vision ? "top1_se" : "perplexity_se");
    if (!error.is_null()) se = format("%.2f", error.get<double>());
    ours = vision ? format("%.2f", figure) : format("%8.2f +/- %s", figure, se);
    row.update({{"ours", figure}, {"standard_error", error}});
    if (!paper.is_null()) row["difference"] = figure - paper.get<double>();
    if (!paper.is_null()) difference = format("%+.2f", figure - paper.get<double>());
  }
  const std::string printed = paper.is_null() ? "" : format("%.2f", paper.get<double>());
  if (vision) {
    row["paired"] = record.contains("paired") ? record.at("paired") : json();
    values = {cell.width,
              cell.label,
              column.label,
              printed,
              ours,
              record.is_null() ? "" : se,
              difference,
              kl_text(record),
              compensated ? record.at("bc_parameters_added").dump() : "",
              compensated ? record.at("bc_bytes").dump() : "",
              compensated ? format("%.2f %%", 100 * record.at("bc_share").get<double>()) : ""};
  } else {
    const auto is_base = [&](const Cell& other) {  // what a compensated cell comes from
      return !compensates(other.recipe) && other.recipe.method == cell.recipe.method && other.width == cell.width &&
             other.name == cell.name;
    };
    size_t base = c;
    while (base > 0 && !is_base(table.cells[base])) --base;
    if (!is_base(table.cells[base])) base = c;  // there is none
    const std::string over = put_change(c > 0 ? record : json(), column.records[0][i], "change_percent", row);
    const std::string by = put_change(c != base ? record : json(), column.records[base][i], "bc_change_percent", row);
    const std::string text = name_of(texts[i].definition);
    row.update({{"bits", cell.width}, {"text", text}});
    values = {cell.width, cell.label, column.label, text, printed,
              ours,       difference, over,         by,   compensated ? record.at("bc_parameters").dump() : ""};
    if (!record.is_null()) record.erase("window_nll");
  }
  row["record"] = record;
  return row;
}

std::vector<std::string> Run::notes() const {
  std::vector<std::string> notes;
  if (vision)
    notes = {
        "Top-1 in %; +/- is one standard error over the images (binomial). BC adds: parameters, bytes at 4 each, and "
        "their share of the model's parameters; BC (channel) is folded into biases that are there.",
        "KL: mean divergence of the predictions from the float network's, nats, with its standard error; measured with "
        "--paired.",
        format("BC (position) is the form the paper's scripts fit. They sweep 32, 64, 128 and 1024 images and seeds 0, "
               "3 and 1993; which of these the paper prints is not stated. Here: %d images, seed %d.",
               o.base.bc_images, o.base.bc_seed)};
  else
    notes = {format("Perplexity as GPTQ defines it; +/- is one standard error over the windows. Calibrated on %d "
                    "windows, seed %d.",
                    o.base.samples, o.base.seed),
             "Over FP: change against the float model, in %; by BC: against the same quantized model without it. Both "
             "on the same windows, with the standard error of the paired difference.",
             "BC (position) is what the paper's scripts fit: one value per position and channel."};
  for (const Column& c : columns)
    if (!c.checkpoint.empty()) notes.push_back(c.label + ": " + c.checkpoint + ", from " + c.path);
  for (const auto& [what, why] : failures()) notes.push_back(what + " failed: " + why);
  if (embedded) return notes;
  notes.push_back("Paper: " + get<std::string>(table.file, "source", table.path) + ".");
  for (const json& note : get<json>(table.file, "footnotes", table.path)) notes.push_back(note);
  return notes;
}

}  // namespace

void run_table(const TableRun& options) {
  make_folder(options.out);
  if (!options.cache.empty()) make_folder(options.cache);
  Run run(options);
  run.require_same_files();
  for (Column& column : run.columns) {
    if (column.path.empty()) continue;
    ProgressLine progress(column.label + ": ");
    try {
      run.measure(column, progress);
    } catch (const UsageError&) {
      throw;
    } catch (const Error& e) {  // it ends this column alone
      progress.finish();
      column.failure = e.what();
      if (rank() == 0) print(stderr, "%s failed: %s\n", column.label, e.what());
    }
  }
  ProgressLine of_files;
  if (ranks() > 1) run.share_cells(of_files.warn());
  std::vector<Heading> headings = run.vision ? kVisionHeadings : kLanguageHeadings;
  for (const Cell& cell : run.table.cells)
    headings[1].width = std::max(headings[1].width, static_cast<int>(cell.label.size()));
  print_headings(headings);
  json rows = json::array();
  for (size_t c = 0; c < run.table.cells.size(); ++c)
    for (const Column& column : run.columns)
      for (size_t i = 0; i < run.texts.size(); ++i) {
        std::vector<std::string> values;
        rows.push_back(run.row_of(column, c, i, values));
        print_line(headings, values);
      }
  const std::vector<std::string> notes = run.notes();
  print("\n");
  for (const std::string& note : notes) print("- %s\n", note);
  json table = {{"rows", rows}, {"notes", notes}};
  table.update(run_facts());
  write_record(options.json_path, table);
  if (const auto failures = run.failures(); !failures.empty())
    throw Incomplete(failures[0].first + " could not be measured: " + failures[0].second);
}

}  // namespace bcq
