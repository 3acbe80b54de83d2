// safetensors: one test per malformed case, values of every dtype, shards, writing. Files
// are built byte by byte here, so that the writer is not tested with itself.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <random>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

std::string length_bytes(uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), 8); }

// A file with this header and `data` bytes of zeros after it.
std::string file_of(const std::string& header, size_t data = 0) {
  return length_bytes(header.size()) + header + std::string(data, '\0');
}

// The header's description of one tensor.
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::string opening(const Folder& dir, const std::string& bytes) {
  const std::string path = dir.file("m.safetensors");
  write_text(path, bytes);
  return message_of<InputError>([&] { SafeTensors::open(path); });
}

// The file is refused, and the message names it and says `part`.
void refused(const std::string& bytes, const std::string& part) {
  const Folder dir;
  const std::string message = opening(dir, bytes);
  CAPTURE(message);
  CAPTURE(part);
  CHECK(contains(message, dir.file("m.safetensors")));
  CHECK(contains(message, part));
  CHECK(message.size() < 600);
}
void refused_header(const std::string& header, size_t data, const std::string& part) {
  refused(file_of(header, data), part);
}
void accepted(const std::string& bytes) {
  const Folder dir;
  CHECK(opening(dir, bytes) == "");
}

// A file with one tensor "x" whose bytes are `values`; `pad` spaces of header move its alignment.
template <class T>
SafeTensors one_tensor(const Folder& dir, const std::string& dtype, const std::vector<T>& values, int pad = 0) {
  const size_t bytes = values.size() * sizeof(T);
  std::string header =
      "{\"x\":" + entry(dtype, "[" + std::to_string(values.size()) + "]", "[0," + std::to_string(bytes) + "]") + "}";
  while (header.size() % 8) header += ' ';
  header += std::string(static_cast<size_t>(pad), ' ');
  const std::string path = dir.file("one.safetensors");
  write_text(path,
             length_bytes(header.size()) + header + std::string(reinterpret_cast<const char*>(values.data()), bytes));
  return SafeTensors::open(path);
}

}  // namespace

TEST_CASE("safetensors: valid files") {
  accepted(file_of("{}"));
  accepted(file_of("{}   \n\t "));
  accepted(file_of(R"({"__metadata__":{"a":"b"}})"));
  accepted(file_of(R"({"__metadata__":null})"));
  accepted(file_of("{\"x\":" + entry("F32", "[2]", "[0,8]") + "}", 8));
  accepted(file_of("{\"scalar\":" + entry("F32", "[]", "[0,4]") + "}", 4));
  accepted(file_of("{\"none\":" + entry("F32", "[3,0]", "[0,0]") + "}"));
  // Two empty tensors where a third begins, in any order of names; keys in any order; an extra key.
  accepted(file_of("{\"b\":" + entry("I8", "[0]", "[0,0]") + ",\"a\":" + entry("U8", "[4]", "[0,4]") +
                       ",\"c\":" + entry("I64", "[9,0]", "[0,0]") + "}",
                   4));
  accepted(file_of(R"({"x":{"data_offsets":[0,2],"more":[1],"shape":[1],"dtype":"F16"}})", 2));
}

TEST_CASE("safetensors: the length of the header") {
  refused("", "0 bytes are too few");
  refused("1234567", "7 bytes are too few");
  refused(length_bytes(100'000'001), "exceeds the format's 100 MB");
  refused(length_bytes(~0ull), "exceeds the format's 100 MB");
  refused(length_bytes(~0ull - 7) + "{}", "exceeds the format's 100 MB");
  refused(length_bytes(3) + "{}", "the header needs 3 bytes");
  refused(length_bytes(0), "must begin with '{'");
}

TEST_CASE("safetensors: a header that is not what it has to be") {
  refused_header(" {}", 0, "must begin with '{'");
  refused_header("\n{}", 0, "must begin with '{'");
  refused_header("[]", 0, "must begin with '{'");
  refused_header("\xef\xbb\xbf{}", 0, "must begin with '{'");
  refused_header("{\"a\xff\":1}", 0, "not valid UTF-8");
  refused_header("{\"a\":}", 0, "not valid JSON");
  refused_header("{} x", 0, "not valid JSON");
  refused_header(std::string("{}\0", 3), 0, "not valid JSON");
  refused_header("{", 0, "not valid JSON");
  refused_header("{\"a\":" + std::string(500, '['), 0, "nested deeper");
}

TEST_CASE("safetensors: duplicate keys") {
  const std::string x = entry("U8", "[1]", "[0,1]");
  refused_header("{\"x\":" + x + ",\"x\":" + x + "}", 1, "key \"x\" appears twice");
  refused_header(R"({"x":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
                 "key \"dtype\" appears twice");
  refused_header(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "key \"k\" appears twice");
  refused_header(R"({"__metadata__":{},"__metadata__":{}})", 0, "appears twice");
}

TEST_CASE("safetensors: metadata must be strings") {
  refused_header(R"({"__metadata__":{"k":1}})", 0, "\"k\" must be a string");
  refused_header(R"({"__metadata__":{"k":null}})", 0, "\"k\" must be a string");
  refused_header(R"({"__metadata__":["k"]})", 0, "object of strings");
}

TEST_CASE("safetensors: descriptions of tensors with wrong or missing parts") {
  refused_header(R"({"x":1})", 0, "tensor \"x\"");
  refused_header(R"({"x":null})", 0, "must be a JSON object");
  refused_header(R"({"x":["U8",[1],[0,1]]})", 1, "must be a JSON object");
  refused_header(R"({"x":{"shape":[1],"data_offsets":[0,1]}})", 1, "\"dtype\" is missing");
  refused_header(R"({"x":{"dtype":"U8","data_offsets":[0,1]}})", 1, "\"shape\" is missing");
  refused_header(R"({"x":{"dtype":"U8","shape":[1]}})", 1, "\"data_offsets\" is missing");
  for (const char* dtype : {"F31", "f32", "", "F8_E4M3", "C64"})
    refused_header("{\"x\":" + entry(dtype, "[8]", "[0,8]") + "}", 8, "is not one this program reads");
  refused_header(R"({"x":{"dtype":5,"shape":[1],"data_offsets":[0,1]}})", 1, "dtype must be a string");
  for (const char* shape :
       {"1", "null", "{}", "[-1]", "[1.0]", "[\"1\"]", "[null]", "[1e0]", "[-0]", "[18446744073709551616]"})
    refused_header("{\"x\":" + entry("U8", shape, "[0,1]") + "}", 1, "shape must be an array");
  for (const char* offsets :
       {"0", "null", "[]", "[0]", "[0,1,2]", "[-1,0]", "[0.0,1]", "[\"0\",\"1\"]", "[0,18446744073709551616]"})
    refused_header("{\"x\":" + entry("U8", "[1]", offsets) + "}", 1, "data_offsets must be two");
}

TEST_CASE("safetensors: offsets") {
  refused_header("{\"x\":" + entry("U8", "[1]", "[1,0]") + "}", 1, "reversed");
  refused_header("{\"x\":" + entry("U8", "[1]", "[1,2]") + "}", 2, "begins at byte 1");
  refused_header("{\"x\":" + entry("U8", "[2]", "[0,2]") + "}", 1, "only 1 bytes of data");
  refused_header("{\"x\":" + entry("U8", "[1]", "[0,1]") + "}", 2, "the file has 2 bytes of data");
  refused_header("{}", 1, "the file has 1 bytes of data");
  refused_header("{\"x\":" + entry("U8", "[2]", "[0,2]") + ",\"y\":" + entry("U8", "[2]", "[1,3]") + "}", 3,
                 "tensor \"y\"");
  refused_header("{\"x\":" + entry("U8", "[1]", "[0,1]") + ",\"y\":" + entry("U8", "[1]", "[2,3]") + "}", 3,
                 "tensor \"y\"");
  const std::string top = "18446744073709551615";
  refused_header("{\"x\":" + entry("U8", "[" + top + "]", "[0," + top + "]") + "}", 1, "too large");
  refused_header("{\"x\":" + entry("U8", "[1]", "[" + top + ",0]") + "}", 1, "reversed");
}

TEST_CASE("safetensors: many tensors over the same bytes") {
  std::string header = "{\"t\":" + entry("U8", "[4096]", "[0,4096]");
  for (int i = 0; i < 10000; ++i) header += ",\"t" + std::to_string(i) + "\":" + entry("U8", "[4096]", "[0,4096]");
  refused_header(header + "}", 4096, "begins at byte 0");
}

TEST_CASE("safetensors: shape and dtype against the bytes given") {
  refused_header("{\"x\":" + entry("F32", "[2]", "[0,4]") + "}", 4, "takes 8 bytes, but data_offsets give it 4");
  refused_header("{\"x\":" + entry("F16", "[]", "[0,4]") + "}", 4, "takes 2 bytes");
  refused_header("{\"x\":" + entry("F32", "[4294967296,4294967296]", "[0,0]") + "}", 0, "overflows");
  refused_header("{\"x\":" + entry("F32", "[4294967296,1073741824]", "[0,0]") + "}", 0, "overflows");   // x 4 bytes
  refused_header("{\"x\":" + entry("I64", "[288230376151711744]", "[0,0]") + "}", 0, "overflows");      // x 64 bits
  refused_header("{\"x\":" + entry("U8", "[4294967296,4294967296,0]", "[0,0]") + "}", 0, "overflows");  // before the 0
  std::string ones = "[1";
  for (int i = 0; i < 100000; ++i) ones += ",1";
  refused_header("{\"x\":" + entry("U8", ones + ",2]", "[0,1]") + "}", 1, "100002 dimensions");
  accepted(file_of("{\"x\":" + entry("U8", ones + "]", "[0,1]") + "}", 1));
}

TEST_CASE("safetensors: messages neither repeat long names nor control characters") {
  refused_header("{\"" + std::string(5000, 'n') + "\":1}", 0, "nnn...");
  refused_header("{\"\\u001b[2J\\u0000\":1}", 0, "\"\\u001b[2J\\u0000\"");
}

TEST_CASE("safetensors: paths that are not files") {
  const Folder dir;
  CHECK(contains(message_of<InputError>([&] { SafeTensors::open(dir.file("absent")); }), "absent"));
  CHECK(contains(message_of<InputError>([&] { SafeTensors::open(dir.path); }), "is a directory"));
  REQUIRE(::mkfifo(dir.file("pipe").c_str(), 0600) == 0);
  CHECK(contains(message_of<InputError>([&] { SafeTensors::open(dir.file("pipe")); }), "not a regular file"));
}

TEST_CASE("safetensors: floats of every type, at every alignment") {
  const Folder dir;
  const std::vector<float> want = {1.5f, -2.f, 0.f, 65504.f, 6.103515625e-05f};
  const std::vector<uint16_t> halves = {0x3e00, 0xc000, 0x0000, 0x7bff, 0x0400};
  const std::vector<uint16_t> brains = {0x3fc0, 0xc000, 0x0000, 0x4780, 0x3880};
  const std::vector<double> wide(want.begin(), want.end());
  for (int pad = 0; pad < 8; ++pad) {
    CAPTURE(pad);
    const Tensor f32 = one_tensor(dir, "F32", want, pad).get("x", {5});  // outlives the file: it keeps the mapping
    CHECK(same_bits(f32, Tensor({5}, want)));
    CHECK(same_bits(one_tensor(dir, "F16", halves, pad).get("x"), Tensor({5}, want)));
    CHECK(same_bits(one_tensor(dir, "F64", wide, pad).get("x"), Tensor({5}, want)));
    CHECK(one_tensor(dir, "BF16", brains, pad).get("x")[3] == 65536.f);
    const SafeTensors file = one_tensor(dir, "F32", want, pad);
    const bool borrowed = static_cast<const void*>(file.get("x").data) == file.tensors().at("x").bytes;
    CHECK(borrowed == (pad % 4 == 0));
  }
  // Many 16-bit values at an odd address, and none.
  const Tensor many = one_tensor(dir, "BF16", std::vector<uint16_t>(10001, 0x3f80), 1).get("x");
  CHECK(std::all_of(many.data, many.data + 10001, [](float v) { return v == 1.f; }));
  CHECK(one_tensor(dir, "F16", std::vector<uint16_t>{}, 1).get("x", {0}).size() == 0);
  CHECK(one_tensor(dir, "F32", std::vector<float>{}).get("x", {0}).size() == 0);
}

TEST_CASE("safetensors: values that are not finite are refused with their place") {
  const Folder dir;
  const auto message = [&](const SafeTensors& file) { return message_of<InputError>([&] { file.get("x"); }); };
  std::vector<float> values(100, 1.f);
  values[73] = NAN;
  CHECK(contains(message(one_tensor(dir, "F32", values)), "one.safetensors: tensor \"x\": the value at [73] is NaN"));
  values[73] = -INFINITY;
  CHECK(contains(message(one_tensor(dir, "F32", values, 3)), "the value at [73] is infinite"));
  CHECK(contains(message(one_tensor(dir, "F16", std::vector<uint16_t>{0, 0x7c00})), "at [1] is infinite"));
  CHECK(contains(message(one_tensor(dir, "BF16", std::vector<uint16_t>{0x7fc0})), "at [0] is NaN"));
  CHECK(contains(message(one_tensor(dir, "F64", std::vector<double>{1e300})), "too large for float32"));
  std::string header = "{\"x\":" + entry("F32", "[2,3]", "[0,24]") + "}";
  const float grid[6] = {0, 0, 0, 0, 0, NAN};
  write_text(dir.file("g"),
             length_bytes(header.size()) + header + std::string(reinterpret_cast<const char*>(grid), 24));
  CHECK(contains(message(SafeTensors::open(dir.file("g"))), "at [1, 2] is NaN"));
}

TEST_CASE("safetensors: a weight of 16-bit floats stays as it is stored, and is checked all the same") {
  const Folder dir;
  std::vector<uint16_t> halves(40000, 0x3c00), brains(40000, 0x3f80);
  halves[39999] = 0xc000, brains[39999] = 0xc000;  // -2
  for (const int pad : {0, 1}) {
    for (const auto& [dtype, values] :
         {std::pair<const char*, std::vector<uint16_t>>{"F16", halves}, {"BF16", brains}}) {
      const SafeTensors file = one_tensor(dir, dtype, values, pad);
      const Weight w = file.get_weight("x", {40000});
      CHECK(same_bits(w.values(), file.get("x")));
      CHECK(w.values().data != w.values().data);  // decoded each time
      Tensor scratch;
      CHECK(*w.rows(39999, 40000, scratch) == -2);
      CHECK(*w.rows(1, 2, scratch) == 1);
    }
  }
  const SafeTensors floats = one_tensor(dir, "F32", std::vector<float>{1, 2});
  CHECK(static_cast<const void*>(floats.get_weight("x", {2}).values().data) == floats.tensors().at("x").bytes);

  halves[33333] = 0x7e00;
  const SafeTensors bad = one_tensor(dir, "F16", halves);
  const auto message = [&](const Shape& shape) { return message_of<InputError>([&] { bad.get_weight("x", shape); }); };
  CHECK(contains(message({40000}), "one.safetensors: tensor \"x\": the value at [33333] is NaN"));
  CHECK(contains(message({3}), "the model needs [3]"));
}

TEST_CASE("safetensors: get says what was expected and what was found") {
  const Folder dir;
  const SafeTensors file = one_tensor(dir, "F32", std::vector<float>{1, 2});
  CHECK(contains(message_of<InputError>([&] { file.get("x", {3}); }), "has shape [2], but the model needs [3]"));
  CHECK(contains(message_of<InputError>([&] { file.get("y", {3}); }), "tensor \"y\" is missing"));
  CHECK(contains(message_of<InputError>([&] { file.get_ints("x", nullptr); }), "is F32, but an integer tensor"));
  const SafeTensors ints = one_tensor(dir, "I32", std::vector<int32_t>{1});
  CHECK(contains(message_of<InputError>([&] { ints.get("x"); }), "is I32, but a floating-point tensor"));
  CHECK(Loader(file).has("x"));
  CHECK(!Loader(file).sub("x").has("x"));
  write_raw(dir.file("nested"), {{"blocks.3.w", Tensor({1}, {5})}, {"blocks.3.b", Tensor({1}, {6})}});
  const SafeTensors nested = SafeTensors::open(dir.file("nested"));
  const Loader loader(nested);
  CHECK(loader.sub("blocks").sub(3).get("w", {1})[0] == 5.f);
  CHECK(loader.unused() == std::vector<std::string>{"blocks.3.b"});
}

TEST_CASE("safetensors: integers of every type") {
  const Folder dir;
  Shape shape;
  using Ints = std::vector<int64_t>;
  for (int pad = 0; pad < 3; ++pad) {
    CHECK(one_tensor(dir, "I8", std::vector<int8_t>{-128, 127}, pad).get_ints("x", &shape) == Ints{-128, 127});
    CHECK(one_tensor(dir, "U8", std::vector<uint8_t>{0, 255}, pad).get_ints("x", &shape) == Ints{0, 255});
    CHECK(one_tensor(dir, "I16", std::vector<int16_t>{-32768}, pad).get_ints("x", &shape) == Ints{-32768});
    CHECK(one_tensor(dir, "U16", std::vector<uint16_t>{65535}, pad).get_ints("x", &shape) == Ints{65535});
    CHECK(one_tensor(dir, "I32", std::vector<int32_t>{INT32_MIN}, pad).get_ints("x", &shape) == Ints{INT32_MIN});
    CHECK(one_tensor(dir, "U32", std::vector<uint32_t>{UINT32_MAX}, pad).get_ints("x", &shape) == Ints{UINT32_MAX});
    CHECK(one_tensor(dir, "I64", std::vector<int64_t>{INT64_MIN, 7}, pad).get_ints("x", &shape) == Ints{INT64_MIN, 7});
    CHECK(shape == Shape{2});
  }
  for (const char* dtype : {"U64", "F64"})
    CHECK_THROWS_AS(one_tensor(dir, dtype, Ints{1}).get_ints("x", &shape), InputError);
}

TEST_CASE("safetensors: shards") {
  const Folder dir;
  write_raw(dir.file("a-1.safetensors"), {{"p", Tensor({2}, {1, 2})}}, false, {{"format", "pt"}});
  write_raw(dir.file("a-2.safetensors"), {{"q", Tensor({1}, {3})}, {"unlisted", Tensor({1}, {4})}}, false,
            {{"by", "test"}});
  const std::string index = dir.file("a.safetensors.index.json");
  const auto opening_index = [&](const std::string& text) {
    write_text(index, text);
    return message_of<InputError>([&] { SafeTensors::open(index); });
  };
  const auto map = [](const std::string& entries) {
    return R"({"metadata":{"total_size":12},"weight_map":{)" + entries + "}}";
  };

  REQUIRE(opening_index(map(R"("p":"a-1.safetensors","q":"a-2.safetensors")")) == "");
  const SafeTensors file = SafeTensors::open(index);
  CHECK(file.tensors().size() == 2);
  CHECK(file.get("q", {1})[0] == 3.f);
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.metadata().at("by") == "test");

  CHECK(contains(opening_index(map(R"("q":"a-1.safetensors")")),
                 "tensor \"q\" is not in " + dir.file("a-1.safetensors")));
  CHECK(contains(opening_index(map(R"("p":"a-3.safetensors")")), "a-3.safetensors: cannot be opened"));
  for (const char* name :
       {"../a-1.safetensors", "/etc/passwd", "x/../a-1.safetensors", "..", ".", "", "a\\\\b", "a-1.safetensors\\u0000"})
    CHECK(contains(opening_index(map("\"p\":\"" + std::string(name) + "\"")), "only files beside the index"));
  CHECK(contains(opening_index(map(R"("p":"a-1.safetensors","p":"a-2.safetensors")")), "key \"p\" appears twice"));
  CHECK(contains(opening_index(map(R"("p":1)")), "must be a string"));
  CHECK(contains(opening_index(R"({"weight_map":[]})"), "must be an object"));
  CHECK(contains(opening_index(R"({})"), "\"weight_map\" is missing"));
  CHECK(contains(opening_index("{"), "not valid JSON"));
}

TEST_CASE("safetensors: written bytes are those of the reference writer") {
  const Folder dir;
  const std::string path = dir.file("w.safetensors");
  write_safetensors(path, {{"b", Tensor({2}, {1, 2})}, {"a", Tensor({1, 1}, {3})}, {"s", Tensor(Shape{}, {4})}});
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},)"
      R"("s":{"dtype":"F32","shape":[],"data_offsets":[12,16]}})";
  const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  const float values[] = {3, 1, 2, 4};
  CHECK(read_text(path) ==
        length_bytes(padded.size()) + padded + std::string(reinterpret_cast<const char*>(values), 16));
}

TEST_CASE("safetensors: what was written is read back") {
  const Folder dir;
  const std::string path = dir.file("w.safetensors");
  const std::map<std::string, Tensor> tensors = {{"block.0.weight", random({17, 3}, 1)},
                                                 {"empty", Tensor({0, 4})},
                                                 {"scalar", random({}, 2)},
                                                 {"\"\\\n\xc3\xa4\x7f", random({5}, 3)}};
  write_safetensors(path, tensors, {{"made by", "a \"test\""}, {"format", "overridden"}});
  write_safetensors(path, tensors, {{"made by", "a \"test\""}});  // over the file that exists
  const SafeTensors file = SafeTensors::open(path);
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"made by", "a \"test\""}});
  CHECK(file.tensors().size() == tensors.size());
  for (const auto& [name, t] : tensors) CHECK(same_bits(file.get(name, t.shape), t));
}

TEST_CASE("safetensors: a file that cannot be written leaves nothing behind") {
  const Folder dir;
  const std::string path = dir.file("w.safetensors");
  const auto failure = [&](const std::string& to, const std::map<std::string, Tensor>& tensors) {
    return message_of<Error>([&] { write_safetensors(to, tensors); });
  };
  CHECK(contains(failure(path, {{"x", Tensor({2}, {1, NAN})}}), "tensor \"x\" has values that are not finite"));
  CHECK(contains(failure(path, {{"x", Tensor({1}, {INFINITY})}}), "not finite"));
  CHECK(contains(failure(path, {{"__metadata__", Tensor({1}, {1})}}), "reserved"));
  CHECK(contains(failure(path, {{"x", Tensor()}}), "no values"));
  CHECK(contains(failure(path, {{"\xff", Tensor({1}, {1})}}), "UTF-8"));
  CHECK(contains(failure(dir.file("no/dir.safetensors"), {{"x", Tensor({1}, {1})}}), "cannot be written"));
  CHECK(contains(failure(dir.path, {{"x", Tensor({1}, {1})}}), "folder"));
  CHECK(std::filesystem::is_empty(dir.path));
}

// Every mutant of a good file either loads, and then gives its values or a refusal of them, or is
// refused with an InputError. Anything else (another exception, a crash, a sanitizer's finding) fails.
TEST_CASE("safetensors: mutated files load or are refused") {
  const Folder dir;
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":" + entry("F32", "[2,2]", "[0,16]") +
                             ",\"b\":" + entry("BF16", "[3]", "[16,22]") +
                             ",\"c\":" + entry("I64", "[0,7]", "[22,22]") + "}";
  const std::string good = file_of(header, 22);
  const std::string path = dir.file("m.safetensors");
  const std::string tokens[] = {"{",    "}",     "[",       "]",    ",",   ":",
                                "\"",   "0",     "9",       "-",    "1e9", "18446744073709551615",
                                "null", "\"a\"", "\\u0000", "\xff", " "};
  std::mt19937 bits(7);
  const auto below = [&](size_t n) { return bits() % n; };
  int loaded = 0, refused_count = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = good;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t at = below(bytes.size());
      const std::string& token = tokens[below(std::size(tokens))];
      switch (below(6)) {
        case 0:
          bytes[at] = static_cast<char>(bits());
          break;
        case 1:
          bytes.resize(std::max<size_t>(at, 1));
          break;
        case 2:
          bytes.erase(at, below(12));
          break;
        case 3:
          bytes.insert(at, token);
          break;
        case 4:
          bytes.replace(at, std::min(token.size(), bytes.size() - at), token);
          break;
        default:
          bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
          break;
      }
    }
    // Half of the mutants get a length that fits, so that the JSON behind it is reached.
    if (bytes.size() > 30 && below(2)) bytes.replace(0, 8, length_bytes(bytes.size() - 30));
    write_text(path, bytes);
    try {
      const SafeTensors file = SafeTensors::open(path);
      ++loaded;
      for (const auto& tensor : file.tensors()) file.get(tensor.first);
    } catch (const InputError& error) {
      ++refused_count;
      CHECK(std::strlen(error.what()) < 1000);
    }
  }
  CHECK(loaded > 20);
  CHECK(refused_count > 3000);
}
