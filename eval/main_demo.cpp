// demo: the main job on the embedded models. Quantize, compensate and measure vision transformers
// and a language transformer, and print tables of the paper's form, every cell measured.
#include <cstdio>
#include <filesystem>

#include "engine/core/check.h"
#include "eval/cli.h"
#include "eval/language.h"
#include "eval/tables/vision_table.h"

namespace {

using namespace bcq;

const char* const kCompensations[] = {"none", "channel", "position"};

// How a method is called in the tables: "PTQ4ViT + BC (channel)".
std::string label(const std::string& method, const std::string& bc) {
  return method + (bc == "none" ? "" : " + BC (" + bc + ")");
}

std::string values_text(int64_t values) { return values ? std::to_string(values) : "-"; }

// Adds the facts of the run and keeps the record.
void keep(json& records, json record, const ProgressLine& progress) {
  record.update(run_facts());
  record["warnings"] = progress.warnings();
  records.push_back(std::move(record));
}

// What a compensation adds to a model: parameters, bytes, share of the model's parameters.
std::string added_text(Model& model, int64_t values) {
  if (values == 0) return "-";
  const double added = static_cast<double>(added_values(model));
  return format("%.0f, %.0f B, %.1f %%", added, 4 * added, 100 * added / static_cast<double>(model.info().parameters));
}

void vision_model(const std::string& root, const std::string& name, json& records) {
  const auto model = load_model(root + "/" + name);
  const ImageFolder data = list_images(root + "/images/val", classes_of(model->info()));
  const ImageFolder calib = list_images(root + "/images/calib");
  ProgressLine progress(name + ": ");
  print("\n%s.%s on %d images (Fashion-MNIST test); top-1 %%, calibrated on %d images, seed %d\n\n", model->info().name,
        model->info().tag, data.items.size(), VisionRun().calib_images, VisionRun().seed);
  print(
      "| W/A   | method                   | top-1          | change vs FP32  | BC values | BC adds                  "
      "|\n");
  print(
      "|-------|--------------------------|----------------|-----------------|-----------|--------------------------|"
      "\n");
  Accuracy fp;
  const auto all = [](const VisionCell&) { return true; };
  measure_cells(*model, data, calib, {}, all, progress.callback(), progress.warn(),
                [&](const VisionCell& cell, const VisionRun& run, const Accuracy& a, int64_t values, double seconds) {
                  progress.finish();
                  const bool is_fp = run.method == "fp32";
                  if (is_fp) fp = a;
                  const Difference d = paired_difference(a, fp);
                  print("| %-5s | %-24s | %5.2f +/- %.2f | %15s | %9s | %24s |\n", cell.width(), cell.label(), a.top1,
                        a.top1_se, is_fp ? "" : format("%+6.2f +/- %.2f", d.mean, d.se), values_text(values),
                        added_text(*model, values));
                  std::fflush(stdout);
                  keep(records, vision_record(*model, run, a, values, seconds), progress);
                });
}

void language_row(const LanguageRun& run, const char* method, const Perplexity& p, const Perplexity& fp,
                  int64_t values) {
  const bool is_fp = run.method == "fp";
  const WeightGrid& w = run.weights;
  const Ratio r = paired_ratio(p, fp);
  const std::string bits = is_fp             ? "32"
                           : w.groupsize > 0 ? format("%dg%d", w.bits, w.groupsize)
                                             : std::to_string(w.bits);
  print("| %-5s | %-24s | %8.2f +/- %5.2f | %18s | %9s |\n", bits, label(method, run.bc), p.perplexity, p.se,
        is_fp ? "" : format("%+7.2f %% +/- %.2f", r.percent, r.se), values_text(values));
  std::fflush(stdout);
}

void language_table(const std::string& root, const std::string& name, json& records) {
  const auto model = load_model(root + "/" + name);
  const Tokenizer tokenizer = Tokenizer::load(model->info().directory);
  LanguageRun run;
  run.seqlen = kMiniSeqlen;
  const EvaluationText text = read_evaluation(*model, {Definition::Plain, root + "/text/test.txt"}, &tokenizer, run);
  const Calibration calib = read_calibration(*model, {Definition::Plain, root + "/text/calib.txt"}, &tokenizer, run);
  ProgressLine progress(name + ": ");
  print("\n%s on %d tokens of text/test.txt, windows of %d; perplexity, %d calibration windows, seed %d\n\n",
        model->info().name, text.facts.tokens, text.windows.length, run.nsamples, run.seed);
  print("| bits  | method                   | perplexity         | change vs FP       | BC values |\n");
  print("|-------|--------------------------|--------------------|--------------------|-----------|\n");
  Timer timer;
  const std::vector<Perplexity> fp = evaluate_language(*model, text, run, progress.callback());
  progress.finish();
  language_row(run, "FP", fp[0], fp[0], 0);
  keep(records, language_record(*model, run, text, fp, {}, 0, timer.seconds()), progress);
  for (const auto& [bits, groupsize] : {std::pair{4, -1}, std::pair{3, -1}, std::pair{2, 64}})
    for (const auto& [method, name] : {std::pair{"rtn", "RTN"}, std::pair{"gptq", "GPTQ"}}) {
      run.method = method;
      run.weights.bits = bits;
      run.weights.groupsize = groupsize;
      model->clear();
      Timer quantization;
      quantize_language(*model, calib.batches, run, progress.callback(), progress.warn());
      const double quantization_seconds = quantization.seconds();
      for (const char* bc : kCompensations) {
        if (run.method == "rtn" && std::string(bc) != "none") continue;
        Timer cell;
        run.bc = bc;
        model->clear_compensation();
        const int64_t values = compensate_language(*model, calib.batches, run, progress.callback()).fitted();
        const std::vector<Perplexity> p = evaluate_language(*model, text, run, progress.callback());
        progress.finish();
        language_row(run, name, p[0], fp[0], values);
        keep(records, language_record(*model, run, text, p, fp, values, quantization_seconds + cell.seconds()),
             progress);
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Quantize, compensate and measure the embedded models; prints tables of the paper's form.", "demo"};
  std::string root = "data/mini", json_path;
  app.add_option("--mini", root, "Folder with the models, images and text")->capture_default_str()->type_name("DIR");
  app.add_option("--json", json_path, "Write the records of all cells as a JSON array (-: stdout)")->type_name("FILE");
  add_threads_option(app);
  app.footer("Example:\n  demo --json build/demo.json");
  return run_program(app, argc, argv, [&] {
    Timer timer;
    json records = json::array();
    for (const std::string& name : vision_minis(root)) vision_model(root, name, records);
    for (const char* name : {"opt", "bloom"})
      if (std::filesystem::exists(root + "/" + name)) language_table(root, name, records);
    write_record(json_path, records);
    print(
        "\n+/- is one standard error: of top-1 over images, of perplexity over windows, of a change over the same\n"
        "images or windows. BC values: biases fitted; \"channel\" ones are folded into the biases there are, so that "
        "they\n"
        "add only where there is none. BC adds: parameters, bytes, share of the model's parameters.\n%.0f s\n",
        timer.seconds());
  });
}
