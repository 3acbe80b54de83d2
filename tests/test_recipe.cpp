// The recipe: its table, what it reads and refuses, and that it comes back from JSON as it was.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "engine/file/json.h"
#include "quant/recipe.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

Recipe from(Family family, const json& given) { return read_recipe(family, json::object(), "", given); }

}  // namespace

TEST_CASE("recipe: every option of every method comes back from JSON") {
  const std::pair<Family, std::vector<const char*>> families[] = {
      {Family::Vision, {"fp32", "base-ptq", "easyquant", "ptq4vit", "noisyquant"}},
      {Family::Language, {"fp", "rtn", "gptq", "awq", "smoothquant", "dfq", "billm", "stored"}}};
  for (const auto& [family, methods] : families) {
    std::set<std::string> keys;
    for (const Option& option : recipe_options(family)) {
      CHECK(keys.insert(option.key).second);
      CHECK(option.flags.rfind("--", 0) == 0);
    }
    for (const char* method : methods)
      for (const BcForm bc : {BcForm::None, BcForm::Channel, BcForm::Position}) {
        const json object = to_json(recipe_of(family, method, method == methods[0] ? BcForm::None : bc));
        CAPTURE(object.dump());
        CHECK(object.size() >= 2);
        CHECK(to_json(read_recipe(family, object, "r.json", json::object())) == object);
      }
  }
}

TEST_CASE("recipe: a method sets defaults, a file changes them, the command line wins") {
  CHECK(from(Family::Vision, {{"method", "base-ptq"}}).ptq.eq_alpha == 0.5);
  CHECK(from(Family::Vision, {{"method", "ptq4vit"}}).ptq.eq_alpha == 0.01);
  CHECK(from(Family::Vision, {{"eq_alpha", 0.2}, {"method", "base-ptq"}}).ptq.eq_alpha == 0.2);
  const json file = {{"method", "gptq"}, {"wbits", 3}, {"groupsize", 64}, {"sym", true}, {"bc", "channel"}};
  const Recipe r = read_recipe(Family::Language, file, "r.json", {{"wbits", 2}, {"bc", "none"}});
  CHECK(r.method == MethodName::Gptq);
  CHECK(r.weights.bits == 2);
  CHECK(r.weights.groupsize == 64);
  CHECK(r.weights.sym);
  CHECK(r.bc == BcForm::None);
  CHECK(defaults_of(recipe_options(Family::Vision)[5], Family::Vision) == "hessian; base-ptq, easyquant: cosine");
  CHECK(label_of(recipe_of(Family::Vision, "ptq4vit", BcForm::Position)) == "PTQ4ViT + BC (position)");
}

TEST_CASE("recipe: unknown keys and values are refused, with the file and the key or the option") {
  const auto file = [](Family family, const json& object, std::initializer_list<const char*> says) {
    const std::string message = message_of<InputError>([&] { read_recipe(family, object, "r.json", json::object()); });
    CAPTURE(message);
    CHECK(contains(message, "r.json"));
    for (const char* part : says) CHECK(contains(message, part));
  };
  file(Family::Vision, {{"wbit", 4}}, {"wbit", "no such option"});
  file(Family::Vision, {{"groupsize", 64}}, {"groupsize", "vision"});  // of the other family
  file(Family::Vision, {{"method", "awq"}}, {"method", "{fp32,minmax,base-ptq"});
  file(Family::Vision, {{"method", "ptq4vit"}, {"abits", 1}}, {"abits", "2 to 32"});
  file(Family::Language, {{"method", "gptq"}, {"wbits", "4"}}, {"wbits", "\"4\"", "whole number"});
  file(Family::Language, {{"method", "gptq"}, {"wbits", 2.5}}, {"wbits", "2.5"});
  file(Family::Language, {{"method", "gptq"}, {"sym", 1}}, {"sym"});
  file(Family::Language, {{"method", "gptq"}, {"prefill_bits", 20}}, {"prefill_bits", "24 or 16"});
  file(Family::Language, {{"method", "gptq"}, {"exclude", "fc1"}}, {"exclude", "list"});
  file(Family::Language, {{"method", "gptq"}, {"groupsize", 0}}, {"groupsize"});
  file(Family::Language, json::array(), {"JSON object"});
  const auto line = [](Family family, const json& given, std::initializer_list<const char*> says) {
    const std::string message = message_of<UsageError>([&] { from(family, given); });
    CAPTURE(message);
    for (const char* part : says) CHECK(contains(message, part));
  };
  line(Family::Vision, {{"calib_images", 0}}, {"--calib-images 0"});
  line(Family::Vision, {{"bc_sites", "conv,heads"}}, {"--bc-sites conv,heads", "\"heads\""});
  line(Family::Vision, {{"bc", "channel"}}, {"--bc channel", "--method"});
  line(Family::Language, {{"groupsize", INT64_MAX}}, {"--groupsize 9223372036854775807"});
  line(Family::Language, {{"seqlen", -5}}, {"--seqlen -5"});
  line(Family::Language, {{"method", "gptq"}, {"hessian", "centred"}}, {"--hessian centred", "--bc"});
}

TEST_CASE("joint of vision fits biases itself where that is what is asked for, and says so where it is not") {
  const auto read = [](const json& values) { return read_recipe(Family::Vision, values, "file", json::object()); };
  const Recipe own = read({{"method", "joint"}, {"wbits", 4}, {"abits", 4}});
  CHECK(own.samples == 128);
  CHECK(in_one_walk(own));
  CHECK(label_of(own) == "joint");
  CHECK_FALSE(to_json(own).contains("bc_images"));  // its biases are of the images it calibrates on
  for (const json& other : {json{{"bc", "position"}}, json{{"bc_stream", "float"}}, json{{"bc_sites", "linear"}}}) {
    json values = {{"method", "joint"}};
    values.update(other);
    const Recipe apart = read(values);
    CHECK_FALSE(in_one_walk(apart));
    CHECK(to_json(apart).contains("bc_images"));
  }
  CHECK_THROWS_AS(read({{"method", "joint"}, {"bc", "none"}}), UsageError);
  CHECK_THROWS_AS(read({{"method", "repq-vit"}, {"bc", "channel"}, {"qwt", true}}), UsageError);  // of the float stream
  CHECK_NOTHROW(read({{"method", "repq-vit"}, {"qwt", true}}));
}

TEST_CASE("recipe: methods that fold first, and what they refuse") {
  const auto refusal = [](const json& given) {
    return message_of<UsageError>([&] {
      const Recipe r = from(Family::Language, given);
      if (row_of(r).fold) row_of(r).fold(r, {}, [](const std::string&) {});
      row_of(r).make(r, {}, [](const std::string&) {});
    });
  };
  CHECK(refusal({{"method", "awq"}, {"rounding", "gptq"}, {"bc", "channel"}, {"hessian", "centred"}}).empty());
  CHECK(refusal({{"method", "smoothquant"}, {"act_scale", "tensor"}}).empty());
  CHECK(contains(refusal({{"method", "rtn"}, {"abits", 8}, {"act_scale", "tensor"}}), "per token only"));
  CHECK(contains(refusal({{"method", "dfq"}, {"rounding", "gptq"}}), "without"));
  CHECK(contains(refusal({{"method", "billm"}, {"wbits", 2}}), "1 is that of"));
  CHECK(contains(refusal({{"method", "gptq"}, {"wbits", 1}}), "1 is that of"));
  CHECK(contains(refusal({{"method", "billm"}, {"abits", 8}}), "float"));
  CHECK(contains(refusal({{"method", "gptq"}, {"hessian", "centred"}, {"bc", "data-free"}}), "constant errors"));
  const Recipe awq =
      from(Family::Language, {{"method", "awq"}, {"rounding", "gptq"}, {"bc", "channel"}, {"bc_stream", "quantized"}});
  CHECK(solves(awq));
  CHECK(in_one_walk(awq));
  CHECK_FALSE(solves(from(Family::Language, {{"method", "awq"}})));
  const Recipe dfq = from(Family::Language, {{"method", "dfq"}});
  CHECK(dfq.bc == BcForm::DataFree);
  CHECK_FALSE(calibrates(dfq));
  CHECK(label_of(dfq) == "DFQ + BC (data-free)");
}

TEST_CASE("recipe: of vision methods joint alone compensates as it quantizes") {
  const json bc = {{"bc", "channel"}, {"bc_stream", "quantized"}, {"bc_sites", kJointSites}};
  for (const char* method : {"joint", "gptq", "repq-vit"}) {
    json options = bc;
    options["method"] = method;
    CHECK(in_one_walk(from(Family::Vision, options)) == (options["method"] == "joint"));
  }
}
