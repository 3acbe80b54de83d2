#include "eval/layer_report.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "eval/cli.h"

namespace bcq {
namespace {

// A grid as JSON: kind, bits and its intervals; long lists of intervals are given in full.
json describe(const Grid& grid) {
  json description = {{"grid", grid.name()}};
  for (const auto& [name, value] : grid.describe())
    std::visit([&, key = name](const auto& v) { description[key] = v; }, value);
  return description;
}

json decibels(double signal, double error) { return error > 0 ? json(10 * std::log10(signal / error)) : json(nullptr); }

// One field of a CSV line; JSON text has commas and quotes of its own.
std::string field(const json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  const std::string text = value.dump();
  if (!value.is_structured()) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// Rows of these members.
void write_rows(const std::string& path, const std::vector<std::string>& columns, const json& rows) {
  const bool is_csv = path.size() > 4 && path.compare(path.size() - 4, 4, ".csv") == 0;
  if (!is_csv) return write_record(path, rows);
  std::string csv;
  for (const std::string& column : columns) csv += (csv.empty() ? "" : ",") + column;
  csv += "\n";
  for (const json& row : rows) {
    for (size_t i = 0; i < columns.size(); ++i) csv += (i == 0 ? "" : ",") + field(row.at(columns[i]));
    csv += "\n";
  }
  write_file(path, csv);
}

// "lo", "hi" and "counts" of equal parts between them; "levels", the numbers values are rounded to. Null without any.
json histogram(const OutputError& of) {
  if (of.operand.empty()) return nullptr;
  const auto [lo, hi] = std::minmax_element(of.operand.begin(), of.operand.end());
  std::vector<int64_t> counts(*hi > *lo ? 64 : 1);
  for (const float x : of.operand) {
    const double share = *hi > *lo ? (static_cast<double>(x) - *lo) / (static_cast<double>(*hi) - *lo) : 0;
    ++counts[std::min(counts.size() - 1, static_cast<size_t>(share * static_cast<double>(counts.size())))];
  }
  const std::set<float> levels(of.rounded.begin(), of.rounded.end());
  return {{"lo", *lo}, {"hi", *hi}, {"counts", counts}, {"levels", levels}};
}

const std::vector<std::string> kOutputColumns = {
    "output",         "kind",          "op", "signal", "mse_before",    "mse_after",
    "sqnr_before_db", "sqnr_after_db", "a",  "b",      "search_seconds"};
json output_rows(const Outcome& outcome) {
  json rows = json::array();
  for (size_t i = 0; i < outcome.before.size(); ++i) {
    const OutputError &before = outcome.before[i], &after = outcome.after.at(i);
    json row = {{"output", before.name},
                {"kind", before.kind},
                {"op", nullptr},
                {"signal", before.signal},
                {"mse_before", before.error},
                {"mse_after", after.error},
                {"sqnr_before_db", decibels(before.signal, before.error)},
                {"sqnr_after_db", decibels(before.signal, after.error)},
                {"a", nullptr},
                {"b", nullptr},
                {"search_seconds", nullptr},
                {"histogram", histogram(before)}};
    if (const Layer* layer = before.layer) {
      row["op"] = op_name(layer->role);
      row["a"] = describe(layer->left_grid());
      row["b"] = describe(layer->quantized ? layer->quantized->right : Grid{});
      const auto& seconds = outcome.solved.seconds.of_layer;
      const auto searched = seconds.find(layer);
      if (searched != seconds.end()) row["search_seconds"] = searched->second;
    }
    rows.push_back(row);
  }
  return rows;
}

const std::vector<std::string> kLayerColumns = {
    "site",     "bits",        "group",           "damp",        "ridge", "signal", "mse_rounded",
    "mse_gptq", "mse_refined", "mse_compensated", "mse_held_out"};
json layer_rows(const CalibrationResult& result) {
  json rows = json::array();
  for (const PartRecord& part : result.parts)
    for (const LayerRecord& layer : part.layers)
      rows.push_back({{"site", layer.layer},
                      {"bits", layer.bits},
                      {"group", layer.group},
                      {"damp", layer.damp},
                      {"ridge", std::isfinite(layer.ridge) ? json(layer.ridge) : json(nullptr)},
                      {"signal", layer.signal},
                      {"mse_rounded", layer.rounded},
                      {"mse_gptq", layer.solved},
                      {"mse_refined", layer.refined},
                      {"mse_compensated", layer.compensated},
                      {"mse_held_out", std::isfinite(layer.held_out) ? json(layer.held_out) : json(nullptr)}});
  return rows;
}

}  // namespace

void write_layer_report(const std::string& path, const Outcome& outcome) {
  if (outcome.before.empty()) return write_rows(path, kLayerColumns, layer_rows(outcome.solved));
  write_rows(path, kOutputColumns, output_rows(outcome));
}

std::string certificate_text(const CalibrationResult& result) {
  constexpr std::pair<const char*, double LayerRecord::*> kSteps[] = {{"rounded", &LayerRecord::rounded},
                                                                      {"GPTQ", &LayerRecord::solved},
                                                                      {"refined", &LayerRecord::refined},
                                                                      {"and a bias", &LayerRecord::compensated},
                                                                      {"on held-out data", &LayerRecord::held_out}};
  std::string text;
  int most = 0, dropped = 0;
  for (const auto& [name, step] : kSteps) {
    double sum = 0;
    int layers = dropped = 0;
    for (const PartRecord& part : result.parts) {
      dropped += static_cast<int>(part.dropped);
      for (const LayerRecord& layer : part.layers) {
        if (!(layer.*step > 0) || !(layer.signal > 0)) continue;
        sum += 10 * std::log10(layer.*step / layer.signal);
        ++layers;
      }
    }
    if (layers > 0) text += format("%s %s %.1f", text.empty() ? "" : ",", name, sum / layers);
    most = std::max(most, layers);
  }
  if (text.empty()) return text;
  text = format("error over signal of %d layers, dB:%s", most, text);
  return dropped > 0 ? text + format("; %d outputs keep no bias: it did harm on held-out data", dropped) : text;
}

}  // namespace bcq
