// The perplexity of a language model, in float or as it was saved quantized.
//   perplexity MODEL TEXT
#include "engine/core/check.h"
#include "engine/core/process.h"
#include "engine/file/json.h"
#include "eval/language.h"

using namespace bcq;

namespace {

void run(const std::string& path, const std::string& text) {
  const auto model = load_model(path);
  Recipe recipe = recipe_of(Family::Language);
  set_stored(*model, recipe);  // of a model that is quantized already: as it is
  recipe.seqlen = 128;
  LanguageTask task(*model, {{Definition::Plain, text}}, {}, {"gptq"}, 20);  // the first 20 windows
  json record;
  const Measured measured = task.measure(recipe, 0, record, [](const std::string&, double, double) {});
  print("perplexity %.3f +/- %.3f at %.2f bits per weight\n", measured.figure, measured.se, bits_per_weight(*model));
}

}  // namespace

int main(int argc, char** argv) {
  tune_process();
  try {
    require_usage(argc == 3, "perplexity MODEL TEXT");
    run(argv[1], argv[2]);
  } catch (const std::exception& e) {
    print(stderr, "error: %s\n", e.what());
    return 1;
  }
}
