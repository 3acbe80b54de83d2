// Perplexity in its definitions, their standard errors, and differences on the same windows.
#include <doctest/doctest.h>

#include <cmath>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "eval/language.h"
#include "tests/support.h"

namespace bcq {
namespace {

const Progress kQuiet = [](const std::string&, double, double) {};

// -log softmax of the logits [1, T, V] at every predicted id, the plain way in double.
std::vector<double> plain_nll(const Model& model, const Batch& batch) {
  const Tensor logits = model.forward({Precision::Float}, batch);
  const int64_t V = logits.dim(2);
  std::vector<double> nll;
  for (int64_t t = 0; t + 1 < logits.dim(1); ++t) {
    const float* z = logits.data + t * V;
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(z[v]));
    nll.push_back(std::log(sum) - z[batch.ids[static_cast<size_t>(t) + 1]]);
  }
  return nll;
}

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum / static_cast<double>(v.size());
}

TEST_CASE("language: a perplexity's error is the spread of its units") {
  const Perplexity p = perplexity("gptq", {1, 2, 4}, {1, 1, 1});
  CHECK(p.perplexity == doctest::Approx(std::exp(7.0 / 3)));
  CHECK(p.se == doctest::Approx(std::exp(7.0 / 3) * std::sqrt((16.0 / 9 + 1.0 / 9 + 25.0 / 9) / 2 / 3)));
  // Units of unequal weight: halves of what is proportional to the weight change nothing.
  const Perplexity exact = perplexity("byte", {2, 6, 4}, {1, 3, 2});
  CHECK(exact.perplexity == doctest::Approx(std::exp(2.0)));
  CHECK(exact.se == doctest::Approx(0));
  CHECK(std::isnan(perplexity("gptq", {1}, {1}).se));
  CHECK_THROWS_AS(perplexity("gptq", {}, {}), Error);

  const Perplexity q = perplexity("gptq", {1.5, 2.5, 4.5}, {1, 1, 1});
  const Estimate r = paired_ratio(q, p);
  CHECK(r.value == doctest::Approx(100 * (std::exp(0.5) - 1)));
  CHECK(r.se == doctest::Approx(0));
  CHECK_THROWS_AS(paired_ratio(q, exact), Error);
}

TEST_CASE("language: the embedded models' token ids and losses are those of transformers") {
  const json record = read_json("tests/fixtures/mini.json");
  for (const auto& entry : record.items()) {
    const std::string folder = "data/mini/" + entry.key();
    const json& want = entry.value();
    CAPTURE(folder);
    const auto model = load_model(folder);
    Recipe recipe = recipe_of(Family::Language);
    recipe.seqlen = kMiniSeqlen;
    const std::vector<double> losses = want["losses"];
    LanguageTask task(*model, {{Definition::Plain, "data/mini/text/test.txt"}}, {}, {"gptq"},
                      static_cast<int64_t>(losses.size()));
    const TokenFacts& facts = task.text(recipe, 0).facts;
    CHECK(facts.tokens == want["tokens"]);
    CHECK(facts.hash == want["fnv"]);
    json measured;
    task.measure(recipe, 0, measured, kQuiet);
    for (size_t w = 0; w < losses.size(); ++w)
      CHECK(std::abs(task.results[0][0].nll[w] - losses[w]) < 1e-6 * losses[w]);
  }
}

TEST_CASE("language: every definition against the logits, from the same windows") {
  const auto model = load_model("data/mini/opt");
  const Tokenizer tokenizer = Tokenizer::load("data/mini/opt");
  Recipe recipe = recipe_of(Family::Language);
  recipe.seqlen = 32;
  LanguageTask task(*model, {{Definition::Plain, "data/mini/text/test.txt"}}, {}, {"gptq", "llamacpp", "word", "byte"},
                    3);
  const EvaluationText& text = task.text(recipe, 0);
  CHECK(text.facts.bos == 2);
  REQUIRE(text.windows.count == 3);
  json record;
  const Measured measured = task.measure(recipe, 0, record, kQuiet);
  const std::vector<Perplexity>& got = task.results[0];
  CHECK(measured.figure == got[0].perplexity);
  CHECK(record["perplexity"] == got[0].perplexity);
  REQUIRE(got.size() == 4);

  std::vector<double> means, sums, second_half;
  double words = 0, bytes = 0;
  for (int64_t w = 0; w < 3; ++w) {
    Batch batch = text.windows.batch(w, w + 1);
    const std::vector<double> nll = plain_nll(*model, batch);
    means.push_back(mean(nll));
    sums.push_back(mean(nll) * 31);
    bytes += static_cast<double>(tokenizer.decode({batch.ids.begin() + 1, batch.ids.end()}).size());
    words += text.counts.words[static_cast<size_t>(w)];
    batch.ids[0] = 2;
    const std::vector<double> swapped = plain_nll(*model, batch);
    second_half.insert(second_half.end(), swapped.begin() + 16, swapped.end());
  }
  CHECK(got[0].perplexity == doctest::Approx(std::exp(mean(means))).epsilon(1e-5));
  CHECK(got[1].perplexity == doctest::Approx(std::exp(mean(second_half))).epsilon(1e-5));
  CHECK(got[1].nll.size() == 3 * 15);
  CHECK(got[2].perplexity == doctest::Approx(std::exp(mean(sums) * 3 / words)).epsilon(1e-5));
  CHECK(got[3].perplexity == doctest::Approx(std::exp(mean(sums) * 3 / bytes)).epsilon(1e-5));
  // llama-perplexity's error: sqrt((E[x²] - E[x]²) / (n - 1)) times the perplexity.
  double squares = 0;
  for (const double x : second_half) squares += x * x / 45;
  const double m = mean(second_half);
  CHECK(got[1].se == doctest::Approx(std::exp(m) * std::sqrt((squares - m * m) / 44)).epsilon(1e-4));
}

}  // namespace
}  // namespace bcq
