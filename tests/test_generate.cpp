// Generation: a cache of keys and values changes no logit by more than rounding, what is generated is what transformers
// generates, draws are distributed as they should be, and characters come out whole.
#include <cmath>

#include "data/text/tokenizer.h"
#include "engine/nn/attention.h"
#include "eval/generate.h"
#include "quant/weight_methods.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

Batch part(const Batch& batch, int64_t begin, int64_t end) {  // tokens [begin, end) of every window
  Batch p;
  p.windows = batch.windows;
  p.length = end - begin;
  for (int64_t w = 0; w < batch.windows; ++w)
    for (int64_t t = begin; t < end; ++t) p.ids.push_back(batch.ids[static_cast<size_t>(w * batch.length + t)]);
  return p;
}

// The largest difference over the largest logit between windows as a whole and the same cut at `cuts`.
double cached_error(const Model& model, Precision precision, const Batch& batch, const std::vector<int64_t>& cuts) {
  const Tensor whole = model.forward({precision}, batch);
  KvCache cache(batch.length);
  Context ctx{precision};
  ctx.cache = &cache;
  const int64_t V = whole.dim(2);
  double worst = 0;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const Tensor last = model.next_logits(ctx, part(batch, cuts[i], cuts[i + 1]));
    CHECK(cache.length == cuts[i + 1]);
    for (int64_t w = 0; w < batch.windows; ++w)
      for (int64_t v = 0; v < V; ++v)
        worst = std::max(worst, std::abs(static_cast<double>(last[w * V + v]) -
                                         whole[(w * batch.length + cuts[i + 1] - 1) * V + v]));
  }
  CHECK_THROWS_AS(model.next_logits(ctx, part(batch, 0, 1)), Error);  // no room
  return worst / max_abs(doubles(whole));
}

const Progress kSilent = [](const std::string&, double, double) {};

}  // namespace

TEST_CASE("generate: with a cache, token by token and in pieces, logits are those of the whole window") {
  const std::vector<int64_t> single = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, pieces = {0, 3, 4, 9, 11};
  for (const auto& entry : kLanguages) {
    const std::string& fixture = entry.first;
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    const Batch batch = ids_of(fixture);
    for (const auto& cuts : {single, pieces}) CHECK(cached_error(*model, Precision::Float, batch, cuts) < kTight);
    // Packed, with compensations per position: those of the tokens' own positions.
    GptqOptions grid;
    grid.bits = 3;
    quantize_rtn(*model, grid);
    for (Layer* layer : model->all_layers()) layer->added = random({11, layer->weight.dim(0)}, 1, 0.1);
    const Tensor of_block = random({11, model->layers(0).back()->weight.dim(0)}, 2, 0.1);
    for (int i = 0; i < model->depth(); ++i) model->part(i).output.add(of_block);
    for (const auto& cuts : {single, pieces}) CHECK(cached_error(*model, Precision::Fake, batch, cuts) < kTight);
    CHECK(longest_text(*model) == 11);
  }
}

TEST_CASE("generate: a cache takes memory as it is filled") {
  const int64_t T = 1500, heads = 2, D = 8;
  const Tensor q = random({2, T, D}, 1), k = random({2, T, D}, 2), v = random({2, T, D}, 3);
  const std::vector<float> slopes{0.01f, 0.02f};
  const Tensor whole = causal_attention(q, k, v, heads, 0.5f, slopes);
  KvCache cache(INT64_MAX), exact(T);
  const auto rows = [&](const Tensor& x, int64_t begin, int64_t end) {
    Tensor out({2, end - begin, D});
    for (int64_t b = 0; b < 2; ++b)
      std::copy(x.data + (b * T + begin) * D, x.data + (b * T + end) * D, out.data + b * (end - begin) * D);
    return out;
  };
  const std::vector<int64_t> cuts{0, 3, 300, 323, 324, 900, 901, 1500};
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int64_t begin = cuts[i], end = cuts[i + 1];
    const auto step = [&](KvCache& c) {
      const Tensor y =
          cached_attention(c, 1, rows(q, begin, end), rows(k, begin, end), rows(v, begin, end), heads, 0.5f, slopes);
      c.length = end;
      return y;
    };
    const Tensor y = step(cache);
    CHECK(same_bits(y, step(exact)));
    CHECK(relative_error(y, rows(whole, begin, end)) < 1e-5);
    CHECK(cache.blocks[1].v.dim(2) <= 2 * end + 5 * KvCache::kKeys);
    CHECK(exact.blocks[1].v.dim(2) <= T + KvCache::kKeys);
  }
  CHECK_THROWS_AS(cached_attention(exact, 1, rows(q, 0, 1), rows(k, 0, 1), rows(v, 0, 1), heads, 0.5f, slopes), Error);
  // More tokens than can be counted may be asked of a model without positions.
  const auto model = load_model("data/mini/bloom");
  int left = 20;
  const auto stop = [&](int32_t) { require(--left > 0, "enough"); };
  for (const int64_t most : {INT64_MAX, INT64_MAX / 2, int64_t{1} << 40}) {
    left = 20;
    CHECK(message_of<Error>([&] { generate(*model, {5, 6, 7}, most, {0.8, 0, 1, 1}, stop); }) == "enough");
  }
}

TEST_CASE("generate: a cache of more tokens than are multiplied at once") {
  const auto model = load_model(kBloom);
  Batch batch;
  batch.windows = 2;
  batch.length = 2 * KvCache::kKeys + 13;
  std::mt19937 bits(7);
  for (int64_t i = 0; i < batch.windows * batch.length; ++i) batch.ids.push_back(static_cast<int32_t>(bits() % 53));
  const int64_t k = KvCache::kKeys;
  CHECK(cached_error(*model, Precision::Float, batch, {0, k - 1, k, k + 1, k + 18, 2 * k - 1, 2 * k + 1, 2 * k + 13}) <
        kTight);
}

TEST_CASE("generate: greedily what transformers' generate gives") {
  for (const json& want : read_json("tests/fixtures/generate.json")) {
    const auto name = want["model"].get<std::string>();
    CAPTURE(name);
    const auto model = load_model("tests/fixtures/" + name);
    std::vector<int32_t> ids = want["ids"], shown;
    const bool ends = ids.back() == 2;
    const Generated got = generate(*model, want["prompt"], 12, {}, [&](int32_t id) { shown.push_back(id); });
    if (ends) ids.pop_back();
    CHECK(got.ids == ids);
    CHECK(shown == ids);
    CHECK(std::string(got.finish) == (ends ? "eos" : "length"));
  }
  const auto opt = load_model(kOpt);  // 24 positions
  CHECK(std::string(generate(*opt, std::vector<int32_t>(20, 7), 99, {}, [](int32_t) {}).finish) == "positions");
  CHECK(generate(*opt, std::vector<int32_t>(20, 7), 99, {}, [](int32_t) {}).ids.size() == 5);
  CHECK(contains(message_of<UsageError>([&] { generate(*opt, std::vector<int32_t>(24, 7), 1, {}, [](int32_t) {}); }),
                 "24 tokens"));
  CHECK_THROWS_AS(generate(*opt, {}, 1, {}, [](int32_t) {}), UsageError);
}

TEST_CASE("generate: draws follow the softmax over the temperature, top-k and top-p cut it") {
  const Tensor logits({5}, {0.f, 2.f, 1.f, 2.f, -1.f});
  PythonRandom random(1);
  CHECK(pick(logits, {}, random) == 1);  // the first of the largest
  const auto shares = [&](const Sampling& s) {
    std::vector<double> share(5);
    for (int i = 0; i < 20000; ++i) share[static_cast<size_t>(pick(logits, s, random))] += 1 / 20000.0;
    return share;
  };
  const auto softmax = [&](double temperature, std::initializer_list<size_t> ids) {
    std::vector<double> p(5);
    double total = 0;
    for (const size_t i : ids) total += p[i] = std::exp(logits[static_cast<int64_t>(i)] / temperature);
    for (double& x : p) x /= total;
    return p;
  };
  const std::pair<Sampling, std::vector<double>> cases[] = {{{0.7}, softmax(0.7, {0, 1, 2, 3, 4})},
                                                            {{2, 3}, softmax(2, {1, 2, 3})},
                                                            {{1, 0, 0.5}, softmax(1, {1, 3})},
                                                            {{1, 1}, softmax(1, {1})},
                                                            {{1, 0, 1e-9}, softmax(1, {1})}};
  for (const auto& entry : cases) {
    const std::vector<double> got = shares(entry.first);
    for (size_t i = 0; i < 5; ++i) CHECK(std::abs(got[i] - entry.second[i]) < 0.015);  // four standard errors
  }
  for (const Sampling bad : {Sampling{-1}, {NAN}, {1, -1}, {1, 0, 0}, {1, 0, 1.5}})
    CHECK_THROWS_AS(check(bad), UsageError);
  CHECK_THROWS_AS(pick(Tensor({2}, {1.f, NAN}), {}, random), Error);
  PythonRandom zero(0);
  CHECK(zero.random() == 0.8444218515250481);  // CPython's
  CHECK(zero.random() == 0.7579544029403025);
}

TEST_CASE("generate: text from single tokens holds back what is not a character yet") {
  const Tokenizer tokenizer = Tokenizer::load("data/mini/bloom");
  const std::string text = "naïve – 日本 🙂 end";
  TextStream stream(tokenizer);
  std::string all;
  for (const int32_t id : tokenizer.encode(text, false)) {
    const std::string piece = stream.next(id);
    CHECK(invalid_utf8(piece) == -1);
    all += piece;
  }
  CHECK(all + stream.finish() == text);

  // Byte by byte, against Python's bytes.decode(errors="replace"): \xff stands for U+FFFD.
  const std::pair<std::string, std::string> cases[] = {
      {"a\xf0\x9f\x99", "a\xff"},       {"\xf0\x9f\x99\x41", "\xff\x41"}, {"\x80\x41", "\xff\x41"},
      {"\xe0\x80\x41", "\xff\xff\x41"}, {"\xed\xa0\x80", "\xff\xff\xff"}, {"\xe2\x82\xac", "\xe2\x82\xac"},
      {"\xc3\xc3\xa9", "\xff\xc3\xa9"}, {"\xf4\x90\x80", "\xff\xff\xff"}, {"\xf8\x41", "\xff\x41"}};
  for (const auto& entry : cases) {
    TextStream bytes(tokenizer);
    std::string got, want;
    for (const char c : entry.first) {
      int32_t id = 0;
      while (tokenizer.bytes(id) != std::string(1, c)) REQUIRE(++id < tokenizer.vocab_size());
      got += bytes.next(id);
    }
    got += bytes.finish();
    for (const char c : entry.second) want += c == '\xff' ? std::string("\xef\xbf\xbd") : std::string(1, c);
    CHECK(got == want);
  }
  CHECK(TextStream(tokenizer).next(1 << 20).empty());  // a model may have more rows than its tokenizer
}
