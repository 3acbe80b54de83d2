// report: charts and pages of records.
#include <set>
#include <sstream>

#include "eval/page.h"
#include "tests/cli.h"

using namespace bcq;
using namespace bcq::cli;

namespace {

// The numbers of an attribute, in order: circles' cx.
std::vector<double> numbers(const std::string& svg, const std::string& tag, const std::string& attribute) {
  std::vector<double> found;
  for (size_t at = svg.find("<" + tag); at != std::string::npos; at = svg.find("<" + tag, at + 1))
    found.push_back(std::stod(svg.substr(svg.find(attribute + "=\"", at) + attribute.size() + 2)));
  return found;
}

json record(const char* method, const char* bc, double top1, double kl) {
  return {{"model", "vit"},
          {"method", method},
          {"bc", bc},
          {"wbits", 4},
          {"abits", 4},
          {"data", "<val>"},
          {"top1", top1},
          {"top1_se", 1},
          {"seconds", 2},
          {"paired", {{"kl", kl}, {"kl_se", 0.001}}},
          {"warnings", {"a & b"}}};
}

}  // namespace

TEST_CASE("chart: dots stand where their values are, logarithmic where they span much") {
  const auto row = [](double value) { return ChartRow{"r", {{value, 0, 0}}, ""}; };
  const std::vector<double> even = numbers(dot_chart({row(10), row(15), row(20)}, {"one"}, ""), "circle", "cx");
  REQUIRE(even.size() == 3);
  CHECK(even[1] - even[0] == doctest::Approx(even[2] - even[1]).epsilon(1e-3));
  CHECK(even[0] < even[1]);
  const std::vector<double> powers = numbers(dot_chart({row(0.01), row(0.1), row(1)}, {"one"}, ""), "circle", "cx");
  CHECK(powers[1] - powers[0] == doctest::Approx(powers[2] - powers[1]).epsilon(1e-3));
  const std::string bar = dot_chart({{"r", {{10, 2, 0}}, ""}, row(20)}, {"one"}, "");
  const std::vector<double> cx = numbers(bar, "circle", "cx"), from = numbers(bar, "line", "x1"),
                            to = numbers(bar, "line", "x2");
  const double unit = (cx[1] - cx[0]) / 10;
  bool found = false;  // the error bar: from 8 to 12
  for (size_t i = 0; i < from.size(); ++i)
    found |= std::abs(from[i] - (cx[0] - 2 * unit)) < 0.2 && std::abs(to[i] - (cx[0] + 2 * unit)) < 0.2;
  CHECK(found);
  CHECK(dot_chart({}, {}, "").empty());
  CHECK(numbers(dot_chart({row(27.23), row(27.230000000000004)}, {"one"}, ""), "circle", "cx").size() ==
        2);  // and it ends
  CHECK(numbers(dot_chart({row(5e-324), row(1)}, {"one"}, ""), "circle", "cx").size() == 2);
  const std::vector<double> cy =
      numbers(profile_chart({"a", "b", "c"}, {{0, NAN, 20}, {10, 10, 10}}, {"x", "y"}, "dB"), "circle", "cy");
  REQUIRE(cy.size() == 7);  // two of the legend
  CHECK(cy[2] - cy[4] == doctest::Approx(cy[4] - cy[3]).epsilon(1e-3));
  CHECK(svg_file(dot_chart({row(1)}, {"one"}, "")).starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox"));
}

TEST_CASE("report: results of several files beside each other, tables, layers and runs on one page") {
  const Folder folder;
  const std::string page = folder / "r.html", picture = folder / "r.svg";
  write_file(folder / "a.json", record("ptq4vit", "none", 61.25, 0.5).dump());
  write_file(folder / "b.json", json::array({record("ptq4vit", "channel", 71.75, 0.25)}).dump());
  write_file(folder / "table.json", R"({"rows": [{"model": "ViT-B", "width": "4/4", "method": "BasePTQ", "paper": 68.16,
      "ours": 67.5, "standard_error": 0.2, "difference": -0.66, "state": "measured"}], "notes": ["a note"]})");
  write_file(folder / "layers.json", R"([{"output": "good", "signal": 1, "mse_before": 0.01, "mse_after": 0.001,
      "a": {"grid": "uniform", "bits": 4}, "b": null}, {"output": "bad", "signal": 1, "mse_before": 0.5,
      "mse_after": 0.5, "a": null, "b": null, "histogram": {"lo": -1, "hi": 3, "counts": [10, 0, 5],
      "levels": [-1.25, 0.5]}}])");
  const Result r = run("report " + folder / "a.json" + " " + folder / "b.json" + " " + folder / "table.json" + " " +
                       folder / "layers.json" + " --title 'A <title>' -o " + page + " --svg " + picture);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  const std::string html = read_file(page);
  for (const char* part : {"A &lt;title&gt;", "vit on &lt;val&gt;", "61.25 ± 1.00", "71.75 ± 1.00", "0.25000 ± 0.00100",
                           "ptq4vit W4A4 + BC (channel)", "68.16", "67.50", "a note", "Warning: a &amp; b", "+10.0",
                           "What bad is fed", "<title>0.333333 to 1.66667: 0</title>", "<title>-1.25</title>"})
    CHECK_MESSAGE(contains(html, part), part);
  CHECK(html.find("vit on &lt;val&gt;") == html.rfind("vit on &lt;val&gt;"));  // one section of both files
  CHECK(html.find("<td>bad</td>") < html.find("<td>good</td>"));               // the worst first
  CHECK(!contains(html, "http"));
  CHECK(contains(read_file(picture), "vit ptq4vit W4A4 + BC (channel): 0.25"));
}

TEST_CASE("report: the tables of a Markdown file are made anew from records") {
  const Folder folder;
  const auto row = [](const char* width, const char* method, const char* model, json ours, json kl) {
    return json{{"width", width}, {"method", method},      {"model", model},
                {"ours", ours},   {"standard_error", 1.5}, {"paired", {{"kl", kl}}}};
  };
  json rows = {row("32/32", "FP32", "vit", 91.8, 0), row("32/32", "FP32", "swin", 87.44, 0)};
  rows.push_back(row("4/4", "BasePTQ", "vit", 88.0, .1361));
  rows.push_back(row("4/4", "BasePTQ", "swin", 52.6, 1.581));
  rows.push_back(row("4/4", "BasePTQ + BC (channel)", "vit", 87.0, .0354));
  rows.push_back(row("4/4", "BasePTQ + BC (channel)", "swin", nullptr, nullptr));
  rows.push_back(row("4/8", "joint", "vit", 91.0, .0012));
  write_file(folder / "cells.json", json{{"rows", rows}}.dump());
  const json text = {{"model", "opt"},   {"method", "gptq"},     {"bc", "none"},        {"wbits", 3},
                     {"groupsize", 128}, {"perplexity", 27.254}, {"perplexity_se", .2}, {"text", "wikitext2"}};
  write_file(folder / "one.json", text.dump());
  const std::string readme = folder / "README.md",
                    command = "report " + folder / "cells.json" + " " + folder / "one.json" + " --into " + readme;
  write_file(readme, R"(# Title

<!-- cells.json -->
old
<!-- end -->
between
<!-- one.json --><!-- end -->
<!-- one.json -->
<!-- end -->
)");
  REQUIRE(run(command).code == 0);
  CHECK(read_file(readme) == R"(# Title

<!-- cells.json -->

| | vit | swin |
|---|---|---|
| FP32 | 91.8 | 87.4 |
| BasePTQ W4A4 | 88.0, .136 → 87.0, .035 | 52.6, 1.58 |
| joint W4A8 | 91.0, .0012 | |

<!-- end -->
between
<!-- one.json --><!-- end -->
<!-- one.json -->

| | opt |
|---|---|
| gptq 3 bit g128 | 27.25 |

<!-- end -->
)");
  const std::string made = read_file(readme);
  REQUIRE(run(command).code == 0);
  CHECK(read_file(readme) == made);
  // Small perplexities have three decimals.
  const std::string one = read_file(folder / "one.json");
  json small = json::parse(one);
  (small.is_array() ? small[0] : small)["perplexity"] = 2.3456;
  write_file(folder / "one.json", small.dump());
  REQUIRE(run(command).code == 0);
  CHECK(contains(read_file(readme), "| gptq 3 bit g128 | 2.346 |\n"));
  write_file(folder / "one.json", one);
  // Two forms of compensation stand in rows of their own.
  rows[5]["method"] = "BasePTQ + BC (position)";
  write_file(folder / "cells.json", json{{"rows", rows}}.dump());
  REQUIRE(run(command).code == 0);
  CHECK(contains(read_file(readme), "| BasePTQ W4A4 + BC (channel) | 87.0, .035 | |\n"));
  rows.push_back(rows[0]);
  write_file(folder / "cells.json", json{{"rows", rows}}.dump());
  check_failure(command, 3, {"cells.json", "two results of FP32 on vit"});
  write_file(folder / "one.json", R"([{"a": 1}])");
  check_failure("report " + folder / "one.json" + " --into " + readme, 3, {"one.json", "neither a table nor results"});
  write_file(folder / "other.json", text.dump());
  check_failure("report " + folder / "other.json" + " --into " + readme, 3, {"README.md", "<!-- other.json -->"});
  // One table of several records.
  write_file(folder / "one.json", text.dump());
  json further = text;
  further["text"] = "ptb";
  write_file(folder / "other.json", further.dump());
  write_file(readme, "<!-- other.json one.json -->\n<!-- end -->\n");
  REQUIRE(run("report " + folder / "one.json" + " " + folder / "other.json" + " --into " + readme).code == 0);
  CHECK(contains(read_file(readme), "| | opt on ptb | opt on wikitext2 |\n"));
  check_failure("report " + folder / "one.json" + " --into " + readme, 3, {"README.md", "needs other.json, too"});
  // What would be lost or misread is refused, and the file stays as it was.
  const auto refused = [&](const std::string& content, std::initializer_list<const char*> parts) {
    write_file(readme, content);
    check_failure("report " + folder / "one.json" + " --into " + readme, 3, parts);
    CHECK(read_file(readme) == content);
  };
  refused("<!-- one.json -->\ntext\n<!-- two.json -->\n<!-- end -->\n", {"no line \"<!-- end -->\" follows"});
  refused("<!-- one.json -->\r\n<!-- end -->\r\n", {"CR LF"});
  refused("```\n<!-- one.json -->\n<!-- end -->\n```\n", {"no line \"<!-- one.json -->\""});
  refused("<!-- one.json three.json -->\n<!-- end -->\n", {"needs three.json, too"});
  fs::create_directories(folder / "again");
  write_file(folder / "again/one.json", text.dump());
  check_failure("report " + folder / "one.json" + " " + folder / "again/one.json" + " --into " + readme, 2,
                {"two are called one.json"});
  check_failure("report " + folder / "one.json" + " -o " + readme + " --into " + readme, 2, {"two outputs"});
  write_file(folder / "cells.json", R"({"rows": []})");
  check_failure("report " + folder / "cells.json" + " --into " + readme, 3, {"cells.json"});
  // A compensated figure alone is not taken for one without compensation; names cannot break a table.
  json only = text;
  only["bc"] = "channel";
  only["model"] = "a|b";
  write_file(folder / "one.json", only.dump());
  write_file(readme, "<!-- one.json -->\n<!-- end -->\nno newline");
  REQUIRE(run("report " + folder / "one.json" + " --into " + readme).code == 0);
  CHECK(contains(read_file(readme), "| | a\\|b |\n|---|---|\n| gptq 3 bit g128 | → 27.25 |\n"));
  CHECK(read_file(readme).ends_with("<!-- end -->\nno newline"));
  write_file(readme, "<!-- one.json -->\n");
  check_failure("report " + folder / "one.json" + " --into " + readme, 3,
                {"README.md", "no line \"<!-- end -->\" follows"});
}

TEST_CASE("report: the tables of this repository's READMEs are those of its records") {
  for (const std::string readme : {"README.md", "quant/README.md", "eval/bench/README.md"}) {
    CAPTURE(readme);
    const std::string text = read_file(readme);
    const Folder folder;
    write_file(folder / "README.md", text);
    const Result result = run("report eval/results --into " + folder / "README.md");
    CAPTURE(result.err);
    REQUIRE(result.code == 0);
    CHECK(read_file(folder / "README.md") == text);
  }
}

TEST_CASE("report: what is no record is refused by name, and nothing is written") {
  const Folder folder;
  const std::string page = " -o " + folder / "r.html";
  for (const char* text : {"[]", "[1, 2]", "3", "[[]]"}) {
    write_file(folder / "x.json", text);
    check_failure("report " + folder / "x.json" + page, 3, {"x.json", "neither a record"});
  }
  write_file(folder / "x.json", "{");
  check_failure("report " + folder / "x.json" + page, 3, {"x.json"});
  check_failure("report" + page, 2, {"no records"});
  write_file(folder / "x.json", R"({"model": "opt", "perplexity": 3})");
  check_failure("report " + folder / "x.json", 2, {"--output is required"});
  check_failure("report " + folder / "x.json" + page + " --svg " + folder / "r.svg", 3, {"--paired"});
  CHECK(!fs::exists(folder / "r.html"));
  CHECK(run("report " + folder / "x.json" + page).code == 0);
  json infinite = record("ptq4vit", "none", 61.25, 0.5);
  infinite["paired"]["kl"] = nullptr;
  infinite["seconds"] = nullptr;
  write_file(folder / "x.json", infinite.dump());
  CHECK(run("report " + folder / "x.json" + page).code == 0);
  CHECK(!contains(read_file(folder / "r.html"), "nan"));
  check_failure("report " + folder / "x.json" + page + " --svg " + folder / "r.svg", 3, {"no record has any"});
}

TEST_CASE("report: times of bench and of bench_peers.py as tables") {
  const Folder folder;
  const std::string readme = folder / "README.md";
  fs::create_directories(folder / "results");
  write_file(folder / "results/bench.json", R"([{"work": "ViT, batch 1, FP32", "ms": 213.4, "fp32_over_this": 1.0},
    {"work": "ViT, batch 1, W8A8", "ms": 118.37, "fp32_over_this": 1.803},
    {"work": "Swin, batch 1, FP32", "ms": 7.26, "fp32_over_this": 1.0}])");
  write_file(folder / "results/peers.json", R"([{"work": "ViT, W8A8", "engine": "ours", "ms": 118.4},
    {"work": "ViT, W8A8", "engine": "PyTorch, dynamic", "ms": 148, "ours_over_this": 0.8},
    {"work": "ViT, W8A8", "engine": "OpenVINO", "output": "openvino is not installed"}])");
  write_file(readme,
             "<!-- bench.json -->\n<!-- end -->\n```\n<!-- none.json -->\n```\n<!-- peers.json -->\n<!-- end -->\n");
  REQUIRE(run("report " + folder / "results" + " --into " + readme).code == 0);
  CHECK(contains(read_file(readme), R"(
| | FP32 | W8A8 |
|---|---|---|
| ViT, batch 1 | 213 | 118 (1.80) |
| Swin, batch 1 | 7.3 | |
)"));
  CHECK(contains(read_file(readme), R"(
| | ours | PyTorch | OpenVINO |
|---|---|---|---|
| ViT, W8A8 | 118 | 148 (0.80) | |
)"));
  write_file(readme, "no table\n");
  check_failure("report " + folder / "results" + " --into " + readme, 3, {"README.md", "NAME.json"});
  write_file(readme, "<!-- bench.json -->\r\n<!-- end -->\r\n");
  check_failure("report " + folder / "results" + " --into " + readme, 3, {"README.md", "CR LF"});
  write_file(readme, "<!-- see a.json -->\n<!-- ../bench.json -->\n");
  check_failure("report " + folder / "results" + " --into " + readme, 3, {"README.md", "NAME.json"});
  check_failure("report " + std::string(300, 'a') + " --into " + readme, 3, {"aaa"});
  write_file(readme, "<!-- gone.json -->\n<!-- end -->\n");
  check_failure("report " + folder / "results" + " --into " + readme, 3, {"gone.json"});
}
