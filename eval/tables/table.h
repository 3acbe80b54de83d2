// The tables of the paper: their cells and figures, read from eval/tables/*.json, and how cells are measured.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "engine/file/json.h"
#include "eval/cli.h"
#include "eval/run.h"

namespace bcq {

// A row of a table for one model.
struct Cell {
  Recipe recipe;
  std::string label;  // "PTQ4ViT + BC (channel)"
  std::string name;   // of a row with options of its own: "centred"; part of its label and key
  std::string width;  // "4/4"; of language models "2g64", with activations rounded "6/6"
  std::string key;    // of files: "4-ptq4vit-channel"
  json paper;         // figures by column, each a number or one for each text; null: none
};

// A table's file: "family", vision or language, and "about", a line of help; "columns" of label and model; "rows", and
// "demo_rows" for the demo; the first of each is the float network; "embedded", the names of the embedded
// models; "texts", "owners" of checkpoints on the hub, "source" and "footnotes". A row has bits, abits (of vision
// models bits where it is missing), group, method and bc, and the figures the "paper" prints; it may have "options" of
// a recipe by key, which the command line does not change, and then has a "name" that tells it apart.
struct PaperTable {
  std::string path;
  json file;
  std::vector<Cell> cells;
};
// name: a file, NAME.json, or the name of one in eval/tables of the working directory, in those of the source tree
// around the program, or in the share folder beside it; InputError when it is missing. `given`: options by key, for all
// cells.
PaperTable read_table(const std::string& name, Family family, const json& given, const char* rows = "rows");
// What a table says of itself; of one that cannot be read, something for the command line that will say so.
struct AboutTable {
  Family family = Family::Vision;
  std::string text = "A table that is not there";
};
AboutTable about_table(const std::string& name);
// The embedded models of the table that are in a folder; InputError when there is none.
std::vector<std::string> embedded_models(const PaperTable& table, const std::string& folder);

// The recipe less what compensation adds: cells that have the same share one quantization.
json quantization_of(const Recipe& recipe);
// Measure those cells on those of `data` data sets that are wanted, one quantization for all cells that share it.
// done() gets the record with everything but what its caller knows alone. Where a cell fails, failed() is told why and
// the others go on; UsageError ends all of them, and so does any error without failed(). The model is left quantized.
using CellDone = std::function<void(size_t cell, size_t data, json& record, const Measured& measured)>;
using CellFailed = std::function<void(size_t cell, size_t data, const Error& why)>;
void measure_cells(Task& task, const std::vector<Cell>& cells, size_t data,
                   const std::function<bool(size_t cell, size_t data)>& wanted, ProgressLine& progress,
                   const CellDone& done, const CellFailed& failed = {});

// A table as Markdown on stdout.
struct Heading {
  const char* name;
  int width;
  bool left = false;
};
void print_headings(const std::vector<Heading>& headings);
void print_line(const std::vector<Heading>& headings, const std::vector<std::string>& values);

struct TableRun {
  std::string name = "vision";     // as read_table() takes it
  std::string models, data;        // checkpoints, and images or corpora; empty: the embedded ones, of
  std::string mini = "data/mini";  // this folder
  std::string only;                // rows whose key this pattern is found in; empty: all
  std::string labels, cache;       // as list_images() takes them
  std::string out, json_path;      // folder of finished cells; the table as JSON (see write_record)
  int64_t limit = 0, batch_size = 32;
  bool paired = false;  // of images: how far predictions are from the float network's
  Recipe base;          // family, and what cells do not decide
  json given;           // of that, what the command line says; by key
};
// Measure every cell of the models that are there and is not finished, and print the table. A model that cannot be
// measured leaves its cells "failed", those that are not there "not run"; throws Incomplete at the end when any failed.
void run_table(const TableRun& run);

}  // namespace bcq
