// The language tables of the paper: methods by model and text, and group sizes.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

namespace bcq {

struct LanguageCell {
  int bits;           // of weights; 32: the float model
  int64_t groupsize;  // -1: a scale per row
  std::string method, bc;
  std::string label() const;  // "GPTQ + BC (channel)"
  std::string width() const;  // "2g64"
};

// The rows of table 2 ("language") and table 3 ("groups"), in their order; the float model first. `mini`: with group
// sizes that divide the embedded models' 128 columns.
std::vector<LanguageCell> language_cells(const std::string& table, bool mini);

struct LanguageColumn {
  const char* label;   // "OPT-125M"
  const char* folder;  // "opt-125m"
};
inline constexpr LanguageColumn kLanguageColumns[] = {
    {"OPT-125M", "opt-125m"}, {"OPT-350M", "opt-350m"}, {"BLOOM-560M", "bloom-560m"}};
inline constexpr const char* kLanguageTexts[] = {"wikitext2", "ptb", "c4"};
// What the paper prints for a cell (BC per position) of a column and a text, 0 where it prints nothing. (README of
// the official repository)
double paper_perplexity(const LanguageCell& cell, size_t column, size_t text);

// Adds the subcommands `language` and `groups`. What is returned runs the one that was given, measuring what is there
// and printing the table; false when none was.
std::function<bool()> add_language_tables(CLI::App& app);

}  // namespace bcq
