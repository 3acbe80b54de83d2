// Everything a vision quantizer leaves open, each under one name: the option of the programs, its line in --help,
// its entry in the JSON record. Among them is every place where the published code and the papers differ.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/file/json.h"
#include "quant/ptq4vit.h"

namespace bcq {

struct PtqChoice {
  std::string name;                 // "softmax-twin": --softmax-twin, "softmax_twin" in records
  std::vector<std::string> values;  // what it may be; empty: a number
  std::string help;
  std::function<void(PtqOptions&, const std::string&)> set;
  std::function<json(const PtqOptions&)> get;
};
const std::vector<PtqChoice>& ptq_choices();

// Choices by name, where they are not the method's own.
using PtqOverrides = std::map<std::string, std::string>;
void add_ptq_options(CLI::App& app, PtqOverrides& overrides, const std::string& group);
// Throws UsageError when a choice or its value does not exist.
void apply(const PtqOverrides& overrides, PtqOptions& options);
json to_json(const PtqOptions& options);

}  // namespace bcq
