// Token windows of text files: definitions, perplexity windows, calibration crops, and their errors.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "data/random.h"
#include "data/text/corpus.h"
#include "engine/core/check.h"
#include "engine/file/json.h"
#include "tests/support.h"

namespace bcq {
namespace {

using Ids = std::vector<int32_t>;

Ids counting(int n) {
  Ids ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

TEST_CASE("corpus: a file is one text, with one beginning-of-text token") {
  const test::Folder dir;
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  const std::string text = " = Title = \r\n\n the rain \n";
  test::write_text(dir.file("wiki.test.tokens"), text);
  const Ids ids = evaluation_ids({Definition::Plain, dir.file("wiki.test.tokens")}, &tokenizer, 8);
  CHECK(std::count(ids.begin(), ids.end(), 2) == 1);
  CHECK(tokenizer.decode(ids) == "</s>" + text);
}

TEST_CASE("corpus: files that cannot be a text") {
  const test::Folder dir;
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/plain");
  const auto refusal = [&](const char* name) {
    return test::message_of<InputError>([&] { evaluation_ids({Definition::Plain, dir.file(name)}, &tokenizer, 8); });
  };
  test::write_text(dir.file("empty.txt"), "");
  test::write_text(dir.file("latin1.txt"), "caf\xe9 au lait");
  CHECK(test::contains(refusal("none.txt"), "none.txt"));
  CHECK(test::contains(refusal("empty.txt"), "empty.txt"));
  CHECK(test::contains(refusal("latin1.txt"), "latin1.txt: not valid UTF-8 at byte 3"));
}

TEST_CASE("corpus: perplexity windows follow each other and drop the tail") {
  const Windows w = perplexity_windows(counting(11), 4, "text");
  CHECK(w.count == 2);
  CHECK(w.length == 4);
  CHECK(w.ids == counting(8));
  const Batch second = w.batch(1, 2);
  CHECK(second.ids == Ids{4, 5, 6, 7});
  CHECK(second.windows == 1);
  CHECK(second.length == 4);
  CHECK(second.size() == 1);
  CHECK(w.batch(0, 2).ids == w.ids);
  CHECK(w.batch(1, 1).ids.empty());
  CHECK_THROWS_AS(w.batch(0, 3), Error);
  CHECK(perplexity_windows(counting(8), 8, "text").count == 1);
}

TEST_CASE("corpus: a text shorter than one window says how many tokens it has and needs") {
  const std::string message = test::message_of<InputError>([] { perplexity_windows(counting(7), 8, "a.txt"); });
  CHECK(test::contains(message, "a.txt"));
  CHECK(test::contains(message, "7 tokens"));
  CHECK(test::contains(message, "needs 8"));
  CHECK_THROWS_AS(perplexity_windows(counting(7), 1, "a.txt"), UsageError);
}

TEST_CASE("corpus: calibration crops start where Python's random puts them") {
  // randint(0, 358364 - 2047 - 1) is randint(0, 356316)
  CHECK(crop_starts(358364, 2047, 4, 0, "text") == std::vector<int64_t>{201979, 220500, 21225, 135746});
  const Windows w = calibration_crops(counting(1000), 16, 5, 3, "text");
  const std::vector<int64_t> starts = crop_starts(1000, 16, 5, 3, "text");
  CHECK(w.count == 5);
  REQUIRE(w.ids.size() == 80);
  for (size_t i = 0; i < 5; ++i) {
    CHECK(w.ids[i * 16] == starts[i]);
    CHECK(w.ids[i * 16 + 15] == starts[i] + 15);
  }
  CHECK(w.batch(0, 5).windows == 5);
}

TEST_CASE("corpus: a crop needs one token more than its length") {
  CHECK(crop_starts(9, 8, 3, 0, "text") == std::vector<int64_t>{0, 0, 0});
  const std::string message = test::message_of<InputError>([] { crop_starts(8, 8, 1, 0, "b.txt"); });
  CHECK(test::contains(message, "b.txt: the text has 8 tokens"));
  CHECK(test::contains(message, "at least 9"));
  CHECK_THROWS_AS(crop_starts(100, 8, 0, 0, "text"), UsageError);
}

// Ids of a fixture against what the script behind it counted.
void check_facts(const Ids& ids, const json& want) {
  CHECK(ids.size() == want.at("count").get<size_t>());
  CHECK(Ids(ids.begin(), ids.begin() + 8) == want.at("first").get<Ids>());
  CHECK(Ids(ids.end() - 8, ids.end()) == want.at("last").get<Ids>());
  CHECK(token_hash(ids) == want.at("fnv").get<std::string>());
}

TEST_CASE("corpus: every definition gives the tokens and the windows of the published loaders") {
  const json want = read_json("tests/fixtures/corpus/windows.json");
  const int64_t length = want.at("length");
  const std::pair<const char*, const char*> texts[] = {{"wikitext2", "wiki.test.raw"},
                                                       {"ptb", "ptb.valid.txt"},
                                                       {"ptb-new", "ptb.valid.txt"},
                                                       {"c4", "c4.json.gz"},
                                                       {"c4-new", "c4.json.gz"}};
  for (const char* name : {"legacy", "bloom"}) {
    const Tokenizer tokenizer = Tokenizer::load(std::string("tests/fixtures/tokenizer/") + name);
    for (const auto& text : texts) {
      const std::string definition = text.first;
      CAPTURE(name);
      CAPTURE(definition);
      const TextSource source =
          text_source(definition + "=tests/fixtures/corpus/" + text.second, "", Split::Evaluation);
      check_facts(evaluation_ids(source, &tokenizer, length), want.at(name).at("evaluation").at(definition));
      for (const int seed : {0, 3})
        check_facts(calibration_windows(source, &tokenizer, length, 8, seed).ids,
                    want.at(name).at("calibration").at(definition + " " + std::to_string(seed)));
    }
  }
}

TEST_CASE("corpus: a text is named by definition and file, by file, or by definition and folder") {
  const auto file = [](const std::string& spec) { return text_source(spec, "", Split::Evaluation); };
  for (const auto& [path, definition] : {std::pair{"a/wiki.test.raw", Definition::Wikitext2},
                                         {"wikitext-2.test.tokens", Definition::Wikitext2},
                                         {"ptb.valid.txt", Definition::Ptb},
                                         {"c4-validation.00000-of-00008.json.gz", Definition::C4},
                                         {"x.jsonl", Definition::C4},
                                         {"test.txt", Definition::Plain},
                                         {"a=b.txt", Definition::Plain}}) {
    const TextSource source = file(path);
    CHECK(source.definition == definition);
    CHECK(source.path == path);
  }
  CHECK(file("c4-new=a=b.txt").definition == Definition::C4New);
  CHECK(file("c4-new=a=b.txt").path == "a=b.txt");
  CHECK(file("plain=wiki.test.raw").definition == Definition::Plain);
  CHECK(test::contains(test::message_of<UsageError>([&] { file("ptb"); }), "ptb.valid.txt"));

  const test::Folder dir;
  std::filesystem::create_directories(dir.path + "/c4/en");
  test::write_text(dir.file("c4/en/c4-train.00000-of-01024.json"), "{}");
  CHECK(text_source("c4-new", dir.path, Split::Calibration).path == dir.file("c4/en/c4-train.00000-of-01024.json"));
  const auto in_folder = [&](const char* name) {
    return test::message_of<InputError>([&] { text_source(name, dir.path, Split::Evaluation); });
  };
  CHECK(test::contains(in_folder("c4"), "c4-validation.00000-of-00008.json.gz"));
  test::write_text(dir.file("c4/ptb.test.txt"), "a");
  CHECK(in_folder("ptb-new").empty());
  test::write_text(dir.file("c4/en/ptb.test.txt"), "a");
  CHECK(test::contains(in_folder("ptb-new"), "both"));
}

TEST_CASE("corpus: files of other kinds, and damaged ones, are refused by name") {
  const test::Folder dir;
  const auto refusal = [&](const std::string& name, const std::string& bytes) {
    test::write_text(dir.file(name), bytes);
    return test::message_of<InputError>([&] { Documents(dir.file(name)).text(0); });
  };
  CHECK(test::contains(refusal("test.parquet", "PAR1\x15"), "to_json"));
  CHECK(test::contains(refusal("a.zip", "PK\x03\x04zip"), "unpack"));
  CHECK(test::contains(refusal("a.zst", "\x28\xb5\x2f\xfdzst"), "zstd"));
  const std::string whole = read_file("tests/fixtures/corpus/c4.json.gz");
  CHECK(test::contains(refusal("cut.json.gz", whole.substr(0, whole.size() - 30)), "ends early"));
  std::string flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(flipped[whole.size() / 2] ^ 0x55);
  CHECK(test::contains(refusal("flipped.json.gz", flipped), "damaged gzip"));
  CHECK(test::contains(refusal("list.json", "[{\"text\": \"a\"}]"), "line 1"));
  CHECK(test::contains(refusal("key.jsonl", "{\"txt\": \"a\"}\n"), "line 1: key \"text\" is missing"));
  CHECK(test::contains(refusal("half.jsonl", "{\"text\": \"a\n"), "line 1"));
  CHECK(test::contains(refusal("blank.jsonl", "\n \r\n"), "no documents"));

  test::write_text(dir.file("short.jsonl"), "{\"text\": \"a\"}\n\n{\"text\": \"b c\"}");
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  const std::string none = test::message_of<InputError>([&] {
    calibration_windows({Definition::C4, dir.file("short.jsonl")}, &tokenizer, 64, 2, 0);
  });
  CHECK(test::contains(none, "none of the 2 documents has more than 64 tokens"));
}

TEST_CASE("corpus: lines and white space are Python's") {
  using Lines = std::vector<std::string>;
  CHECK(python_lines("a\r\nb\rc\n\n d\x0b\xe2\x80\xa8") == Lines{"a\n", "b\n", "c\n", "\n", " d\x0b\xe2\x80\xa8"});
  CHECK(python_lines("").empty());
  CHECK(python_strip(" \x1c\x1f\xc2\x85\xe3\x80\x80 a \x1e b\xc2\xa0\x1d\n") == "a \x1e b");
  CHECK(python_strip("\xe2\x80\x8b") == "\xe2\x80\x8b");  // a zero-width space is none
  CHECK(python_strip(" \x1c ").empty());
  CHECK(python_strip("").empty());
}

TEST_CASE("corpus: token ids from a file, in three forms") {
  const test::Folder dir;
  const Ids ids = {2, 50264, 0, 31414};
  const auto as = [&](const std::string& bytes) {
    test::write_text(dir.file("ids"), bytes);
    return read_tokens(dir.file("ids"));
  };
  CHECK(as(std::string(reinterpret_cast<const char*>(ids.data()), 16)) == ids);
  CHECK(as(" [2, 50264,\n0, 31414]\n") == ids);
  CHECK(as("2 50264\r\n0\t31414\n") == ids);
  for (const char* bad : {"", " ", "[]", "2 x", "2,3", "-1", "[2, -1]", "[2.0]", "[2", "99999999999", "16777216"})
    CHECK_THROWS_AS(as(bad), InputError);
  CHECK_THROWS_AS(as(std::string(6, '\0')), InputError);
  test::write_text(dir.file("ids"), "1 2 3 4 5");
  CHECK(evaluation_ids({Definition::Tokens, dir.file("ids")}, nullptr, 4) == Ids{1, 2, 3, 4, 5});
  CHECK(calibration_windows({Definition::Tokens, dir.file("ids")}, nullptr, 4, 1, 0).ids == Ids{1, 2, 3, 4});
}

// What reads() gives when it opens a named pipe that `bytes` are written into, a few at a time.
template <class Reads>
auto through_pipe(const test::Folder& dir, const std::string& bytes, const Reads& reads) {
  const std::string path = dir.file("pipe");
  ::unlink(path.c_str());
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  std::thread writer([&] {
    const int fd = ::open(path.c_str(), O_WRONLY);
    for (size_t i = 0; i < bytes.size(); i += 3000)
      if (::write(fd, bytes.data() + i, std::min<size_t>(3000, bytes.size() - i)) < 0) break;
    ::close(fd);
  });
  const auto result = reads(path);
  writer.join();
  return result;
}

TEST_CASE("corpus: texts, documents and token ids come through pipes, compressed or not") {
  const test::Folder dir;
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  for (const auto& [definition, file] : {std::pair{Definition::Wikitext2, "wiki.test.raw"},
                                         {Definition::Ptb, "ptb.valid.txt"},
                                         {Definition::C4, "c4.json.gz"}}) {
    const std::string path = std::string("tests/fixtures/corpus/") + file;
    const auto ids = [&, kind = definition](const std::string& from) {
      return evaluation_ids({kind, from}, &tokenizer, 32);
    };
    CHECK(through_pipe(dir, read_file(path), ids) == ids(path));
  }
  const auto tokens = [&](const std::string& path) { return evaluation_ids({Definition::Tokens, path}, nullptr, 2); };
  CHECK(through_pipe(dir, "1 2 3", tokens) == Ids{1, 2, 3});
  const auto empty = [&](const std::string& path) { return test::message_of<InputError>([&] { read_text(path); }); };
  CHECK(test::contains(through_pipe(dir, "", empty), "a pipe can be read once"));
  CHECK(test::contains(empty(dir.path), "folder"));
}

TEST_CASE("corpus: bytes that are no characters are replaced and counted") {
  const test::Folder dir;
  std::vector<std::string> warnings;
  const Warn warn = [&](const std::string& message) { warnings.push_back(message); };
  const auto text = [&](const std::string& bytes) {
    test::write_text(dir.file("a.txt"), bytes);
    return read_text(dir.file("a.txt"), warn);
  };
  CHECK(text("caf\u00e9\n") == "caf\u00e9\n");
  CHECK(warnings.empty());
  CHECK(text("caf\xe9 au lait") == "caf\ufffd au lait");
  CHECK(test::contains(warnings.back(), "a.txt: not valid UTF-8 in 1 places, the first at byte 3"));
  CHECK(text("a\xed\xa0\x80"
             "b\xf0\x9f\x98"
             "c\xff") == "a\ufffd\ufffd\ufffdb\ufffdc\ufffd");  // as Python
  CHECK(test::contains(warnings.back(), "in 5 places, the first at byte 1"));
  CHECK(text("a" + std::string(3000000, '\xff')).size() == 9000001);
  CHECK(warnings.size() == 3);
  const auto refusal = [&](const char* bytes) {
    test::write_text(dir.file("b.txt"), bytes);
    return test::message_of<InputError>([&] { read_text(dir.file("b.txt"), warn); });
  };
  CHECK(test::contains(refusal("\xff\xfe"
                               "a"),
                       "UTF-16"));
  CHECK(test::contains(refusal("\xfe\xff"
                               "a"),
                       "UTF-16"));
}

TEST_CASE("corpus: a damaged line among documents is mended and counted") {
  const test::Folder dir;
  const std::pair<std::string, const char*> lines[] = {
      {R"(\ud800)", "\ufffd"},
      {R"(a\udc00\ud83d\ude00)", "a\ufffd\U0001f600"},
      {R"(\ud83d\ud83d\ude00)", "\ufffd\U0001f600"},
      {R"(\ud83dx)", "\ufffdx"},
      {R"(\q\\q)", "\ufffdq\\q"},
      {R"(\u12g4)", "\ufffdu12g4"},
      {R"(C:\data)", "C:\ufffddata"},
      {"a\x01"
       "b\tc",
       "a\ufffdb\ufffdc"},
      {"\xe9 \xed\xa0\x80", "\ufffd \ufffd\ufffd\ufffd"},
  };
  std::string bytes = "\xef\xbb\xbf{\"text\": \"\\u00e9\\n\\ud83d\\ude00 good\"}\n\n";
  for (const auto& line : lines) bytes += "{\"text\": \"" + line.first + "\"}\n";
  test::write_text(dir.file("a.jsonl"), bytes);
  const Documents documents(dir.file("a.jsonl"));
  std::vector<std::string> warnings;
  const Warn warn = [&](const std::string& message) { warnings.push_back(message); };
  REQUIRE(documents.size() == 10);
  CHECK(documents.text(0) == "\u00e9\n\U0001f600 good");
  documents.report(warn);
  CHECK(warnings.empty());
  for (size_t i = 0; i < std::size(lines); ++i) CHECK(documents.text(static_cast<int64_t>(i) + 1) == lines[i].second);
  documents.text(1);
  documents.report(warn);
  REQUIRE(warnings.size() == 1);
  CHECK(test::contains(warnings[0], "a.jsonl: 9 documents, the first in line 3"));
  CHECK_THROWS_AS(documents.report({}), InputError);

  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  warnings.clear();
  calibration_windows({Definition::C4, dir.file("a.jsonl")}, &tokenizer, 2, 4, 0, Align::None, {}, warn);
  CHECK(warnings.size() == 1);
  CHECK_THROWS_AS(evaluation_ids({Definition::C4, dir.file("a.jsonl")}, &tokenizer, 2), InputError);
}

// `count` draws of randint(0, documents - 1) that may_start() accepts.
std::vector<int64_t> drawn(int64_t documents, int64_t count, int64_t seed,
                           const std::function<bool(int64_t)>& may_start) {
  PythonRandom random(seed);
  std::vector<int64_t> picks;
  while (static_cast<int64_t>(picks.size()) < count)
    if (const int64_t i = random.randint(0, documents - 1); may_start(i)) picks.push_back(i);
  return picks;
}

Ids window(const Windows& w, size_t i) {
  const auto first = w.ids.begin() + static_cast<std::ptrdiff_t>(i) * w.length;
  return {first, first + w.length};
}

TEST_CASE("corpus: calibration windows of token ids begin with a separator") {
  const test::Folder dir;
  test::write_text(dir.file("ids"), "5 9 1 2 3 8 4 5 9 6 7 8 1 1 1 9 2");
  const TextSource source{Definition::Tokens, dir.file("ids")};
  const Ids ids = read_tokens(source.path);
  const auto windows = [&](int64_t length, const Ids& separators) {
    return calibration_windows(source, nullptr, length, 20, 3, Align::Document, separators);
  };
  const std::vector<int64_t> starts{0, 1, 5, 8, 11, 15};  // the first token, and every 8 and 9
  const Windows some = windows(4, {8, 9});
  const auto picks = drawn(6, 20, 3, [&](int64_t i) { return starts[static_cast<size_t>(i)] + 4 <= 17; });
  for (size_t i = 0; i < 20; ++i) {
    const auto from = ids.begin() + starts[static_cast<size_t>(picks[i])];
    CHECK(window(some, i) == Ids(from, from + 4));
  }
  CHECK(some.count == 20);
  CHECK(std::count(picks.begin(), picks.end(), 0) > 0);
  for (size_t i = 0; i < 20; ++i) CHECK(window(windows(17, {8}), i) == ids);  // only the first is long enough
  const auto refusal = [&](int64_t length, const Ids& separators) {
    return test::message_of<InputError>([&] { windows(length, separators); });
  };
  CHECK(test::contains(refusal(18, {8}), "none of the 3 documents is followed by 18 tokens"));
  CHECK(test::contains(refusal(4, {77}), "all one document"));
  CHECK_THROWS_AS(windows(4, {}), UsageError);                                     // which token?
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");  // begins texts with 2
  const Windows by_tokenizer = calibration_windows(source, &tokenizer, 2, 8, 0, Align::Document);
  for (size_t i = 0; i < 8; ++i) CHECK((window(by_tokenizer, i) == Ids{5, 9} || window(by_tokenizer, i) == Ids{2, 3}));
  // Without alignment, the same windows as ever.
  CHECK(calibration_windows(source, nullptr, 4, 20, 3, Align::None, {8}).ids ==
        calibration_crops(ids, 4, 20, 3, "text").ids);
}

TEST_CASE("corpus: calibration windows begin with JSON documents, which follow each other") {
  const test::Folder dir;
  const std::vector<std::string> texts{"the rain", "in", "the end of the rain", "an"};
  std::string bytes;
  for (const std::string& text : texts) bytes += json{{"text", text}}.dump() + "\n";
  test::write_text(dir.file("a.jsonl"), bytes);
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  std::vector<Ids> from(texts.size());
  for (size_t i = texts.size(); i-- > 0;) {
    from[i] = tokenizer.encode(texts[i]);
    if (i + 1 < texts.size()) from[i].insert(from[i].end(), from[i + 1].begin(), from[i + 1].end());
  }
  const int64_t length = static_cast<int64_t>(from[2].size());  // the last cannot begin a window
  for (const Definition definition : {Definition::C4, Definition::C4New}) {
    const Windows w =
        calibration_windows({definition, dir.file("a.jsonl")}, &tokenizer, length, 12, 5, Align::Document);
    const auto picks = drawn(4, 12, 5, [](int64_t i) { return i < 3; });
    for (size_t i = 0; i < 12; ++i) {
      const Ids& all = from[static_cast<size_t>(picks[i])];
      CHECK(window(w, i) == Ids(all.begin(), all.begin() + length));
      CHECK(window(w, i)[0] == 2);
    }
  }
}

TEST_CASE("corpus: calibration windows begin after blank lines") {
  const test::Folder dir;
  std::string text;
  std::vector<size_t> starts;
  for (int i = 0; i < 60; ++i) {
    starts.push_back(text.size());
    for (int word = 0; word < 5 + 7 * (i % 5); ++word)
      text += "na\u00efve rain " + std::to_string(word * i) + (word % 4 ? " " : "\n");
    text += i % 3 ? "\n\n" : "\n \n\n\n";
  }
  test::write_text(dir.file("a.txt"), text);
  const TextSource source{Definition::Plain, dir.file("a.txt")};
  for (const char* name : {"legacy", "bloom"}) {
    const Tokenizer tokenizer = Tokenizer::load(std::string("tests/fixtures/tokenizer/") + name);
    const Windows w = calibration_windows(source, &tokenizer, 64, 16, 1, Align::Document);
    const auto ids = [&](int64_t i) { return tokenizer.encode(text.substr(starts[static_cast<size_t>(i)])); };
    const auto picks = drawn(60, 16, 1, [&](int64_t i) { return ids(i).size() >= 64; });
    for (size_t i = 0; i < 16; ++i) {
      const Ids all = ids(picks[i]);
      CHECK(window(w, i) == Ids(all.begin(), all.begin() + 64));
    }
  }
  // A separator that is given decides instead.
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  const int32_t newline = tokenizer.encode("\n", false).at(0);
  const Windows w = calibration_windows(source, &tokenizer, 8, 16, 1, Align::Document, {newline});
  for (size_t i = 0; i < 16; ++i) CHECK((window(w, i)[0] == newline || window(w, i)[0] == 2));
  test::write_text(dir.file("a.txt"), "one line\nand another\n");
  CHECK(test::contains(
      test::message_of<InputError>([&] { calibration_windows(source, &tokenizer, 2, 2, 0, Align::Document); }),
      "all one document"));
}

TEST_CASE("corpus: bytes and words of the predicted tokens") {
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/legacy");
  const std::string text = "the rain\n in  don't x";
  Ids ids = tokenizer.encode(text, false);
  ids.insert(ids.begin(), 2);
  const Windows one = perplexity_windows(ids, static_cast<int64_t>(ids.size()), "text");
  const TextCounts counts = count_text(one, tokenizer);
  CHECK(counts.bytes == std::vector<double>{static_cast<double>(text.size())});
  CHECK(counts.words == std::vector<double>{5});
  ids[0] = tokenizer.encode("a", false)[0];  // "the" now goes on from this
  const Windows other = perplexity_windows(ids, static_cast<int64_t>(ids.size()), "text");
  CHECK(count_text(other, tokenizer).words == std::vector<double>{4});
}

}  // namespace
}  // namespace bcq
