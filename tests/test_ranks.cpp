// Work shared out over the ranks of one run: what is sent arrives, and sums over tiles of several ranks are those of
// one.
#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <variant>

#include "engine/core/ranks.h"
#include "quant/method.h"
#include "quant/moments.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

struct Inner {
  std::string name;
  std::vector<double> values;
  void fields(auto visit) { visit(name, values); }
};

struct All {
  int number = 0;
  Tensor none, some;
  std::vector<Inner> inner;
  std::vector<std::string> texts;
  std::map<std::string, std::variant<int64_t, float, std::vector<float>>> facts;
  void fields(auto visit) { visit(number, none, some, inner, texts, facts); }
};

}  // namespace

TEST_CASE("bytes are those of values of all kinds, empty ones and tensors without memory among them") {
  All x;
  x.number = 7;
  x.some = random({2, 3}, 1);
  x.inner = {{"a", {1, 2.5}}, {"", {}}};
  x.texts = {"", "text"};
  x.facts = {{"whole", int64_t{7}}, {"one", 7.f}, {"list", std::vector<float>{7}}, {"none", std::vector<float>{}}};
  All y;
  std::string sent;
  visit_bytes(
      x, [&](const void* bytes, int64_t n) { sent.append(static_cast<const char*>(bytes), static_cast<size_t>(n)); });
  const char* from = sent.data();
  visit_bytes(y, [&](void* bytes, int64_t n) {
    std::memcpy(bytes, from, static_cast<size_t>(n));
    from += n;
  });
  CHECK(from == sent.data() + sent.size());
  CHECK(y.number == 7);
  CHECK(y.none.empty());
  CHECK(same_bits(y.some, x.some));
  REQUIRE(y.inner.size() == 2);
  CHECK(y.inner[0].name == "a");
  CHECK(y.inner[0].values == x.inner[0].values);
  CHECK(y.inner[1].values.empty());
  CHECK(y.texts == x.texts);
  CHECK(y.facts == x.facts);
}

TEST_CASE("one rank makes and uses all pieces in order") {
  std::vector<int64_t> used;
  in_order(
      5, [](int64_t i) { return 10 * i; }, [&](int64_t i, int64_t made) { used.push_back(made + i); });
  CHECK(used == std::vector<int64_t>{0, 11, 22, 33, 44});
  CHECK(rank() == 0);
  CHECK(ranks() == 1);
}

TEST_CASE("moments: the tiles of all ranks together are the products of one, bit for bit") {
  constexpr int64_t kColumns = 300;  // three tiles across, of which the last one is short
  const Tensor x = random({3, 40, kColumns}, 1), other = random({3, 40, kColumns}, 2);
  Moments whole(kColumns);
  whole.add(x, other);
  for (const int ranks : {2, 4, 16}) {
    std::vector<double> second(whole.second().size(), 0.0), cross = second;
    std::vector<double> mean(kColumns, 0.0);
    for (int rank = 0; rank < ranks; ++rank) {
      Moments part(kColumns, rank, ranks);
      part.add(x, other);
      const std::vector<double> of_second = part.second(), of_cross = part.cross();
      int64_t twice = 0;  // each tile is one rank's
      for (size_t i = 0; i < second.size(); ++i) {
        twice += second[i] != 0 && of_second[i] != 0;
        second[i] += of_second[i];
        cross[i] += of_cross[i];
      }
      CHECK(twice == 0);
      const std::vector<double> of_mean = part.mean();
      for (size_t c = 0; c < mean.size(); ++c) mean[c] += of_mean[c];
    }
    CHECK(second == whole.second());
    CHECK(cross == whole.cross());
    CHECK(mean == whole.mean());
  }
}
