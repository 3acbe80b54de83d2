// JSON: what is refused, how it is said, and that files are written whole or not at all.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>

#include "engine/file/json.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

namespace {

size_t files_in(const Folder& dir) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(dir.path), fs::directory_iterator{}));
}

// The message of the InputError that parsing gives; empty when it parses.
std::string refusal(const std::string& text) {
  return message_of<InputError>([&] { parse_json(text, "config.json"); });
}

}  // namespace

TEST_CASE("json: valid text parses") {
  CHECK(parse_json(R"({"a": 1, "b": [true, null, "x"], "c": {"a": 2}})", "t")["c"]["a"] == 2);
  CHECK(parse_json("[]  \n", "t").empty());
  CHECK(parse_json("\"\xf0\x9f\x99\x82 \xed\x9f\xbf\"", "t").is_string());  // U+1F642, U+D7FF
}

TEST_CASE("json: malformed text is refused with the file's name") {
  for (const char* text : {"", " ", "{", "{\"a\":}", "{\"a\":1,}", "[1 2]", "nul", "{} x", "{'a':1}", "\"\\ud800\"",
                           "1e999", "\"\x01\"", "NaN", "[1]\x01"}) {
    CAPTURE(text);
    CHECK(contains(refusal(text), "config.json: "));
  }
  CHECK(contains(refusal(std::string("[1]\0]", 5)), "byte 3 is zero"));
}

TEST_CASE("json: duplicate keys are refused at any depth, equal keys of different objects are not") {
  CHECK(contains(refusal(R"({"a":1,"b":2,"a":3})"), "key \"a\" appears twice"));
  CHECK(contains(refusal(R"([{"x":{"k":1,"\u006b":2}}])"), "key \"k\" appears twice"));  // the same key, escaped
  CHECK(refusal(R"({"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]})") == "");
}

TEST_CASE("json: nesting is limited to 128") {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']');
  };
  CHECK(refusal(nested(128)) == "");
  CHECK(contains(refusal(nested(129)), "deeper than 128"));
  CHECK(contains(refusal(std::string(1000000, '[')), "deeper than 128"));
  std::string objects;
  for (int i = 0; i < 129; ++i) objects += "{\"a\":";
  CHECK(contains(refusal(objects), "deeper than 128"));
}

TEST_CASE("json: many objects in an array or an object are read in linear time") {
  std::string list = "[{}", map = "{\"0\":{}";
  for (int i = 1; i < 300000; ++i) {
    list += ",{}";
    map += ",\"" + std::to_string(i) + "\":{}";
  }
  CHECK(parse_json(list + "]", "f.json").size() == 300000);  // a quadratic parser would take minutes
  CHECK(parse_json(map + "}", "f.json").size() == 300000);
}

TEST_CASE("json: every kind of invalid UTF-8 is found") {
  for (const char* bytes : {"\x80", "\xc0\xaf", "\xc3", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                            "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe2\x82", "\xe2\x28\xa1"}) {
    CHECK(contains(refusal(std::string("[\"") + bytes + "\"]"), "byte 2 is not valid UTF-8"));
  }
}

TEST_CASE("json: messages stay short and printable") {
  const std::string key(100000, 'k');
  CHECK(refusal("{\"" + key + "\":1,\"" + key + "\":2}").size() < 300);
  CHECK(refusal("[\"" + key).size() < 500);
  CHECK(quoted("a\x1b[31m\nb") == "\"a\\u001b[31m\\nb\"");
  CHECK(quoted("\xff") == "\"\xef\xbf\xbd\"");
  const std::string umlauts = std::string(119, 'a') + "\xc3\xa4\xc3\xa4";
  CHECK(quoted(umlauts) == "\"" + std::string(119, 'a') + "...\"");
}

TEST_CASE("json: get names file, key and what was found") {
  const json object = parse_json(R"({"depth": "twelve", "none": null})", "t");
  CHECK_THROWS_WITH_AS(get<int>(object, "width", "c.json"), "c.json: key \"width\" is missing", InputError);
  CHECK_THROWS_AS(get<int>(object, "depth", "c.json"), InputError);
  CHECK(get_or(object, "none", 7, "c.json") == 7);
  CHECK(get_or(object, "absent", 7, "c.json") == 7);
}

TEST_CASE("json: files that cannot be read") {
  const Folder dir;
  CHECK_THROWS_AS(read_file(dir.file("absent")), InputError);
  CHECK_THROWS_AS(read_file(dir.path), InputError);
  write_text(dir.file("empty"), "");
  CHECK(read_file(dir.file("empty")).empty());
  CHECK_THROWS_AS(read_json(dir.file("empty")), InputError);
}

TEST_CASE("json: write_file replaces whole files and leaves nothing else") {
  const Folder dir;
  const std::string path = dir.file("out.txt");
  write_file(path, "one");
  write_file(path, std::string(100000, 'x'));
  CHECK(read_file(path) == std::string(100000, 'x'));
  write_file(path, std::vector<std::string_view>{"a", "", "bc"});
  CHECK(read_file(path) == "abc");
  CHECK(files_in(dir) == 1);
  CHECK_THROWS_AS(write_file(dir.file("no/such/dir"), "x"), Error);
  fs::create_directory(dir.file("sub"));
  CHECK_THROWS_AS(write_file(dir.file("sub"), "x"), Error);
}

TEST_CASE("json: a write that fails half way keeps the old file and removes the temporary one") {
  const Folder dir;
  const std::string path = dir.file("out.txt");
  write_file(path, "old");
  struct rlimit before = {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit limited = before;
  limited.rlim_cur = 5000;  // what a full disk does, without one
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limited) == 0);
  bool thrown = false;
  try {
    write_file(path, std::string(100000, 'x'));
  } catch (const Error&) {
    thrown = true;
  }
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, handler);
  CHECK(thrown);
  CHECK(read_file(path) == "old");
  CHECK(files_in(dir) == 1);
}
