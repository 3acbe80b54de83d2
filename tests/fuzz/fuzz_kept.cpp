// What runs keep for others: recipes and records, blocks of an interrupted run.
#include <filesystem>

#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "eval/resume.h"
#include "models/model.h"
#include "quant/calibrate.h"
#include "quant/joint.h"
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
  std::unique_ptr<Model> model;
  std::string header, data;
};
const char* const kName = "GPTQ-0000.safetensors";
Block keep(std::unique_ptr<Model> model, const char* folder) {
  BlockFiles files(path_of(folder), kRun, false);
  PartRecord record;
  record.layers.push_back({});
  record.layers[0].layer = "layers.0.fc1";
  files.done("GPTQ", *model, 0, record);
  Block b{std::move(model), "", ""};
  b.header = header_of(path_of(std::string(folder) + "/" + kName), &b.data);
  b.model->clear();
  return b;
}
// Of a language model, and of a vision model.
const std::vector<Block>& blocks() {
  static const std::vector<Block> made = [] {
    std::vector<Block> all;
    auto opt = load_model("tests/fixtures/opt_tiny");
    WeightGrid grid;
    grid.bits = 3;
    grid.groupsize = 8;
    test::quantize_rtn(*opt, grid);
    all.push_back(keep(std::move(opt), "made"));
    auto vit = load_model("tests/fixtures/vit_tiny");
    Joint method({4, 4}, [](const std::string&) {});
    const Tensor images = SafeTensors::open("tests/fixtures/vit_tiny/reference.safetensors").get("pixel_values");
    calibrate(*vit, vision_batches(*vit, images), {&method});
    all.push_back(keep(std::move(vit), "made_vision"));
    return all;
  }();
  return made;
}

// A run's settings, and a block of it.
void run_resume(const std::string& whole) {
  std::string input = whole;
  const Block& block = blocks()[static_cast<size_t>(choice(input, 2))];
  const auto part = parts(input, 3);
  std::string data = block.data;
  edit(data, part[2]);
  put("work/run.json", part[0].empty() ? kRun.dump() : part[0]);
  put(std::string("work/") + kName, safetensors(part[1].empty() ? block.header : part[1], data));
  refused_or_read([&] {
    BlockFiles files(path_of("work"), kRun, true);
    PartRecord record;
    files.load("GPTQ", *block.model, 0, record);
  });
  block.model->clear();
}

std::vector<std::string> resume_seeds() {
  std::vector<std::string> seeds;
  for (size_t i = 0; i < blocks().size(); ++i)
    for (const std::string& input :
         {joined({kRun.dump(), "", ""}), joined({"", blocks()[i].header, ""}), joined({"", "", "\1\1\1\1"})})
      seeds.push_back(std::string(1, static_cast<char>(i)) + input);
  return seeds;
}

const Harness kRecipe("recipe", run_recipe, recipe_seeds);
const Harness kResume("resume", run_resume, resume_seeds);

}  // namespace
}  // namespace bcq::fuzz
