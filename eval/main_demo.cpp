// demo: the main job on the embedded models. Quantize, compensate and measure vision transformers
// and a language transformer, and print tables of the paper's form, every cell measured.
#include <cstdio>

#include "engine/core/check.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "eval/language.h"
#include "eval/tables/table.h"
#include "eval/vision.h"

namespace {

using namespace bcq;

// What a compensation adds to a model: parameters, bytes, share of the model's parameters.
std::string added_text(const json& record) {
  const double added = record.at("bc_parameters_added").get<double>();
  return format("%.0f, %.0f B, %.1f %%", added, 4 * added, 100 * record.at("bc_share").get<double>());
}

// The cells of one model, printed as they are measured.
void measure_model(Task& task, const PaperTable& table, const std::string& name, json& records) {
  const bool vision = task.model.info().family == Family::Vision;
  std::vector<Heading> headings = {{vision ? "W/A" : "bits", 5, true},
                                   {"method", 24, true},
                                   {vision ? "top-1" : "perplexity", vision ? 14 : 18},
                                   {vision ? "change vs FP32" : "change vs FP", vision ? 15 : 18}};
  if (vision) headings.push_back({"KL", 17});
  headings.push_back({"BC values", 9});
  if (vision) headings.push_back({"BC adds", 24});
  print_headings(headings);
  ProgressLine progress(name + ": ");
  Measured fp;
  measure_cells(
      task, table.cells, 1, [](size_t, size_t) { return true; }, progress,
      [&](size_t c, size_t, json& record, const Measured& m) {
        const Cell& cell = table.cells[c];
        const bool is_fp = !quantizes(cell.recipe);
        if (is_fp) fp = m;
        std::string change;
        if (!is_fp) {
          const Estimate e = vision ? paired_difference(m, fp) : paired_ratio(m, fp);
          change = vision ? format("%+6.2f +/- %.2f", e.value, e.se) : format("%+7.2f %% +/- %.2f", e.value, e.se);
        }
        const int64_t values = record.at("bc_parameters").get<int64_t>();
        std::vector<std::string> line = {
            cell.width, cell.label,
            vision ? format("%5.2f +/- %.2f", m.figure, m.se) : format("%8.2f +/- %5.2f", m.figure, m.se), change};
        if (vision) line.push_back(kl_text(record));
        line.push_back(values ? std::to_string(values) : "-");
        if (vision) line.push_back(values ? added_text(record) : "-");
        print_line(headings, line);
        records.push_back(record);
      });
}

void vision_model(const std::string& root, const std::string& name, const PaperTable& table, json& records) {
  const auto model = load_model(root + "/" + name);
  VisionTask task(*model, list_images(root + "/images/val", classes_of(model->info())),
                  list_images(root + "/images/calib"));
  task.paired = true;
  const Recipe r = recipe_of(Family::Vision);
  print("\n%s.%s on %d images (Fashion-MNIST test); top-1 %%, calibrated on %d images, seed %d\n\n", model->info().name,
        model->info().tag, task.data.items.size(), r.samples, r.seed);
  measure_model(task, table, name, records);
}

void language_model(const std::string& root, const std::string& name, const PaperTable& table, json& records) {
  const auto model = load_model(root + "/" + name);
  LanguageTask task(*model, {{Definition::Plain, root + "/text/test.txt"}},
                    {Definition::Plain, root + "/text/calib.txt"});
  task.keeps_floats = true;
  const Recipe& r = table.cells[0].recipe;
  const EvaluationText& text = task.text(r, 0);
  print("\n%s on %d tokens of text/test.txt, windows of %d; perplexity, %d calibration windows, seed %d\n\n",
        model->info().name, text.facts.tokens, text.windows.length, r.samples, r.seed);
  measure_model(task, table, name, records);
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("demo", "Quantize, compensate and measure the embedded models; prints tables of the paper's form.",
                   "Example:\n  demo --json build/demo.json");
  std::string root = "data/mini", json_path;
  bool all = false;
  line.add({"--mini", "DIR", "Folder with the models, images and text"}, root);
  line.add({"--all", "", "All rows of the paper's tables 1 and 2 (long), in place of eight to ten a model"}, all);
  line.add_output({"--json", "FILE", "Write the records of all cells as a JSON array (-: stdout)"}, json_path);
  return line.run(argc, argv, [&] {
    const Timer timer;
    json records = json::array();
    const char* rows = all ? "rows" : "demo_rows";
    const PaperTable vision = read_table("vision", Family::Vision, json::object(), rows);
    for (const std::string& name : embedded_models(vision, root)) vision_model(root, name, vision, records);
    const PaperTable language = read_table("language", Family::Language, {{"seqlen", kMiniSeqlen}}, rows);
    for (const std::string& name : embedded_models(language, root)) language_model(root, name, language, records);
    write_record(json_path, records);
    print(
        "\n+/- is one standard error: of top-1 over images, of perplexity over windows, of a change over the same\n"
        "images or windows. KL: divergence from the float network's prediction, nats a image. BC values: biases "
        "fitted; \"channel\" ones are folded into the biases there are, so that "
        "they\n"
        "add only where there is none. BC adds: parameters, bytes, share of the model's parameters.\n%.0f s\n",
        timer.seconds());
  });
}
