// What runs keep for others: recipes and records, blocks of an interrupted run.
#include <filesystem>

#include "engine/file/json.h"
#include "eval/resume.h"
#include "models/model.h"
#include "quant/recipe.h"
#include "tests/fuzz/fuzz.h"
#include "tests/quantize.h"

namespace bcq::fuzz {
namespace {

void run_recipe(const std::string& whole) {
  std::string input = whole;
  const Family family = choice(input, 2) == 0 ? Family::Vision : Family::Language;
  refused_or_read([&] {
    const std::string path = put("recipe.json", input);
    const json file = recipe_in(path);
    const Recipe recipe = read_recipe(family, file, path, json::object());
    const json again = to_json(recipe);
    require(to_json(read_recipe(family, again, path, json::object())) == again, "a recipe does not come back");
  });
}

std::vector<std::string> recipe_seeds() {
  std::vector<std::string> seeds;
  for (const Family family : {Family::Vision, Family::Language})
    for (const char* method : {"base-ptq", "easyquant", "ptq4vit", "rtn", "gptq"})
      for (const BcForm form : {BcForm::None, BcForm::Channel})
        refused_or_read([&] {
          const json recipe = to_json(recipe_of(family, method, form));
          const std::string head(1, family == Family::Vision ? '\0' : '\1');
          seeds.push_back(head + recipe.dump());
          seeds.push_back(head + json{{"recipe", recipe}, {"top1", 1.5}}.dump());
          seeds.push_back(head + json::array({{{"recipe", recipe}}, {{"recipe", recipe}}}).dump());
        });
  return seeds;
}

const json kRun = {{"seed", 1}, {"wbits", 3}};
struct Block {
  std::string header, data, name;
};
const Block& block() {
  static const Block made = [] {
    const auto model = load_model("tests/fixtures/opt_tiny");
    WeightGrid grid;
    grid.bits = 3;
    grid.groupsize = 8;
    test::quantize_rtn(*model, grid);
    BlockFiles files(path_of("made"), kRun, false);
    PartRecord record;
    record.layers.push_back({});
    record.layers[0].layer = "layers.0.fc1";
    files.done("GPTQ", *model, 0, record);
    Block b{"", "", "GPTQ-0000.safetensors"};
    b.header = header_of(path_of("made/" + b.name), &b.data);
    return b;
  }();
  return made;
}

// A run's settings, and a block of it.
void run_resume(const std::string& input) {
  static const auto model = load_model("tests/fixtures/opt_tiny");
  const auto part = parts(input, 3);
  std::string data = block().data;
  edit(data, part[2]);
  put("work/run.json", part[0].empty() ? kRun.dump() : part[0]);
  put("work/" + block().name, safetensors(part[1].empty() ? block().header : part[1], data));
  refused_or_read([&] {
    BlockFiles files(path_of("work"), kRun, true);
    PartRecord record;
    files.load("GPTQ", *model, 0, record);
  });
  model->clear();
}

std::vector<std::string> resume_seeds() {
  return {joined({kRun.dump(), "", ""}), joined({"", block().header, ""}), joined({"", "", "\1\1\1\1"})};
}

const Harness kRecipe("recipe", run_recipe, recipe_seeds);
const Harness kResume("resume", run_resume, resume_seeds);

}  // namespace
}  // namespace bcq::fuzz
