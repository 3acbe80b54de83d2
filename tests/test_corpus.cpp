// Token windows of text files: perplexity windows, calibration crops, and their errors.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "data/corpus.h"
#include "engine/check.h"
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
  const Ids ids = read_ids(dir.file("wiki.test.tokens"), tokenizer);
  CHECK(std::count(ids.begin(), ids.end(), 2) == 1);
  CHECK(tokenizer.decode(ids) == "</s>" + text);
}

TEST_CASE("corpus: files that cannot be a text") {
  const test::Folder dir;
  const Tokenizer tokenizer = Tokenizer::load("tests/fixtures/tokenizer/plain");
  const auto refusal = [&](const char* name) {
    return test::message_of<InputError>([&] { read_ids(dir.file(name), tokenizer); });
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
  CHECK(w.all().ids == w.ids);
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
  CHECK(w.all().windows == 5);
}

TEST_CASE("corpus: a crop needs one token more than its length") {
  CHECK(crop_starts(9, 8, 3, 0, "text") == std::vector<int64_t>{0, 0, 0});
  const std::string message = test::message_of<InputError>([] { crop_starts(8, 8, 1, 0, "b.txt"); });
  CHECK(test::contains(message, "b.txt: the text has 8 tokens"));
  CHECK(test::contains(message, "at least 9"));
  CHECK_THROWS_AS(crop_starts(100, 8, 0, 0, "text"), UsageError);
}

}  // namespace
}  // namespace bcq
