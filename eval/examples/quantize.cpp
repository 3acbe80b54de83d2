// Load a language model, quantize and compensate it, measure what that costs, save it.
//   quantize MODEL TEXT CALIBRATION-TEXT FOLDER
#include "engine/core/check.h"
#include "engine/core/process.h"
#include "engine/file/json.h"
#include "eval/language.h"
#include "eval/save.h"

using namespace bcq;

namespace {

void run(const std::string& path, const std::string& text, const std::string& calibration, const std::string& folder) {
  const auto model = load_model(path);

  // GPTQ at 3 bits in groups of 64 columns, then a bias per channel that cancels the mean error of each output.
  Recipe recipe = recipe_of(Family::Language, "gptq", BcForm::Channel);
  recipe.weights.bits = 3;
  recipe.weights.groupsize = 64;
  recipe.samples = 16;
  recipe.seqlen = 128;
  check(recipe);

  // Texts, windows and tokenizer; perplexity of the first 20 windows.
  LanguageTask task(*model, {{Definition::Plain, text}}, {Definition::Plain, calibration}, {"gptq"}, 20);
  const Progress silent = [](const std::string&, double, double) {};
  const Warn warn = [](const std::string& message) { print(stderr, "warning: %s\n", message); };
  task.warn = warn;

  json record;
  const Recipe in_float = recipe_of(Family::Language);
  Recipe baseline = in_float;
  baseline.seqlen = recipe.seqlen;
  const Measured before = task.measure(baseline, 0, record, silent);

  Outcome outcome = quantize(task, recipe, silent, warn);
  compensate(task, recipe, outcome, silent);
  const Measured after = task.measure(recipe, 0, record, silent);

  SaveOptions save;
  save.directory = folder;
  check_target(save, model->info().weights);
  const json facts = flat_recipe(*model, recipe);
  const Saved saved = save_model(*model, save, facts);
  print("perplexity %.3f in float, %.3f at %.2f bits per weight; %s: %d bytes, were %d\n", before.figure, after.figure,
        saved.bits_per_weight, folder, saved.bytes, saved.bytes_before);
}

}  // namespace

int main(int argc, char** argv) {
  tune_process();
  try {
    require_usage(argc == 5, "quantize MODEL TEXT CALIBRATION-TEXT FOLDER");
    run(argv[1], argv[2], argv[3], argv[4]);
  } catch (const std::exception& e) {
    print(stderr, "error: %s\n", e.what());
    return 1;
  }
}
