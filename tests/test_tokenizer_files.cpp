// Tokenizers of tokenizer.json, and of vocab.json and merges.txt: what is read, and what has to be refused.
#include <doctest/doctest.h>

#include "tests/tokenizer_files.h"

namespace bcq {
namespace {

TEST_CASE("tokenizer.json: what would change an id and is not known is refused by name") {
  const auto with = [](const char* pointer, const json& value) {
    json tree = plain();
    tree[json::json_pointer(pointer)] = value;
    return tree;
  };
  CHECK(refusal(plain()).empty());
  const std::pair<json, const char*> cases[] = {
      {with("/version", "2.0"), "version"},
      {with("/normalizer", {{"type", "NFKC"}}), "NFKC"},
      {with("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Lowercase"}}}}}),
       "Lowercase"},
      {with("/normalizer", {{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}}), "Strip"},
      {with("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "b"}}), "Replace"},
      {with("/normalizer", {{"type", "BertNormalizer"}, {"lowercase", true}}), "BertNormalizer"},
      {with("/decoder", {{"type", "WordPiece"}}), "WordPiece"},
      {with("/novelty", 1), "novelty"},
      {with("/model/type", "Unigram"), "Unigram"},
      {with("/model/dropout", 0.1), "dropout"},
      {with("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix"},
      {with("/model/continuing_subword_prefix", "##"), "continuing_subword_prefix"},
      {with("/model/unk_token", "<nope>"), "<nope>"},
      {with("/model/surprise", true), "surprise"},
      {with("/model/merges/0", "one"), "merge 0"},
      {with("/model/merges/0", json::array({"a", "b", "c"})), "merge 0"},
      {with("/model/merges/0", json::array({"zz", "qq"})), "merge 0"},
      {with("/model/merges", 7), "merges"},
      {with("/model/vocab", json::array()), "vocabulary"},
      {with("/model/vocab/a", -1), "\"a\""},
      {with("/model/vocab/a", 1.5), "\"a\""},
      {with("/model/vocab/a", 1 << 30), "\"a\""},
      {with("/pre_tokenizer", nullptr), "pre_tokenizer"},
      {with("/pre_tokenizer/type", "Metaspace"), "Metaspace"},
      {with("/pre_tokenizer/extra", 1), "extra"},
      {with("/post_processor", {{"type", "RobertaProcessing"}}), "cls"},
      {with("/post_processor", {{"type", "Metaspace"}}), "Metaspace"},
      {with("/added_tokens", {{{"id", 9}, {"content", "a"}}}), "added token \"a\""},
      {with("/added_tokens", {{{"id", 9}, {"content", "new"}}}), "9"},
      {with("/added_tokens", {{{"id", 600}, {"content", ""}}}), "empty"},
      {with("/added_tokens", {{{"id", 600}, {"content", "n"}, {"magic", true}}}), "magic"},
      {with("/added_tokens", {{{"id", 600}, {"content", "new"}}, {{"id", 601}, {"content", "new"}}}), "contradict"},
  };
  for (const auto& [tree, text] : cases) {
    const char* part = text;  // CAPTURE cannot take a structured binding in clang
    CAPTURE(part);
    const std::string message = refusal(tree);
    CHECK(test::contains(message, "tokenizer.json"));
    CHECK(test::contains(message, part));
  }
  const test::Folder empty;
  CHECK_THROWS_AS(Tokenizer::load(empty.path), InputError);
  test::write_text(empty.file("tokenizer.json"), "{\"version\": ");
  CHECK_THROWS_AS(Tokenizer::load(empty.path), InputError);
}

TEST_CASE("tokenizer.json: pre-tokenizer sequences") {
  const json byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const auto split = [](const json& pattern, const char* behavior) {
    return json{{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", false}};
  };
  const auto tree = [&](const json& steps) {
    json t = plain();
    t["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    return t;
  };
  const json good = split({{"Regex", kBloom}}, "Isolated");
  CHECK(refusal(tree({good, byte_level})).empty());
  CHECK(refusal(tree({good, split({{"Regex", "\\p{N}"}}, "Isolated"), byte_level})).empty());
  CHECK(test::contains(refusal(tree(json::array({good}))), "ByteLevel"));
  CHECK(test::contains(refusal(tree({byte_level, good})), "ByteLevel"));
  CHECK(test::contains(refusal(tree({split({{"String", " "}}, "Isolated"), byte_level})), "String"));
  CHECK(test::contains(refusal(tree({split({{"Regex", " "}}, "Removed"), byte_level})), "Removed"));
  CHECK(refusal(tree(json::array())).size() > 0);
  // One digit a piece: "12" never merges across the cut.
  const Tokenizer digits = load(tree({split({{"Regex", "\\p{N}"}}, "Isolated"), byte_level}));
  CHECK(digits.encode("12").size() == 2);
}

TEST_CASE("tokenizer.json: templates, and settings beside it that contradict") {
  json t = plain();
  const json text{{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
      mark{{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}};
  t["post_processor"] = {{"type", "TemplateProcessing"},
                         {"single", {mark, text}},
                         {"special_tokens", {{"</s>", {{"id", "</s>"}, {"ids", {2}}}}}}};
  CHECK(refusal(t, {{"add_bos_token", true}}).empty());
  CHECK(load(t).bos() == 2);
  CHECK(test::contains(refusal(plain(), {{"add_bos_token", true}}), "add_bos_token"));
  CHECK(test::contains(refusal(plain(), {{"add_prefix_space", true}}), "add_prefix_space"));
  json twice = t;
  twice["post_processor"]["single"] = {text, text};
  CHECK(test::contains(refusal(twice), "2 times"));
  json missing = t;
  missing["post_processor"]["special_tokens"] = json::object();
  CHECK(test::contains(refusal(missing), "</s>"));
  json unknown = t;
  unknown["post_processor"]["special_tokens"]["</s>"]["ids"] = {9999};
  CHECK(test::contains(refusal(unknown), "9999"));
}

// Expected ids from here on are those of the tokenizers library 0.23 and transformers 5.24.
TEST_CASE("tokenizer.json: digits apart, and a space put before each piece") {
  const auto ids = [](const json& steps, const std::string& text) {
    json t = plain();
    t["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    return load(t).encode(text);
  };
  const auto byte_level = [](bool prefix, bool regex) {
    return json{{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"use_regex", regex}};
  };
  const auto digits = [](bool each) { return json{{"type", "Digits"}, {"individual_digits", each}}; };
  const std::string text = "in 1234 x²3 ½";
  const Ids apart{262, 224, 20, 21, 22, 23, 224, 91, 130, 114, 22, 224, 130, 125};
  CHECK(ids({digits(true), byte_level(false, false)}, text) == apart);
  CHECK(ids({digits(false), byte_level(false, false)}, text) == apart);
  CHECK(ids({digits(true), byte_level(false, true)}, text) == apart);
  CHECK(ids(json::array({byte_level(false, false)}), text) ==
        Ids{262, 311, 21, 22, 23, 224, 91, 130, 114, 22, 224, 130, 125});
  CHECK(ids({{{"type", "Sequence"}, {"pretokenizers", {digits(true)}}}, byte_level(false, false)}, text) == apart);
  CHECK(ids({digits(false), byte_level(true, true)}, "12the 3") == Ids{311, 21, 340, 224, 224, 22});
  const json split{{"type", "Split"}, {"pattern", {{"Regex", "[a-m]+"}}}, {"behavior", "Isolated"}, {"invert", false}};
  CHECK(ids({split, byte_level(true, false)}, "then in") == Ids{267, 303, 72, 261, 224, 224, 76, 261});
}

TEST_CASE("tokenizer.json: normalizers that are known, and those that change nothing") {
  const std::string text = "e\u0301 n[\u00e9][e\u0301]<\u00e9><e\u0301>\u0301";
  json t = plain();
  t["normalizer"] = {{"type", "NFC"}};
  t["added_tokens"] = {{{"id", 500}, {"content", "[e\u0301]"}, {"normalized", true}},
                       {{"id", 501}, {"content", "<e\u0301>"}, {"normalized", false}}};
  const Ids composed{131, 106, 261, 500, 500, 31, 131, 106, 33, 501, 140, 227};
  CHECK(load(t).encode(text) == composed);
  CHECK(load(t).decode({500, 501}) == "[e\u0301]<e\u0301>");
  t["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "NFC"}}}}};
  CHECK(load(t).encode(text) == composed);
  const Ids as_it_is = load(plain()).encode(text);
  for (const json& nothing : {json{{"type", "Sequence"}, {"normalizers", json::array()}},
                              json{{"type", "Strip"}, {"strip_left", false}, {"strip_right", false}},
                              json{{"type", "Replace"}, {"pattern", {{"String", "e"}}}, {"content", "e"}},
                              json{{"type", "BertNormalizer"},
                                   {"clean_text", false},
                                   {"handle_chinese_chars", false},
                                   {"strip_accents", nullptr},
                                   {"lowercase", false}}}) {
    t = plain();
    t["normalizer"] = nothing;
    CHECK(load(t).encode(text) == as_it_is);
  }
}

TEST_CASE("tokenizer.json: bytes without a token") {
  const auto ids = [](bool fallback, bool fuse, bool whole, const std::string& text) {
    json vocab{{"?", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"<0xC4>", 4}, {"<0x63>", 5}};
    if (whole) vocab["<0xA0>"] = 6;
    json t = plain();
    t["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
    t["model"] = {
        {"vocab", vocab}, {"merges", {"a b"}}, {"unk_token", "?"}, {"byte_fallback", fallback}, {"fuse_unk", fuse}};
    return load(t).encode(text);
  };
  CHECK(ids(false, false, true, "ab c a") == Ids{3, 0, 0, 0, 1});
  CHECK(ids(false, true, true, "ab c a") == Ids{3, 0, 1});
  CHECK(ids(true, false, true, "ab c a") == Ids{3, 4, 6, 5, 4, 6, 1});
  CHECK(ids(true, false, false, "ab c a") == Ids{3, 5, 0, 0, 1});
  CHECK(ids(true, true, true, "xcab") == Ids{5, 0, 3});
  CHECK(ids(true, true, true, "xyzab") == Ids{0, 3});
  CHECK(ids(true, true, true, "x  y") == Ids{4, 6, 4, 6, 0});
  CHECK(ids(true, false, false, "x  y") == Ids{0, 0, 0, 0});
  json t = plain();  // with a token for every byte they change nothing
  t["model"]["byte_fallback"] = t["model"]["fuse_unk"] = true;
  t["model"].erase("type");
  const std::string odd = test::read_text(kDir + "odd.txt");
  CHECK(load(t).encode(odd) == load(plain()).encode(odd));
}

TEST_CASE("tokenizer.json: the post-processor of RoBERTa") {
  json t = plain();
  t["post_processor"] = {{"type", "RobertaProcessing"}, {"cls", {"<s>", 0}}, {"sep", {"</s>", 2}}};
  CHECK(load(t).encode("the") == Ids{0, 283, 72, 2});
}

TEST_CASE("two files: the beginning-of-text token follows the configuration") {
  const Legacy dir;
  json config = read_json(dir.file("tokenizer_config.json"));
  config.erase("add_bos_token");
  dir.set("tokenizer_config.json", config);
  CHECK(Tokenizer::load(dir.path).bos() == -1);
  dir.set("config.json", {{"model_type", "opt"}});
  CHECK(Tokenizer::load(dir.path).bos() == 2);
  config["add_bos_token"] = false;
  dir.set("tokenizer_config.json", config);
  CHECK(Tokenizer::load(dir.path).bos() == -1);
}

TEST_CASE("two files: specials are tokens in the text, vocabulary entries alone are not") {
  const Tokenizer tokenizer = Tokenizer::load(kDir + "legacy");
  CHECK(tokenizer.encode("</s><pad>", false) == Ids{2, 1});
  CHECK(tokenizer.encode("<unk>", false).size() > 1);
}

TEST_CASE("two files: added tokens, by their list, by the older file, by role") {
  const std::string text = "the [PAD] rain<custom>in [PAD]";
  const json off{{"lstrip", false}, {"rstrip", false}, {"normalized", false}, {"single_word", false}};
  const auto token = [&](const char* content, const json& flags = json::object()) {
    json t = off;
    t["content"] = content;
    t.update(flags);
    return t;
  };
  const auto ids = [&](const json& config, const json& map, const json& older) {
    const Legacy dir;
    for (const auto& [name, patch] : {std::pair{"tokenizer_config.json", config}, {"special_tokens_map.json", map}}) {
      json tree = read_json(dir.file(name));
      tree.merge_patch(patch);
      dir.set(name, tree);
    }
    if (!older.is_null()) dir.set("added_tokens.json", older);
    return Tokenizer::load(dir.path).encode(text);
  };
  const json none = json::object();
  const auto list = [](const json& tokens) { return json{{"added_tokens_decoder", tokens}}; };
  const Ids both{2, 283, 72, 224, 500, 272, 68, 262, 501, 262, 224, 500};
  CHECK(ids(list({{"500", token("[PAD]")}, {"501", token("<custom>", {{"normalized", true}})}}), none, nullptr) ==
        both);
  CHECK(ids(none, none, {{"[PAD]", 500}, {"<custom>", 501}}) == both);
  const Ids pad{2, 283, 72, 500, 318, 262, 31, 70, 88, 86, 87, 271, 33, 262, 500};
  CHECK(ids(list({{"500", token("[PAD]", {{"lstrip", true}, {"rstrip", true}})}}), none, nullptr) == pad);
  const Ids left{2, 283, 72, 500, 272, 68, 262, 31, 70, 88, 86, 87, 271, 33, 262, 500};
  const json role{{"pad_token", "[PAD]"}};
  json listed = list({{"500", token("[PAD]", {{"lstrip", true}})}});
  CHECK(ids(listed, role, nullptr) == left);  // named by its text, it keeps its flags
  listed.update(role);
  CHECK(ids(listed, role, nullptr) == left);
  // Beside the list, the older file is not read.
  const Ids listed_only{2, 283, 72, 224, 500, 272, 68, 262, 31, 70, 88, 86, 87, 271, 33, 262, 224, 500};
  CHECK(ids(list({{"500", token("[PAD]")}}), none, {{"[PAD]", 500}, {"<custom>", 501}}) == listed_only);
  const Ids custom{2, 283, 72, 224, 62, 51, 36, 39, 64, 272, 68, 262, 500, 262, 224, 62, 51, 36, 39, 64};
  json extra = list({{"500", token("<custom>")}});
  extra["extra_special_tokens"] = {"<custom>"};
  CHECK(ids(extra, none, nullptr) == custom);
  extra["extra_special_tokens"] = {{"mine", "<custom>"}};
  CHECK(ids(extra, none, nullptr) == custom);
  json begins = list({{"500", token("[BOS]")}});
  begins["bos_token"] = "[BOS]";
  CHECK(ids(begins, {{"bos_token", "[BOS]"}}, nullptr).front() == 500);
}

TEST_CASE("two files: added tokens that contradict, or have no id") {
  const auto change = [](const json& config, const json& map, const json& older = nullptr) {
    const Legacy dir;
    json tree = read_json(dir.file("tokenizer_config.json")), roles = read_json(dir.file("special_tokens_map.json"));
    tree.merge_patch(config);
    roles.merge_patch(map);
    dir.set("tokenizer_config.json", tree);
    dir.set("special_tokens_map.json", roles);
    if (!older.is_null()) dir.set("added_tokens.json", older);
    return dir.refusal();
  };
  const json none = json::object();
  const auto key = [&](const std::string& id) {
    return change({{"added_tokens_decoder", {{id, {{"content", "[PAD]"}}}}}}, none);
  };
  CHECK(key("500").empty());
  for (const char* bad : {"", "x", "-1", "1.5", "5 ", "[500]", "99999999999", "\"5\""}) {
    CAPTURE(bad);
    CHECK(test::contains(key(bad), "token"));
  }
  const auto begin = std::chrono::steady_clock::now();
  CHECK(test::contains(key(std::string(100000, '[')), "is no token id"));
  CHECK(test::contains(key("{\"a\":" + std::string(100000, '[')), "is no token id"));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
  CHECK(test::contains(key("499"), "[PAD]"));  // taken
  const json list{{"added_tokens_decoder", {{"500", {{"content", "[PAD]"}}}}}};
  CHECK(test::contains(change(list, {{"pad_token", {{"content", "[PAD]"}, {"lstrip", true}}}}), "contradict"));
  CHECK(test::contains(change(none, {{"pad_token", "[PAD]"}}), "special token \"[PAD]\" is in none of"));
  CHECK(test::contains(change({{"added_tokens_decoder", {"[PAD]"}}}, none), "no object"));
  CHECK(test::contains(change(none, none, {{"[PAD]", "x"}}), "added_tokens.json"));
  CHECK(test::contains(change(none, none, {"[PAD]"}), "added_tokens.json"));
  CHECK(test::contains(change(none, none, {{"a", 500}}), "in the vocabulary it has"));
}

TEST_CASE("two files: what cannot be read as meant is refused") {
  const auto change = [](const std::string& name, const json& patch) {
    const Legacy dir;
    json tree = read_json(dir.file(name));
    tree.merge_patch(patch);
    dir.set(name, tree);
    return dir.refusal();
  };
  CHECK(change("tokenizer_config.json", json::object()).empty());
  CHECK(test::contains(change("tokenizer_config.json", {{"tokenizer_class", "RobertaTokenizer"}}), "RobertaTokenizer"));
  CHECK(test::contains(change("special_tokens_map.json", {{"pad_token", "<nope>"}}), "<nope>"));
  CHECK(test::contains(change("vocab.json", {{"a", "x"}}), "\"a\""));
  const Legacy dir;
  test::write_text(dir.file("merges.txt"), "#version: 0.2\nonly-one\n");
  CHECK(test::contains(dir.refusal(), "merges.txt: merge 2"));
  test::write_text(dir.file("merges.txt"), "#version: 0.2\nt h\n\na n\n");
  CHECK(test::contains(dir.refusal(), "merge 3"));
  fs::remove(dir.file("merges.txt"));
  CHECK(test::contains(dir.refusal(), "no tokenizer"));
}

TEST_CASE("two files: merges.txt without a version line or a last newline, with carriage returns") {
  const Legacy dir;
  const std::string text = test::read_text(dir.file("merges.txt")), odd = test::read_text(kDir + "odd.txt");
  const Ids want = Tokenizer::load(dir.path).encode(odd);
  const std::string bare = text.substr(text.find('\n') + 1, text.size() - text.find('\n') - 2);
  test::write_text(dir.file("merges.txt"), bare);
  CHECK(Tokenizer::load(dir.path).encode(odd) == want);
  std::string dos;
  for (const char c : text) dos += c == '\n' ? std::string("\r\n") : std::string(1, c);
  test::write_text(dir.file("merges.txt"), dos);
  CHECK(Tokenizer::load(dir.path).encode(odd) == want);
}

}  // namespace
}  // namespace bcq
