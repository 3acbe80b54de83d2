// Tokenizer files for tests to damage, and what is said of them.
#pragma once
#include <filesystem>

#include "data/text/tokenizer.h"
#include "engine/core/check.h"
#include "engine/file/json.h"
#include "tests/support.h"

namespace bcq {

using Ids = std::vector<int32_t>;
using Strings = std::vector<std::string>;
namespace fs = std::filesystem;
const std::string kBloom = " ?[^(\\s|[.,!?…。，、।۔،])]+";
const std::string kDir = "tests/fixtures/tokenizer/";

// Write `tree` as tokenizer.json of a fresh folder and load it; the message when refused.
inline std::string refusal(const json& tree, const json& config = nullptr) {
  const test::Folder dir;
  test::write_text(dir.file("tokenizer.json"), tree.dump());
  if (!config.is_null()) test::write_text(dir.file("tokenizer_config.json"), config.dump());
  return test::message_of<InputError>([&] { Tokenizer::load(dir.path); });
}

inline json plain() { return read_json(kDir + "plain/tokenizer.json"); }

inline Tokenizer load(const json& tree) {
  const test::Folder dir;
  test::write_text(dir.file("tokenizer.json"), tree.dump());
  return Tokenizer::load(dir.path);
}

// A copy of the two-file fixture to damage.
struct Legacy : test::Folder {
  Legacy() { fs::copy(kDir + "legacy", path, fs::copy_options::recursive); }
  void set(const std::string& name, const json& value) const { test::write_text(file(name), value.dump()); }
  std::string refusal() const {
    return test::message_of<InputError>([&] { Tokenizer::load(path); });
  }
};

}  // namespace bcq
