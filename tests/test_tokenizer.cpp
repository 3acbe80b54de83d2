// Byte-pair encoding against the Hugging Face tokenizers library (tests/reference/make_tokenizer_fixtures.py).
#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>

#include "data/text/corpus.h"
#include "data/text/normalize.h"
#include "tests/tokenizer_files.h"

namespace bcq {
namespace {

TEST_CASE("utf8: the offset of the first bad byte") {
  CHECK(invalid_utf8("") == -1);
  CHECK(invalid_utf8("aé你😀\U0010ffff\u07ff\u0800\uffff") == -1);
  for (const std::string bad :
       {"\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xc3", "\xe4\xbd",
        "\xf0\x9f\x98", "\xff", "\xc3(", "\xf0\x8f\xbf\xbf"}) {
    CHECK(invalid_utf8("aé" + bad) == 3);
    CHECK(invalid_utf8("aé" + bad + "b") == 3);
  }
}

TEST_CASE("bpe: byte characters") {
  CHECK(byte_character(' ') == "Ġ");
  CHECK(byte_character('\n') == "Ċ");
  CHECK(byte_character('a') == "a");
  CHECK(byte_character(0xad) == "Ń");
  CHECK(byte_character(0xff) == "ÿ");
  for (int b = 0; b < 256; ++b) {
    CHECK(token_bytes(byte_character(static_cast<uint8_t>(b))) == std::string(1, static_cast<char>(b)));
  }
  CHECK(token_bytes("a b") == "a b");
}

TEST_CASE("bpe: best rank first, leftmost first, later duplicates win") {
  const std::unordered_map<std::string, int32_t> vocab{{"a", 0}, {"b", 1}, {"aa", 2}, {"ab", 3}, {"aab", 4}};
  const auto ids = [&](const Bpe::Merges& merges, const std::string& text) {
    Ids out;
    Bpe(vocab, merges, "test").encode(text, out);
    return out;
  };
  CHECK(ids({{"a", "a"}}, "aaaaa") == Ids{2, 2, 0});
  CHECK(ids({{"a", "b"}, {"a", "a"}}, "aaab") == Ids{2, 3});
  CHECK(ids({{"a", "a"}, {"a", "b"}, {"aa", "b"}}, "aaab") == Ids{2, 3});
  CHECK(ids({{"a", "b"}, {"a", "a"}, {"a", "b"}}, "aab") == Ids{2, 1});
  CHECK(ids({}, "ab") == Ids{0, 1});
  CHECK(ids({{"a", "a"}}, "").empty());
  CHECK_THROWS_AS(ids({}, "c"), InputError);
  CHECK_THROWS_AS(Bpe(vocab, {{"b", "b"}}, "test"), InputError);
  CHECK_THROWS_AS(Bpe({{"a", 1}, {"b", 1}}, {}, "test"), InputError);
  CHECK_THROWS_AS(Bpe({{"a", -1}}, {}, "test"), InputError);
}

TEST_CASE("tokenizer: odd Unicode under every layout equals the reference") {
  const std::string odd = test::read_text(kDir + "odd.txt");
  const json record = read_json(kDir + "ids.json");
  for (const auto& entry : record.items()) {
    const std::string name = entry.key();
    const json& ids = entry.value();
    CAPTURE(name);
    const Tokenizer tokenizer = Tokenizer::load(kDir + name);
    CHECK(tokenizer.encode(odd) == ids.get<Ids>());
  }
}

TEST_CASE("tokenizer: every byte string decodes to itself; specials only when asked for") {
  const std::string odd = test::read_text(kDir + "odd.txt");
  const Tokenizer tokenizer = Tokenizer::load(kDir + "legacy");
  CHECK(tokenizer.decode(tokenizer.encode(odd, false)) == odd);
  CHECK(tokenizer.decode(tokenizer.encode(odd)) == "</s>" + odd);
  CHECK(tokenizer.encode("") == Ids{2});
  CHECK(tokenizer.encode("", false).empty());
  CHECK(tokenizer.bos() == 2);
  CHECK(tokenizer.vocab_size() == 500);
  CHECK_THROWS_AS(tokenizer.decode({500}), Error);
  CHECK_THROWS_AS(tokenizer.decode({-1}), Error);
  CHECK(Tokenizer::load(kDir + "bloom").bos() == -1);
  const Tokenizer added = Tokenizer::load(kDir + "added");
  CHECK(added.bos() == 2);
  CHECK(added.encode("a").back() == 1);
  CHECK(added.vocab_size() == 508);
}

TEST_CASE("tokenizer: of characters, with bytes for what has no token and spaces in words") {
  const Tokenizer first = Tokenizer::load(kDir + "metaspace"), llama = Tokenizer::load(kDir + "llama2");
  const std::string odd = test::read_text(kDir + "odd.txt"), shown = replace_all(odd, "\u2581", " ");
  CHECK(first.decode(first.encode(odd, false)) == " " + shown);
  CHECK(first.decode(first.encode(" a<s> b", false)) == " a<s> b");
  CHECK(first.decode(first.encode("a<s>b", false)) == " a<s>b");
  CHECK(llama.decode(llama.encode("a<s>b", false)) == " a<s> b");
  CHECK(llama.encode("").size() == 1);
  CHECK(llama.bos() == 1);
  CHECK(llama.bytes(3 + 0x0a) == "\n");
  CHECK(llama.encode("", false).empty());

  const auto with = [](const char* pointer, const json& value) {
    json tree = read_json(kDir + "metaspace/tokenizer.json");
    tree[json::json_pointer(pointer)] = value;
    return tree;
  };
  const Ids after = first.encode("<s>a", false);
  CHECK(load(with("/pre_tokenizer/prepend_scheme", "never")).encode("a", false) == Ids{after.begin() + 1, after.end()});
  const std::pair<json, const char*> cases[] = {
      {with("/pre_tokenizer/prepend_scheme", "last"), "last"},
      {with("/pre_tokenizer/replacement", ""), "replaced"},
      {with("/pre_tokenizer/magic", 1), "magic"},
      {with("/pre_tokenizer", nullptr), "pre_tokenizer"},
      {with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "_"}}), "replaced"},
      {with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "b"}}), "Replace"},
      {with("/decoder", {{"type", "ByteLevel"}}), "ByteLevel"},
      {with("/decoder/decoders/0/content", "_"), "Replace"}};
  for (const auto& [tree, text] : cases) {
    const char* part = text;
    CAPTURE(part);
    CHECK(test::contains(refusal(tree), part));
  }
  const json tree = with("/version", "1.0");
  CHECK(test::contains(refusal(tree, {{"add_prefix_space", false}}), "add_prefix_space"));
  CHECK(refusal(tree, {{"add_prefix_space", true}, {"add_bos_token", true}}) == "");
}

TEST_CASE("tokenizer: text that is not UTF-8 is refused with the offset") {
  const Tokenizer tokenizer = Tokenizer::load(kDir + "plain");
  const std::string message = test::message_of<InputError>([&] { tokenizer.encode("abc\xff"); });
  CHECK(test::contains(message, "byte 3"));
}

TEST_CASE("tokenizer: half a million bytes of one piece, of blanks, and five times that of words take linear time") {
  const Tokenizer gpt2 = Tokenizer::load(kDir + "plain"), bloom = Tokenizer::load(kDir + "bloom");
  const size_t n = 500000;
  std::string words;
  while (words.size() < 5 * n) words += "the rain in " + std::to_string(words.size() % 9973) + "\n\n  ";
  for (const std::string& text :
       {std::string(n, 'a'), std::string(n, ' '), std::string(n, '\n') + "a", words, std::string(n, '(')}) {
    for (const Tokenizer* t : {&gpt2, &bloom}) {
      const auto begin = std::chrono::steady_clock::now();
      const Ids ids = t->encode(text);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      CHECK(t->decode(ids) == text);
      CHECK(seconds < 60.0);  // a quadratic pass would take many minutes
    }
  }
}

TEST_CASE("nfc: characters are composed, marks are ordered") {
  // From NormalizationTest.txt of Unicode, and Python's unicodedata.
  const std::pair<const char*, const char*> cases[] = {
      {"", ""},
      {"plain text\n", "plain text\n"},
      {"e\u0301", "é"},
      {"xe\u0301e", "xée"},
      {"\u0301e", "\u0301e"},
      {"\u212b\u2126", "Å\u03a9"},
      {"q\u0307\u0323", "q\u0323\u0307"},
      {"\u1e9b\u0323", "\u1e9b\u0323"},
      {"a\u0315\u0300\u05ae\u0301b", "\u00e0\u05ae\u0301\u0315b"},
      {"\u0958", "\u0915\u093c"},  // excluded from composition
      {"\u0344", "\u0308\u0301"},
      {"\u1100\u1161\u11a8\uac00\u11a8\u1100\u1161", "\uac01\uac01\uac00"},
      {"\U0001d15e", "\U0001d157\U0001d165"},
      {"\uf900\u4f60", "\u8c48\u4f60"}};
  for (const auto& [text, want] : cases) {
    const std::string from = text;
    CAPTURE(from);
    CHECK(nfc(from) == want);
    CHECK(nfc(want) == want);
  }
  std::string marks = "a";  // alternating classes: an insertion sort would take an hour
  for (int i = 0; i < 300000; ++i) marks += i % 2 ? "\u0323" : "\u0301";
  const auto begin = std::chrono::steady_clock::now();
  CHECK(nfc(marks).substr(0, 5) == "ạ\u0323");
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
}

TEST_CASE("tokenizer: real texts under GPT-2's files") {
  const char* env = std::getenv("BCQ_SHARED_DATA");
  const std::string data = env ? env : "../shared/data";
  if (!fs::exists(data + "/tokenizer/gpt2-vocab.json")) {
    MESSAGE("skipped: no " << data << "/tokenizer/gpt2-vocab.json");
    return;
  }
  const test::Folder dir;
  for (const char* name : {"vocab.json", "merges.txt"}) {
    fs::copy_file(data + "/tokenizer/gpt2-" + name, dir.file(name));
  }
  const Tokenizer tokenizer = Tokenizer::load(dir.path);
  const json record = read_json(kDir + "shared.json");
  for (const auto& entry : record.items()) {
    const std::string name = entry.key();
    const json& want = entry.value();
    CAPTURE(name);
    const Ids ids = tokenizer.encode(test::read_text(data + "/text/" + name));
    CHECK(ids.size() == want.at("count").get<size_t>());
    CHECK(token_hash(ids) == want.at("fnv").get<std::string>());
  }
}

}  // namespace
}  // namespace bcq
