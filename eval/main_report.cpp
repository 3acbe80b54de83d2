// report: the records of other programs as one page for people.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "engine/core/check.h"
#include "engine/file/file.h"
#include "engine/file/json.h"
#include "eval/cli.h"
#include "eval/page.h"
#include "eval/results.h"

namespace {

using namespace bcq;

using Cells = std::vector<std::string>;

// At most 1000 of them; empty where they are no numbers.
std::vector<double> numbers_in(const json& record, const char* key) {
  const auto found = record.find(key);
  if (found == record.end() || !found->is_array() || found->size() > 1000) return {};
  std::vector<double> numbers;
  for (const json& value : *found) {
    if (!value.is_number()) return {};
    numbers.push_back(value.get<double>());
  }
  return numbers;
}
// Columns from `numbers` on are numbers; those without a value are left out.
std::string html_table(const Cells& headings, const std::vector<Cells>& rows, size_t numbers) {
  const auto is_empty = [&](size_t i) {
    return std::all_of(rows.begin(), rows.end(), [i](const Cells& row) { return row[i].empty(); });
  };
  const auto line = [&](const Cells& cells, const char* tag) {
    std::string html = "<tr>";
    for (size_t i = 0; i < cells.size(); ++i) {
      if (is_empty(i)) continue;
      html += format("<%s%s>", tag, i >= numbers ? " class=\"n\"" : "") + html_text(cells[i]) + format("</%s>", tag);
    }
    return html + "</tr>\n";
  };
  std::string html = "<div class=\"scroll\"><table>" + line(headings, "th");
  for (const Cells& row : rows) html += line(row, "td");
  return html + "</table></div>\n";
}

// On a narrow screen it is wider than the page, and moves under it.
std::string chart_html(const std::string& chart) { return "<div class=\"scroll\">" + chart + "</div>\n"; }

// ---- Result records -------------------------------------------------------------------------------------------------

const std::vector<std::string> kLegend = {"float", "quantized", "with bias compensation"};
size_t series_of(const json& record) {
  const std::string bc = text_in(record, "bc");
  return text_in(record, "method").starts_with("fp") ? 0 : bc.empty() || bc == "none" ? 1 : 2;
}

std::optional<Mark> kl_mark(const json& record) {
  const json paired = record.value("paired", json());
  if (!paired.is_object() || !std::isfinite(number_in(paired, "kl"))) return std::nullopt;
  return Mark{number_in(paired, "kl"), number_in(paired, "kl_se"), series_of(record)};
}

// What one model was measured to be by several methods: a chart, and the table of the same figures.
std::string results_html(const std::vector<json>& records) {
  const bool vision = is_vision(records[0]);
  const char* const key = vision ? "top1" : "perplexity";
  std::vector<ChartRow> chart, kl;
  std::vector<Cells> rows;
  for (const json& record : records) {
    const double figure = number_in(record, key), error = number_in(record, vision ? "top1_se" : "perplexity_se");
    const std::string shown = format("%.2f", figure) + (error > 0 ? format(" ± %.2f", error) : "");
    const std::string label = label_of(record);
    const std::optional<Mark> mark = kl_mark(record);
    if (std::isfinite(figure)) {
      if (mark) kl.push_back({label, {*mark}, format("%.4f", mark->value)});
      chart.push_back({label, {{figure, error > 0 ? error : 0, series_of(record)}}, shown});
    }
    rows.push_back({label, shown, mark ? number_text(mark->value, 5) + " ± " + number_text(mark->error, 5) : "",
                    number_text(number_in(record.value("paired", json()), "agreement"), 1),
                    text_in(record, "bc_parameters"), number_text(number_in(record, "bits_per_weight"), 2),
                    number_text(number_in(record, "seconds"), 1)});
  }
  return chart_html(dot_chart(chart, kLegend, vision ? "top-1 %" : "perplexity")) +
         (kl.empty() ? "" : chart_html(dot_chart(kl, kLegend, "KL, nats"))) +
         html_table({"method", key, "KL, nats", "agreement, %", "BC values", "bits per weight", "seconds"}, rows, 1);
}

// By model and data, in the order they come.
std::string all_results_html(const std::vector<json>& records) {
  std::vector<std::pair<std::string, std::vector<json>>> groups;
  for (const json& record : records) {
    const std::string on = text_in(record, is_vision(record) ? "data" : "text");
    const std::string name = text_in(record, "model") + (on.empty() ? "" : " on " + on);
    auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.first == name; });
    if (found == groups.end()) found = groups.insert(groups.end(), {name, {}});
    found->second.push_back(record);
  }
  std::string html;
  for (const auto& [name, of_one] : groups) html += "<h2>" + html_text(name) + "</h2>\n" + results_html(of_one);
  return html;
}

// ---- Tables beside the paper ----------------------------------------------------------------------------------------

std::string table_html(const json& table) {
  std::vector<ChartRow> chart;
  std::vector<Cells> rows;
  for (const json& row : table["rows"]) {
    const double ours = number_in(row, "ours"), paper = number_in(row, "paper"), se = number_in(row, "standard_error");
    const std::string label = text_in(row, "model") + " " + text_in(row, "width") + " " + text_in(row, "method");
    ChartRow line{label, {}, number_text(ours, 2)};
    if (std::isfinite(paper)) line.marks.push_back({paper, 0, 0});
    if (std::isfinite(ours)) line.marks.push_back({ours, se > 0 ? se : 0, 1});
    if (!line.marks.empty()) chart.push_back(line);
    rows.push_back({text_in(row, "width"), text_in(row, "method"), text_in(row, "model"), text_in(row, "text"),
                    text_in(row, "state"), number_text(paper, 2), number_text(ours, 2), number_text(se, 2),
                    number_text(number_in(row, "difference"), 2)});
  }
  std::string html =
      dot_chart(chart, {"paper", "ours"}, "") +
      html_table({"bits", "method", "model", "text", "state", "paper", "ours", "±", "difference"}, rows, 5);
  for (const json& note : table.value("notes", json::array()))
    html += "<p class=\"dim\">" + html_text(note.is_string() ? note.get<std::string>() : note.dump()) + "</p>\n";
  return html;
}

// ---- Layers ---------------------------------------------------------------------------------------------------------

bool is_layers(const json& rows) {
  return rows.is_array() && !rows.empty() && rows[0].is_object() &&
         (rows[0].contains("mse_before") || rows[0].contains("mse_rounded"));
}

// Signal over error of every layer at each step, and the worst five by the last.
std::string layers_html(const json& rows) {
  const bool outputs = rows[0].contains("mse_before");
  using Steps = std::vector<std::pair<const char*, const char*>>;
  const Steps steps = outputs ? Steps{{"mse_before", "quantized"}, {"mse_after", "and compensated"}}
                              : Steps{{"mse_rounded", "rounded"},
                                      {"mse_gptq", "GPTQ"},
                                      {"mse_refined", "refined"},
                                      {"mse_compensated", "and compensated"}};
  std::vector<std::string> names, legend;
  std::vector<std::vector<double>> series(steps.size());
  for (const auto& [key, name] : steps) legend.push_back(name);
  for (const json& row : rows) {
    names.push_back(text_in(row, outputs ? "output" : "site"));
    const double signal = number_in(row, "signal");
    for (size_t s = 0; s < steps.size(); ++s) {
      const double error = number_in(row, steps[s].first);
      series[s].push_back(error > 0 && signal > 0 ? 10 * std::log10(signal / error) : NAN);
    }
  }
  std::vector<size_t> order;
  for (size_t i = 0; i < names.size(); ++i)
    if (std::isfinite(series.back()[i])) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return series.back()[a] < series.back()[b]; });
  std::vector<Cells> worst;
  for (size_t k = 0; k < std::min<size_t>(5, order.size()); ++k) {
    const json& row = rows[order[k]];
    const auto grid = [&](const char* key) {
      return row.contains(key) && row[key].is_object() ? text_in(row[key], "grid") + " " + text_in(row[key], "bits")
                                                       : "";
    };
    worst.push_back({names[order[k]], outputs ? grid("a") : text_in(row, "bits") + " bit", outputs ? grid("b") : "",
                     format("%.1f", series.front()[order[k]]), format("%.1f", series.back()[order[k]])});
  }
  // The operand of the worst product there is one of.
  std::string operand;
  for (const size_t i : order) {
    const json& histogram = rows[i].value("histogram", json());
    if (!histogram.is_object()) continue;
    const std::vector<double> counts = numbers_in(histogram, "counts"), levels = numbers_in(histogram, "levels");
    const std::string chart = histogram_chart(number_in(histogram, "lo"), number_in(histogram, "hi"), counts, levels);
    if (chart.empty()) continue;
    operand = "<p>What " + html_text(names[i]) +
              " is fed in the float network (a sample; how often, on a logarithmic " + "scale), and below it the " +
              std::to_string(levels.size()) + " levels it is rounded to:</p>\n" + chart_html(chart);
    break;
  }
  const auto gain = [&](size_t i) { return series.back()[i] - series.front()[i]; };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return gain(a) > gain(b); });
  std::vector<Cells> most;
  for (size_t k = 0; k < std::min<size_t>(5, order.size()); ++k)
    most.push_back({names[order[k]], format("%+.1f", gain(order[k]))});
  return chart_html(profile_chart(names, series, legend, "dB")) + "<p>The worst layers: signal over error, dB.</p>\n" +
         html_table(
             {"layer", outputs ? "left grid" : "grid", outputs ? "right grid" : "", legend.front(), legend.back()},
             worst, 3) +
         operand + "<p>Where " + (outputs ? "compensation" : "all that follows rounding") + " gives back most:</p>\n" +
         html_table({"layer", "dB"}, most, 1);
}

// ---- What else is known of a run ------------------------------------------------------------------------------------

// Under the name of its file.
std::string facts_html(const std::string& name, const json& record) {
  std::string html = "<details><summary>" + html_text(name), facts;
  for (const char* key : {"version", "isa", "blas", "threads", "peak_rss_mb", "labelled_by", "calib_text"})
    if (!text_in(record, key).empty())
      facts += (facts.empty() ? "" : ", ") + std::string(key) + " " + text_in(record, key);
  html += "</summary>\n<p class=\"dim\">" + html_text(facts) + "</p>\n";
  for (const json& warning : record.value("warnings", json::array()))
    html += "<p>Warning: " + html_text(warning.is_string() ? warning.get<std::string>() : warning.dump()) + "</p>\n";
  if (record.contains("recipe")) html += "<pre>" + html_text(record["recipe"].dump(2)) + "</pre>\n";
  return html + "</details>\n";
}

// Any other record: what it holds, but for lists.
std::string fields_html(const json& records) {
  Cells headings;
  std::vector<Cells> rows;
  for (const json& record : records)
    for (const auto& [key, value] : record.items())
      if (!value.is_structured() && std::find(headings.begin(), headings.end(), key) == headings.end())
        headings.push_back(key);
  for (const json& record : records) {
    rows.emplace_back();
    for (const std::string& key : headings) rows.back().push_back(text_in(record, key.c_str()));
  }
  return html_table(headings, rows, 1);
}

struct Report {
  std::vector<json> results;   // of all files, to be shown side by side
  std::string sections, runs;  // what else the files hold; facts about the runs

  void add(const std::string& path, const json& file) {
    const std::string name = std::filesystem::path(path).filename().string(),
                      heading = "<h2>" + html_text(name) + "</h2>\n";
    if (is_layers(file)) {
      sections += heading + layers_html(file);
      return;
    }
    const bool is_table = file.is_object() && file.contains("rows") && file["rows"].is_array();
    const json records = file.is_array() ? file : json::array({file});
    const auto all = [&](auto is) { return std::all_of(records.begin(), records.end(), is); };
    require_input(!records.empty() && all([](const json& record) { return record.is_object(); }),
                  "%s: neither a record nor a list of records, a table or a layer report", path);
    if (is_table)
      sections += heading + table_html(file);
    else if (all(is_result))
      results.insert(results.end(), records.begin(), records.end());
    else
      sections += heading + fields_html(records);
    runs += facts_html(name, records[0]);
  }
  // Divergence from the float network of every result that has it.
  std::string picture() const {
    std::vector<ChartRow> rows;
    for (const json& record : results)
      if (const std::optional<Mark> mark = kl_mark(record))
        rows.push_back({text_in(record, "model") + " " + label_of(record), {*mark}, format("%.4f", mark->value)});
    require_input(!rows.empty(),
                  "--svg draws divergences from the float network: no record has any (imagenet --paired)");
    return svg_file(dot_chart(rows, kLegend, "KL, nats"));
  }
  std::string page(const std::string& title) const {
    return html_page(title, "<h1>" + html_text(title) + "</h1>\n" + all_results_html(results) + sections +
                                (runs.empty() ? "" : "<h2>Runs</h2>\n" + runs));
  }
};

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("report",
                   "The JSON records of other programs as one page: charts, tables, the worst layers, recipes; or as "
                   "tables of a Markdown file.",
                   "Examples:\n  report build/demo.json -o report.html\n"
                   "  report w4a4.json w4a4-bc.json layers.json --title 'ViT-B at 4 bits' -o report.html\n"
                   "  report eval/results --into quant/README.md");
  std::vector<std::string> paths;
  std::string html, svg, into, title = "Quantization report";
  line.add({"records", "FILE",
            "Records of imagenet, perplexity, table, demo, bench and others, and layer reports (JSON); with --into "
            "alone, a folder: those the file names"},
           paths);
  line.add_output({"--output,-o", "FILE", "The page"}, html);
  line.add_output({"--svg", "FILE", "The divergences from the float network alone, as a picture"}, svg);
  line.add_output(
      {"--into", "FILE",
       "A Markdown file: the table between its lines <!-- NAME.json ... --> and <!-- end --> is made anew of "
       "the records of these names"},
      into);
  line.add({"--title", "TEXT", "Its heading"}, title);
  return line.run(argc, argv, [&] {
    require_usage(!paths.empty(), "no records: give JSON files");
    require_usage(!html.empty() || !into.empty(), "--output is required, or --into");
    for (const auto& [a, b] : {std::pair{html, svg}, {html, into}, {svg, into}})
      require_usage(a.empty() || std::filesystem::weakly_canonical(a) != std::filesystem::weakly_canonical(b),
                    "two outputs are the file %s", a);
    Report report;
    std::map<std::string, json> tables;  // rows, by the name of their file
    const std::string old = into.empty() ? "" : read_file(into);
    std::error_code unknown;
    if (paths.size() == 1 && html.empty() && std::filesystem::is_directory(paths[0], unknown)) {
      const std::string folder = std::exchange(paths, {})[0];
      for (const std::string& name : tables_in(old, into)) paths.push_back(folder + "/" + name);
      require_input(!paths.empty(), "%s: no line \"<!-- NAME.json -->\" is in it; write it where a table belongs",
                    into);
    }
    for (const std::string& path : paths) {
      const json file = read_json(path);
      report.add(path, file);
      if (into.empty()) continue;
      const std::string name = std::filesystem::path(path).filename().string();
      const json rows = file.is_object() ? file.value("rows", json::array({file})) : file;
      require_usage(tables.emplace(name, rows).second, "--into goes by names of files, and two are called %s", name);
    }
    const std::string markdown = into.empty() ? "" : with_tables(old, tables, into);
    const std::string picture = svg.empty() ? "" : report.picture();
    if (!html.empty()) write_file(html, report.page(title));
    if (!svg.empty()) write_file(svg, picture);
    if (!into.empty()) write_file(into, markdown);
  });
}
