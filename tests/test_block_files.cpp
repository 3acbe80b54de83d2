// Finished blocks of an interrupted run: that they come back as they were, and for the run they belong to alone.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "eval/resume.h"
#include "quant/bias_comp.h"
#include "tests/quantize.h"
#include "tests/saved_models.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

TEST_CASE("finished blocks come back as they were, and only for the run they belong to") {
  for (const char* fixture : {"opt_tiny", "opt_post_tiny", "bloom_tiny"})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
      const Folder folder;
      const json fingerprint = {{"seed", 1}, {"wbits", 3}};
      const auto model = load_model(kFixtures + fixture), other = load_model(kFixtures + fixture);
      quantize_rtn(*model, grid_of(3, 8));
      scatter(*model);
      BcOptions o;
      o.shape = shape;
      o.block = true;
      compensate(*model, {kBatch}, o, kSilent);
      PartRecord record;
      record.fitted = 12;
      record.layers.push_back({});
      record.layers[0].layer = "layers.0.fc1";
      record.layers[0].ridge = INFINITY;
      record.layers[0].solved = 0.1 + 0.2;
      {
        BlockFiles files(folder.file("work"), fingerprint, false);
        for (int i = 0; i < model->depth(); ++i) files.done("a walk", *model, i, record);
      }
      CHECK(contains(message_of<UsageError>([&] { BlockFiles(folder.file("work"), fingerprint, false); }), "--resume"));
      CHECK(contains(message_of<UsageError>([&] {
                       BlockFiles(folder.file("work"), {{"seed", 2}}, true);
                     }),
                     "seed 1 instead of 2"));
      BlockFiles files(folder.file("work"), fingerprint, true);
      for (int i = 0; i < other->depth(); ++i) {
        PartRecord back;
        REQUIRE(files.load("a walk", *other, i, back));
        CHECK(back.fitted == 12);
        CHECK(back.layers.at(0).layer == "layers.0.fc1");
        CHECK(back.layers[0].ridge == INFINITY);
        CHECK(back.layers[0].solved == record.layers[0].solved);
      }
      check_same(*model, *other);
      PartRecord none;
      CHECK_FALSE(files.load("another walk", *other, 0, none));
      files.remove();
      CHECK_FALSE(fs::exists(folder.file("work")));
    }
}

TEST_CASE("blocks: a folder of a run that was killed before it began is no obstacle, one with other things is") {
  const Folder folder;
  const json fingerprint = {{"seed", 1}};
  const std::string work = folder.file("work");
  for (const bool resume : {false, true})
    for (const char* left : {"", "lock", ".bcq-0123456789abcdef.tmp"}) {
      CAPTURE(left);
      fs::create_directory(work);
      if (*left) write_text(work + "/" + left, "process 1 on another");
      BlockFiles files(work, fingerprint, resume);
      CHECK(read_json(work + "/run.json") == fingerprint);
      files.remove();
      CHECK_FALSE(fs::exists(work));
    }
  for (const char* left : {"GPTQ-0000.safetensors", "notes.txt"}) {
    fs::create_directory(work);
    write_text(work + "/" + left, "x");
    CHECK(contains(message_of<UsageError>([&] { BlockFiles(work, fingerprint, true); }), left));
    CHECK(read_text(work + "/" + left) == "x");
    fs::remove_all(work);
  }
  write_text(work, "a file");
  CHECK(contains(message_of<UsageError>([&] { BlockFiles(work, fingerprint, true); }), "cannot be created"));
}

TEST_CASE("blocks: a run that ends before its first block leaves no folder") {
  const Folder folder;
  const std::string work = folder.file("work");
  {
    const BlockFiles files(work, {{"seed", 1}}, false);
    CHECK(fs::exists(work + "/run.json"));
  }
  CHECK_FALSE(fs::exists(work));
}

TEST_CASE("blocks: a folder in use is refused, with the name of its holder, until that ends") {
  const Folder folder;
  const json fingerprint = {{"seed", 1}};
  const std::string work = folder.file("work");
  const auto refusal = [&](bool resume) {
    return message_of<UsageError>([&] { BlockFiles(work, fingerprint, resume); });
  };
  {
    const BlockFiles files(work, fingerprint, false);
    for (const bool resume : {false, true})
      CHECK(contains(refusal(resume), format("in use by process %d on ", ::getpid())));
    write_text(work + "/GPTQ-0000.safetensors", "");  // a block, without which the folder would go
  }
  CHECK(contains(refusal(false), "--resume"));  // its end, not a removal, frees it
  CHECK(refusal(true) == "");
  const pid_t child = ::fork();
  if (child == 0) {
    const BlockFiles files(work, fingerprint, true);
    write_text(folder.file("held"), "");
    for (;;) ::pause();
  }
  while (!fs::exists(folder.file("held"))) ::usleep(1000);
  CHECK(contains(refusal(true), format("process %d on ", child)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(refusal(true) == "");
}

TEST_CASE("blocks: warnings of the blocks that are done are given again, each once") {
  const Folder folder;
  const json fingerprint = {{"seed", 1}};
  const auto model = load_model(kFixtures + "opt_tiny");
  quantize_rtn(*model, grid_of(3, 8));
  std::vector<std::string> heard;
  const Warn hear = [&](const std::string& message) { heard.push_back(message); };
  {
    BlockFiles files(folder.file("work"), fingerprint, false);
    const Warn warn = files.keeping(hear);
    warn("few tokens");
    files.done("GPTQ", *model, 0, {});
    warn("no factor");
    files.done("GPTQ", *model, 1, {});
    warn("after the last block");
  }
  CHECK(heard.size() == 3);
  heard.clear();
  BlockFiles files(folder.file("work"), fingerprint, true);
  files.keeping(hear);
  PartRecord record;
  for (const int i : {0, 1}) REQUIRE(files.load("GPTQ", *model, i, record));
  CHECK(heard == std::vector<std::string>{"few tokens", "no factor"});
  files.done("GPTQ", *model, 0, {});
  REQUIRE(files.load("GPTQ", *model, 0, record));
  CHECK(heard.size() == 2);
}

TEST_CASE("blocks: files that are no blocks are refused by name") {
  for (const char* run : {"1", "[]", "null", "{"}) {
    const Folder damaged;
    write_text(damaged.file("run.json"), run);
    CHECK(contains(message_of<InputError>([&] { BlockFiles(damaged.path, {{"seed", 1}}, true); }), "run.json"));
  }
  const Folder folder;
  const json fingerprint = {{"seed", 1}};
  const auto model = load_model(kFixtures + "opt_tiny");
  BlockFiles files(folder.file("work"), fingerprint, false);
  const std::string path = folder.file("work/GPTQ-0000.safetensors");
  const auto refusal = [&](const std::map<std::string, std::string>& metadata) {
    write_safetensors(path, std::map<std::string, Tensor>{{"x", Tensor({1}, {1})}}, metadata);
    PartRecord record;
    return message_of<InputError>([&] { files.load("GPTQ", *model, 0, record); });
  };
  CHECK(contains(refusal({}), "GPTQ-0000.safetensors: is not a block"));
  CHECK(contains(refusal({{"block", "{"}}), "not valid JSON"));
  CHECK(contains(refusal({{"block", "{}"}}), "\"group\" is missing"));
  CHECK(contains(refusal({{"block", R"({"group":-1,"positions":"many"})"}}), "\"positions\" has the wrong type"));
}
