// Bits by the names of layers.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "quant/allocation.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

std::map<std::string, int> bits_by_name(const std::vector<std::string>& layer_bits,
                                        const std::vector<std::string>& exclude = {}) {
  const auto model = load_model("tests/fixtures/opt_tiny");
  std::map<std::string, int> bits;
  for (const auto& [site, k] : allocate_bits(*model, layer_bits, exclude)) bits[site->name] = k;
  return bits;
}

}  // namespace

TEST_CASE("allocation: the last rule that fits a layer's name, exclusions over all") {
  CHECK(bits_by_name({}).empty());
  const std::map<std::string, int> ruled = bits_by_name({"fc=8", "^layers\\.0\\.fc2$=3"}, {"k_proj"});
  CHECK(ruled.at("layers.0.fc1") == 8);
  CHECK(ruled.at("layers.0.fc2") == 3);
  CHECK(ruled.at("layers.1.fc2") == 8);
  CHECK(ruled.at("layers.1.self_attn.k_proj") == 0);
  CHECK(ruled.size() == 6);
  CHECK(bits_by_name({"k_proj=8"}, {"k_proj"}).at("layers.0.self_attn.k_proj") == 0);
}

TEST_CASE("allocation refuses rules that say nothing") {
  for (const char* rule : {"fc2", "fc2=", "fc2=1", "fc2=9", "fc2=33", "=4"})
    CHECK(contains(message_of<UsageError>([&] { bits_by_name({rule}); }), rule));
  CHECK(contains(message_of<UsageError>([] { bits_by_name({"fc3=4"}); }), "layers.1.fc2"));
  CHECK(contains(message_of<UsageError>([] { bits_by_name({"fc[=4"}); }), "not a regular expression"));
}
