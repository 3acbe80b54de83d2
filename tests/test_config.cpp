// Configurations read key by key: types, ranges, other names of a key, keys nobody asked for.
#include <doctest/doctest.h>

#include "engine/file/config.h"
#include "engine/file/json.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The message of the InputError that f() gives for an object of one key "k".
std::string refusal(const json& value, const std::function<void(const ConfigReader&)>& f) {
  const json object = {{"k", value}};
  return message_of<InputError>([&] { f(ConfigReader(object, "c.json", "args.")); });
}

}  // namespace

TEST_CASE("config: integers are integers, in their range") {
  const auto read = [](const ConfigReader& in) { in.integer({"k"}, {1, 100}); };
  for (const json& value : {json(0), json(101), json(-1), json(4294967301), json(18446744073709551615u), json(2.0),
                            json(true), json("8"), json({8}), json(nullptr)}) {
    CAPTURE(value.dump());
    CHECK(contains(refusal(value, read), "args.k"));
    CHECK(contains(refusal(value, read), "c.json"));
  }
  CHECK(refusal(1, read) == "");
  CHECK(refusal(100, read) == "");
  CHECK(refusal(-5, read) == "c.json: args.k is -5, but must be an integer from 1 to 100");
  const json empty = json::object(), null = {{"k", nullptr}};
  CHECK(ConfigReader(empty, "c").integer({"k"}, {}, 7) == 7);
  CHECK(ConfigReader(null, "c").integer({"k"}, {}, 7) == 7);
}

TEST_CASE("config: other names of a key may be there when they say the same") {
  const json both = {{"hidden_size", 64}, {"n_embed", 64}, {"n_layer", 2}, {"num_layers", 3}, {"n_head", 4}};
  const ConfigReader in(both, "config.json");
  CHECK(in.integer({"hidden_size", "n_embed"}) == 64);
  CHECK(in.integer({"num_attention_heads", "n_head"}) == 4);
  CHECK(contains(message_of<InputError>([&] { in.integer({"n_layer", "num_layers"}); }), "num_layers"));
  CHECK(contains(message_of<InputError>([&] { in.integer({"d_model", "width"}); }), "\"d_model\" is missing"));
}

TEST_CASE("config: sides are numbers or lists of equal ones, lists are lists of integers") {
  const auto side = [](const json& value) {
    const json object = {{"k", value}};
    return ConfigReader(object, "c").side("k", {1, 100}, 3);
  };
  CHECK(side(16) == 16);
  CHECK(side({16}) == 16);
  CHECK(side({16, 16}) == 16);
  CHECK(side(nullptr) == 3);
  for (const json& value :
       {json({16, 8}), json::array(), json({16, 16, 16}), json({16, 16.5}), json({0, 0}), json("16")})
    CHECK_THROWS_AS(side(value), InputError);
  const auto list = [](const ConfigReader& in) { in.integers("k", {1, 9}, {}); };
  CHECK(refusal({1, 9}, list) == "");
  for (const json& value : {json({1, 10}), json({1, 2.5}), json({true}), json(3), json({{"a", 1}})})
    CHECK(contains(refusal(value, list), "args.k"));
}

TEST_CASE("config: numbers, flags and texts") {
  const auto number = [](const ConfigReader& in) { in.number("k", 0.5, 2, 1); };
  for (const json& value : {json(0.4), json(1e-9), json(3), json("1"), json(true), json(-1e300)})
    CHECK(contains(refusal(value, number), "a number from 0.5 to 2"));
  CHECK(refusal(1, number) == "");
  const auto flag = [](const ConfigReader& in) { in.flag("k", true); };
  for (const json& value : {json(0), json("true"), json({true})})
    CHECK(contains(refusal(value, flag), "true or false"));
  const auto text = [](const ConfigReader& in) { in.text("k", ""); };
  for (const json& value : {json(0), json({"a"}), json(false)}) CHECK(contains(refusal(value, text), "a string"));
  const auto texts = [](const ConfigReader& in) { in.texts("k"); };
  for (const json& value : {json("a"), json({"a", 1}), json({{"a", "b"}})})
    CHECK(contains(refusal(value, texts), "list of strings"));
  CHECK(contains(refusal("x", [](const ConfigReader& in) { in.object("k"); }), "must be a JSON object"));
  CHECK(refusal(std::string(100000, 'x'), number).size() < 300);  // a message is a line
}

TEST_CASE("config: keys that nobody asked for, and those with one value") {
  const json object = {{"a", 1}, {"b", nullptr}, {"c", "x"}, {"d", {1, 2}}};
  const auto message = [&](const std::function<void(const ConfigReader&)>& f) {
    return message_of<InputError>([&] {
      const ConfigReader in(object, "f", "p.");
      f(in);
      in.require_known();
    });
  };
  CHECK(contains(message([](const ConfigReader& in) { in.ignore({"a", "b", "c", "e"}); }), "p.d is not supported"));
  CHECK(message([](const ConfigReader& in) {
          in.only({{"a", "1"}, {"b", "false|null"}, {"c", "\"x\""}, {"d", "[1,2]"}, {"e", "0"}});
        }) == "");
  CHECK(contains(message([](const ConfigReader& in) { in.only({{"b", "false"}}); }), "p.b is null"));
  CHECK(contains(message([](const ConfigReader& in) { in.only({{"d", "[1]|[2]"}}); }), "p.d is [1,2]"));
}

TEST_CASE("json: get refuses integers that its type cannot hold") {
  const json object = {{"big", 4294967301}, {"huge", 18446744073709551615u}, {"low", -1}, {"real", 2.0}};
  CHECK_THROWS_AS(get<int>(object, "big", "f"), InputError);
  CHECK(get<int64_t>(object, "big", "f") == 4294967301);
  CHECK_THROWS_AS(get<int64_t>(object, "huge", "f"), InputError);
  CHECK_THROWS_AS(get<uint32_t>(object, "low", "f"), InputError);
  CHECK_THROWS_AS(get<int>(object, "real", "f"), InputError);
}

TEST_CASE("json: bytes that are not UTF-8 are written as the character that stands for them") {
  CHECK(dump("caf\xe9") == "\"caf\xef\xbf\xbd\"");
  CHECK(dump({{"file\xff", {"a\xc3", 1}}}) == "{\"file\xef\xbf\xbd\":[\"a\xef\xbf\xbd\",1]}");
  CHECK(parse_json(dump(json{{"path", "\xed\xa0\x80/x"}}, 2), "t")["path"].get<std::string>().ends_with("/x"));
  CHECK(dump(json{{"a", "\xc3\xa4"}}) == "{\"a\":\"\xc3\xa4\"}");
}
