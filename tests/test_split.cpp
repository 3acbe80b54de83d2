// Splitting text by the patterns of tokenizers.
#include <doctest/doctest.h>

#include <chrono>

#include "data/text/corpus.h"
#include "tests/tokenizer_files.h"

namespace bcq {
namespace {

Strings pieces(const std::string& pattern, const std::string& text) {
  Strings out;
  Splitter(pattern, "test").split(text, [&](std::string_view p) { out.emplace_back(p); });
  return out;
}

TEST_CASE("split: GPT-2's pattern") {
  CHECK(pieces(kGpt2Pattern, "It's 3.14, we're (really) DON'T!") ==
        Strings{"It", "'s", " 3", ".", "14", ",", " we", "'re", " (", "really", ")", " DON", "'", "T", "!"});
  CHECK(pieces(kGpt2Pattern, "a\n\n\nb  c") == Strings{"a", "\n\n", "\n", "b", " ", " c"});
  CHECK(pieces(kGpt2Pattern, "no <unk> N $ 1,000 million") ==
        Strings{"no", " <", "unk", ">", " N", " $", " 1", ",", "000", " million"});
  CHECK(pieces(kGpt2Pattern, "\n\n = = Career = = \n") == Strings{"\n\n", " =", " =", " Career", " =", " =", " \n"});
  CHECK(pieces(kGpt2Pattern, "xéy 你好 2023年") == Strings{"xéy", " 你好", " 2023", "年"});
  CHECK(pieces(kGpt2Pattern, "").empty());
}

TEST_CASE("split: BLOOM's pattern, nested set and all") {
  CHECK(pieces(kBloom, "It's 3.14, we're (really) DON'T!") ==
        Strings{"It's", " 3", ".", "14", ",", " we're", " (", "really", ")", " DON'T", "!"});
  CHECK(pieces(kBloom, "a\n\n\nb  c") == Strings{"a", "\n\n\n", "b", " ", " c"});
  CHECK(pieces(kBloom, "no <unk> N $ 1,000 million") ==
        Strings{"no", " <unk>", " N", " $", " 1", ",", "000", " million"});
  CHECK(pieces(kBloom, "xéy 你好 2023年") == Strings{"xéy", " 你好", " 2023年"});
}

TEST_CASE("split: white space, letters and numbers are those of Unicode 16") {
  const Strings mongolian = pieces(kGpt2Pattern, "a\u180eb");  // no white space since Unicode 6.3
  CHECK(mongolian == Strings{"a", "\u180e", "b"});
  CHECK(pieces("\\s+", "a\u0085\u00a0\u2003b") == Strings{"a", "\u0085\u00a0\u2003", "b"});
  CHECK(pieces("\\p{L}+", "a\U000323af\U00016100") == Strings{"a\U000323af\U00016100"});
  CHECK(pieces("[\\p{N}]+", "1\U00010d41") == Strings{"1\U00010d41"});
  CHECK(pieces("\\P{L}+", "a\U000323af1") == Strings{"a\U000323af", "1"});
}

TEST_CASE("split: constructs that are not translated are refused by name") {
  for (const char* bad : {"(?s:'s)", "(?<=a)b", "\\d+",     "\\w",      "\\h", "\\p{Lu}+", "\\p{Han}", "[[:alpha:]]",
                          "[a&&b]",  "[^[^a]]", "[a-[bc]]", "[\\P{L}]", "^a",  "a$",       "a.b",      "a{,3}",
                          "a{2}+",   "[a",      "[]a]",     "(*F)",     "(a",  "a\\"}) {
    CAPTURE(bad);
    const std::string message = test::message_of<InputError>([&] { Splitter(bad, "some/file"); });
    CHECK(test::contains(message, "some/file"));
    CHECK(test::contains(message, bad));
  }
  CHECK(test::contains(test::message_of<InputError>([&] { Splitter("a*", "f"); }), "empty"));
  CHECK(pieces("[a[bc]]{2,3}|(?:x|y)+(?!z)", "abcxyz") == Strings{"abc", "x", "yz"});
  CHECK(pieces("(?i:'s|'ll)|b", "'S'lLb'\u017fB") == Strings{"'S", "'lL", "b", "'\u017f", "B"});
}

TEST_CASE("split: patterns that take longer than any time are refused at once") {
  const auto refused = [](const std::string& pattern, const std::string& text) {
    json t = plain();
    t["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    const Tokenizer tokenizer = load(t);
    const auto begin = std::chrono::steady_clock::now();
    const std::string message = test::message_of<InputError>([&] { tokenizer.encode(text); });
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));  // without a limit it would take hours
    return test::contains(message, pattern) && test::contains(message, "too many ways");
  };
  const std::string as(60000, 'a'), spaces(3000000, ' ');
  CHECK(refused("(?:a|a){1,21}b|[^b]", as));  // one match, exponential
  CHECK(refused("(?:a|a){1,13}b|[^b]", as));  // each below the limit of a match
  CHECK(refused("(?:a+)+b|[^b]", as));
  CHECK(refused("a*a*a*b|[^b]", as));
  CHECK(refused("a(?=(?:a|b)*c)|[^c]", as));
  CHECK(refused("\\s+x", spaces));  // no match: the text is scanned from each place on
  CHECK(refused("\\s+x|[^x]", spaces));
  CHECK_FALSE(refused("(?:a|b)+|c", as));  // long, but only once
  CHECK_FALSE(refused(kGpt2Pattern, as + spaces + as));
}

TEST_CASE("split: the budget is that of all texts, and of ordinary ones it is enough") {
  json t = plain();
  t["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "(?:a|a){1,13}b|[^b]"}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const Tokenizer slow = load(t);
  CHECK(slow.encode(std::string(20, 'a')).size() > 0);
  CHECK_THROWS_AS(
      [&] {
        for (int i = 0; i < 100000; ++i) slow.encode(std::string(50, 'a'));
      }(),
      InputError);
  // 32 steps one inside the other; one more is refused, and so are thousands.
  json steps = json::array();
  for (int i = 0; i < 32; ++i) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  const json last{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const auto with = [&](json list) {
    list.push_back(last);
    t["pre_tokenizer"]["pretokenizers"] = list;
    return t;
  };
  CHECK(load(with(steps)).encode("1234").size() == 4);
  steps.push_back(steps[0]);
  CHECK(test::contains(refusal(with(steps)), "more than 32 steps"));
  for (int i = 0; i < 30000; ++i) steps.push_back(steps[0]);
  CHECK(test::contains(refusal(with(steps)), "more than 32 steps"));
}

}  // namespace
}  // namespace bcq
