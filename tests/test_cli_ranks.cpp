// Programs on several ranks: in a build with MPI the same records and files on any number of them.
#include <algorithm>
#include <fstream>

#include "engine/core/ranks.h"
#include "tests/cli.h"

using namespace bcq;
using namespace bcq::cli;

namespace {

bool has_mpi() { return mpi_version() != "none"; }
bool skipped_without_mpi() {
  if (!has_mpi()) MESSAGE("skipped: a build without MPI");
  return !has_mpi();
}

// Ranks of one thread, as many as asked for; of root Open MPI wants it twice. Containers may forbid that one process
// reads the memory of another, and have no ssh, which it would start ranks on other machines with.
const std::string kMpi =
    "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated "
    "OMPI_MCA_btl_vader_single_copy_mechanism=none "
    "OMP_NUM_THREADS=1 mpirun --oversubscribe ";

Result run_on(int ranks, const std::string& command) {
  return run(command, kMpi + "-n " + std::to_string(ranks) + " ");
}

// A record less what depends on the machine and on where it was written.
json comparable(const std::string& path) {
  json record = result_of(json::parse(read_file(path)));
  record.erase("ranks");
  record.erase("saved");
  return record;
}

// The command gives one record and one saved folder on any number of ranks.
void check_same(const std::string& command, const std::vector<int>& counts = {1, 2}) {
  CAPTURE(command);
  const Folder folder;
  for (const int n : counts) {
    const std::string to = folder / std::to_string(n);
    const Result r = run_on(n, command + " --json " + to + ".json --save " + to);
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
    CHECK(contains(r.out, "saved to"));
    CHECK(r.out.find("saved to") == r.out.rfind("saved to"));  // by one of them
    CHECK(comparable(to + ".json") == comparable(folder / "1.json"));
    CHECK(read_file(to + "/model.safetensors") == read_file(folder / "1/model.safetensors"));
    const json record = json::parse(read_file(to + ".json"));
    CHECK(record.contains("ranks") == (n > 1));
    if (n == 1) continue;
    CHECK(record["ranks"]["count"] == n);
    CHECK(record["ranks"]["received_mb"]["evaluation"] > 0);
    CHECK(record["ranks"]["received_mb"].size() >= 2);  // and what calibrates
  }
}

std::string vision(const std::string& model, const std::string& options) {
  return "imagenet --model data/mini/" + model +
         " --data data/mini/images/val --calib-data data/mini/images/calib --limit 70 --paired --calib-images 12 " +
         options;
}
std::string language(const std::string& model, const std::string& options) {
  return "perplexity --model data/mini/" + model +
         " --text data/mini/text/test.txt --calib-text data/mini/text/calib.txt --limit 20 --nsamples 9 " + options;
}

}  // namespace

TEST_CASE("cli: ranks: programs that cannot be shared out, and builds without MPI, say so") {
  if (has_mpi()) {
    const Result r = run_on(2, "forward --model data/mini/vit");
    CHECK(r.code == 2);
    CHECK(contains(r.err, "does not share out its work over ranks"));
    return;
  }
  const Result r = run("imagenet --model data/mini/vit", "OMPI_COMM_WORLD_SIZE=2 ");
  CHECK(r.code == 2);
  CHECK(contains(r.err, "started as 2 ranks, and this build has no MPI: make MPI=1"));
}

TEST_CASE("cli: ranks: methods that see sums over the data") {
  if (skipped_without_mpi()) return;
  check_same(language("opt", "--seqlen 128 --method gptq --wbits 3 --true-sequential --bc channel --paired"), {1, 4});
  check_same(language("bloom", "--seqlen 128 --method joint --wbits 2 --groupsize 64 --bc position"));
  check_same(language("llama", "--seqlen 128 --method billm --billm-inside sequential --bc channel"));
}

TEST_CASE("cli: ranks: methods that see whole inputs") {
  if (skipped_without_mpi()) return;
  check_same(language("opt", "--seqlen 128 --method awq --wbits 3 --bc channel"));
  check_same(vision("vit", "--method joint --wbits 4 --abits 4"), {1, 4});
  check_same(vision("swin", "--method repq-vit --wbits 4 --abits 4 --bc position --bc-sites linear,block,stage"));
}

TEST_CASE("cli: ranks: searches, each part of the network by one rank") {
  if (skipped_without_mpi()) return;
  check_same(vision("vit", "--method ptq4vit --wbits 4 --abits 4 --eq-n 8 --bc channel"), {1, 4});
  check_same(vision("swin", "--method apq-like --wbits 6 --abits 6 --eq-n 4 --bc position"));
  check_same(vision("deit", "--method base-ptq --eq-n 8 --runtime integer"));
}

TEST_CASE("cli: ranks: an error ends all of them with its message and its code, and leaves nothing") {
  if (skipped_without_mpi()) return;
  const Folder folder;
  const Result r =
      run_on(2, vision("vit", "--method base-ptq --bc channel --bc-images 100000 --save ") + (folder / "vit"));
  CHECK(r.code == 2);
  CHECK(contains(r.err, "100000"));
  CHECK(std::filesystem::is_empty(folder.path));
}

TEST_CASE("cli: ranks: a run that lost a rank goes on with another number of them") {
  if (skipped_without_mpi()) return;
  const Folder folder;
  const std::string command = language("opt", "--method gptq --wbits 3 --seqlen 256 --save ");
  REQUIRE(run_on(1, command + (folder / "whole")).code == 0);
  // The second of three ranks is killed once a block is finished.
  const std::string to = folder / "resumed";
  const std::string killing = "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then (while ! ls " + to +
                              ".partial/*-0001* >/dev/null 2>&1; do sleep 0.01; done; kill -KILL $$) & fi; exec \"$@\"";
  CHECK(run(command + to, kMpi + "-n 3 sh -c '" + killing + "' sh ").code != 0);
  CHECK_FALSE(std::filesystem::exists(to));
  CHECK(std::filesystem::exists(to + ".partial/run.json"));
  const Result resumed = run_on(2, command + to + " --resume");
  CAPTURE(resumed.err);
  REQUIRE(resumed.code == 0);
  CHECK(read_file(to + "/model.safetensors") == read_file(folder / "whole/model.safetensors"));
  CHECK_FALSE(std::filesystem::exists(to + ".partial"));
}

TEST_CASE("cli: ranks: a model or a text that is another one where another rank runs is refused") {
  if (skipped_without_mpi()) return;
  namespace fs = std::filesystem;
  const Folder folder;
  for (const std::string rank : {"0", "1"}) {
    fs::create_directories(folder / rank + "/mini/text");
    fs::copy(kMini + "/opt", folder / rank + "/mini/opt");
    for (const char* name : {"test.txt", "calib.txt"})
      fs::copy(kMini + "/text/" + name, folder / rank + "/mini/text/" + name);
  }
  write_file(folder / "table.json", R"({"family": "language", "about": "of a test", "source": "none", "columns": [],
    "embedded": ["opt"], "rows": [{"bits": 32, "method": "fp"}, {"bits": 2, "group": 64, "method": "rtn"}], "footnotes": []})");
  for (const std::string& command :
       {std::string("perplexity --model mini/opt --text mini/text/test.txt --limit 2 --seqlen 32"),
        "table " + folder / "table.json" + " --mini mini --out out --limit 2 --seqlen 32"}) {
    const auto run_in_folders = [&] {
      return run(command, kMpi + "-n 2 sh -c 'program=$(realpath \"$0\"); cd " + folder.path.string() +
                              "/$OMPI_COMM_WORLD_RANK; exec \"$program\" \"$@\"' ");
    };
    for (const std::string name : {"text/test.txt", "opt/config.json"}) {
      CAPTURE(command);
      CAPTURE(name);
      const std::string file = folder / "1/mini/" + name, before = read_file(file);
      std::ofstream(file, std::ios::app) << "\n";
      const Result r = run_in_folders();
      CHECK(r.code == 2);
      CHECK(contains(r.err, "results would depend on the rank"));
      write_file(file, before);
    }
    const Result same = run_in_folders();
    CAPTURE(same.err);
    CHECK(same.code == 0);
  }
}

TEST_CASE("cli: ranks: cells of a table") {
  if (skipped_without_mpi()) return;
  const Folder folder;
  const std::string table = "table groups --limit 4 --nsamples 6 --only '^2g64-(rtn|gptq)' ";
  for (const int n : {1, 3}) {
    const std::string to = folder / std::to_string(n);
    const Result r = run_on(n, table + "--out " + to + " --json " + to + ".json");
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
  }
  const auto rows = [&](const char* name) {
    json rows = undisturbed(json::parse(read_file(folder / name))["rows"]);
    for (json& row : rows)
      if (row["record"].is_object()) row["record"].erase("ranks");
    return rows;
  };
  CHECK(rows("1.json") == rows("3.json"));
}

TEST_CASE("cli: ranks: a table's cell that fails does so alone") {
  if (skipped_without_mpi()) return;
  namespace fs = std::filesystem;
  const Folder folder;
  std::vector<std::vector<std::string>> states;
  for (const int n : {1, 3}) {
    const std::string to = folder / std::to_string(n);
    fs::create_directories(to + "/opt-2g64-rtn-none-plain.json/taken");  // where its record belongs
    const Result r = run_on(n, "table groups --limit 2 --seqlen 64 --nsamples 6 --only '^2g64-rtn' --out " + to +
                                   " --json " + to + ".json");
    CAPTURE(r.err);
    CHECK(r.code == 4);
    CHECK(contains(r.err, "opt 2g64 RTN, plain could not be measured: " + to));
    CHECK(contains(r.out, "- opt 2g64 RTN, plain failed: "));
    states.emplace_back();
    const json rows = json::parse(read_file(to + ".json"))["rows"];
    for (const json& row : rows) states.back().push_back(row["state"]);
    CHECK(std::count(states.back().begin(), states.back().end(), "failed") == 1);
  }
  CHECK(states[0] == states[1]);
}
