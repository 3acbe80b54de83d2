#include "quant/recipe.h"

#include <algorithm>

#include "engine/core/check.h"
#include "engine/file/json.h"

namespace bcq {
namespace {

constexpr Family kVision = Family::Vision, kLanguage = Family::Language;

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

}  // namespace

const char* name_of(BcForm form) {
  constexpr const char* names[] = {"none", "channel", "position", "data-free"};
  return names[static_cast<size_t>(form)];
}

bool in_one_walk(const Recipe& r) {
  if (!carries_errors(r) || !measures_errors(r) || r.bc_stream != Stream::Quantized) return false;
  return r.family == kLanguage || (joins(r) && r.bc == BcForm::Channel && r.bc_sites == kJointSites);
}

std::string label_of(const Recipe& recipe) {
  if (recipe.method == MethodName::Joint && recipe.bc == BcForm::Channel) return row_of(recipe).label;  // a part of it
  return row_of(recipe).label + (compensates(recipe) ? format(" + BC (%s)", name_of(recipe.bc)) : "");
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    if (end > at || !list.empty()) parts.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

std::string defaults_of(const Option& option, Family family) {
  const Recipe base = family == kVision ? recipe_of(kVision, "ptq4vit") : recipe_of(kLanguage);
  if (option.key == "method") return name_of(recipe_of(family));
  const std::string own = option.is_list ? "" : text_of(option.get(base));
  std::vector<std::pair<std::string, std::string>> others;  // value, and the methods that have it
  for (const MethodRow& row : method_rows()) {
    if (row.family != family || !row.defaults) continue;
    const std::string value = text_of(option.get(recipe_of(family, row.name)));
    if (value == own) continue;
    if (others.empty() || others.back().first != value)
      others.push_back({value, row.name});
    else
      others.back().second += std::string(", ") + row.name;
  }
  std::string text = own;
  for (const auto& [value, methods] : others) text += "; " + methods + ": " + value;
  return text;
}

Recipe recipe_of(Family family, const std::string& method, BcForm bc) {
  Recipe r;
  r.family = family;
  r.bc = bc;
  if (family == kLanguage) {
    r.samples = 128;
    r.seed = 0;
    r.bc_sites = "linear,block";
  }
  if (method.empty()) return r;
  const std::string wrong = recipe_options(family).front().set(r, method);
  require_usage(wrong.empty(), "--method %s: %s", method, wrong);
  return r;
}

Recipe read_recipe(Family family, const json& file, const std::string& path, const json& given) {
  const std::vector<Option>& options = recipe_options(family);
  require_input(file.is_object() || file.is_null(), "%s: not a recipe: no JSON object", path);
  for (const auto& [key, value] : file.items())
    require_input(std::any_of(options.begin(), options.end(), [&k = key](const Option& o) { return o.key == k; }),
                  "%s: key %s: no such option in the recipe of a %s model", path, quoted(key),
                  family == kVision ? "vision" : "language");
  const auto read = [&](const json& on_command_line) {
    Recipe recipe = recipe_of(family);
    for (const Option& option : options) {  // the method first: it sets the defaults of others
      const bool explicitly = on_command_line.contains(option.key);
      if (!explicitly && !file.contains(option.key)) continue;
      const json& value = explicitly ? on_command_line.at(option.key) : file.at(option.key);
      const std::string wrong = option.set(recipe, value);
      if (wrong.empty()) continue;
      const std::string shown = explicitly ? text_of(value) : value.dump();
      require_usage(!explicitly, "%s %s: %s", option.flag(), shown, wrong);
      throw InputError(format("%s: key %s: %s: %s", path, quoted(option.key), shown, wrong));
    }
    return recipe;
  };
  const Recipe recipe = read(given), alone = file.empty() ? recipe : read(json::object());
  for (const Option& option : options)  // what the command line sets may leave a key of the file without effect
    require_input(!file.contains(option.key) || option.applies(alone), "%s: key %s has no effect with method %s", path,
                  quoted(option.key), name_of(alone));
  check(recipe);
  return recipe;
}

void check(const Recipe& r) {
  require_usage(!r.qwt || !compensates(r) || (measures_errors(r) && r.bc_stream == Stream::Quantized),
                "--qwt fits blocks on the quantized stream, after all else: give --bc-stream quantized, or --bc none");
  require_usage(quantizes(r) || !compensates(r), "--bc %s needs a --method that quantizes", name_of(r.bc));
  require_usage(!joins(r) || measures_errors(r),
                "--method joint leaves constant errors to biases: --bc channel or position, not none");
  require_usage(r.method == MethodName::Stored || (r.weights.bits == 1) == is_billm(r),
                "--wbits %d: 1 is that of --method billm, which has no other", r.weights.bits);
  require_usage(!is_billm(r) || r.target != Target::Gptaq, "--target gptaq carries drifts on as GPTQ goes, not billm");
  const std::vector<std::string> sites = split(r.bc_sites);
  require_usage(
      !carries_errors(r) || !r.centred ||
          (measures_errors(r) && std::find(sites.begin(), sites.end(), "linear") != sites.end()),
      "--hessian centred leaves constant errors to a bias at each layer: give --bc, with linear in --bc-sites");
}

void require_used(const Recipe& r, const json& given) {
  const bool stored = r.method == MethodName::Stored;
  for (const Option& option : recipe_options(r.family)) {
    if (!given.contains(option.key)) continue;
    const std::string flag = option.flag();
    const bool of_making = option.group == std::string(kQuantization) || option.group == std::string(kBc);
    require_usage(!stored || !of_making, "%s has no effect: the model is quantized already", flag);
    require_usage(option.applies(r), "%s has no effect with --method %s --bc %s", flag, name_of(r), name_of(r.bc));
  }
}

json recipe_in(const std::string& path) {
  json file = read_json(path);
  if (file.is_array() && !file.empty() && file[0].is_object() && file[0].contains("recipe")) {
    for (const json& record : file)
      require_input(record.is_object() && record.contains("recipe") && record["recipe"] == file[0]["recipe"],
                    "%s: its records are of several recipes", path);
    file = json(file[0]);
  }
  return file.is_object() && file.contains("recipe") ? json(file["recipe"]) : file;
}

json to_json(const Recipe& recipe) {
  json object = json::object();
  for (const Option& option : recipe_options(recipe.family))
    if (option.applies(recipe)) object[option.key] = option.get(recipe);
  return object;
}

}  // namespace bcq
