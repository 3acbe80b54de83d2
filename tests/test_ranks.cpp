// Work shared out over the ranks of one run: what is sent arrives, sums over tiles of several ranks are those of one,
// and, in a build with MPI, programs give the same records and files on any number of ranks.
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "quant/method.h"
#include "quant/moments.h"
#include "tests/cli.h"
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
  void fields(auto visit) { visit(number, none, some, inner, texts); }
};

bool has_mpi() { return mpi_version() != "none"; }

// Ranks of one thread, as many as asked for; of root Open MPI wants it twice. Containers may forbid that one process
// reads the memory of another, and have no ssh, which it would start ranks on other machines with.
const std::string kMpi =
    "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated "
    "OMPI_MCA_btl_vader_single_copy_mechanism=none "
    "OMP_NUM_THREADS=1 mpirun --oversubscribe ";

cli::Result run_on(int ranks, const std::string& command) {
  return cli::run(command, kMpi + "-n " + std::to_string(ranks) + " ");
}

// A record less what depends on the machine and on where it was written.
json comparable(const std::string& path) {
  json record = cli::result_of(json::parse(read_file(path)));
  record.erase("ranks");
  record.erase("saved");
  return record;
}

// The command gives one record and one saved folder on 1, 2 and 4 ranks.
void check_same(const std::string& command) {
  if (!has_mpi()) return;
  CAPTURE(command);
  const cli::Folder folder;
  for (const int n : {1, 2, 4}) {
    const std::string to = folder / std::to_string(n);
    const cli::Result r = run_on(n, command + " --json " + to + ".json --save " + to);
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
    CHECK(contains(r.out, "saved to"));
    CHECK(r.out.find("saved to") == r.out.rfind("saved to"));  // by one of them
    CHECK(comparable(to + ".json") == comparable(folder / "1.json"));
    CHECK(read_file(to + "/model.safetensors") == read_file(folder / "1/model.safetensors"));
    CHECK(json::parse(read_file(to + ".json")).contains("ranks") == (n > 1));
  }
}

std::string vision(const std::string& model, const std::string& options) {
  return "imagenet --model data/mini/" + model +
         " --data data/mini/images/val --calib-data data/mini/images/calib --limit 70 --paired --calib-images 12 " +
         options;
}
std::string language(const std::string& model, const std::string& options) {
  return "perplexity --model data/mini/" + model +
         " --text data/mini/text/test.txt --calib-text data/mini/text/calib.txt --limit 40 --nsamples 9 " + options;
}

}  // namespace

TEST_CASE("a parcel holds values of all kinds, empty ones and tensors without memory among them") {
  All x;
  x.number = 7;
  x.some = random({2, 3}, 1);
  x.inner = {{"a", {1, 2.5}}, {"", {}}};
  x.texts = {"", "text"};
  All y;
  Parcel::of(x).unpack(y);
  CHECK(y.number == 7);
  CHECK(y.none.empty());
  CHECK(same_bits(y.some, x.some));
  REQUIRE(y.inner.size() == 2);
  CHECK(y.inner[0].name == "a");
  CHECK(y.inner[0].values == x.inner[0].values);
  CHECK(y.inner[1].values.empty());
  CHECK(y.texts == x.texts);
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

TEST_CASE("ranks: programs that cannot be shared out, and builds without MPI, say so") {
  if (has_mpi()) {
    const cli::Result r = run_on(2, "forward --model data/mini/vit");
    CHECK(r.code == 2);
    CHECK(contains(r.err, "does not share out its work over ranks"));
    return;
  }
  const cli::Result r = cli::run("imagenet --model data/mini/vit", "OMPI_COMM_WORLD_SIZE=2 ");
  CHECK(r.code == 2);
  CHECK(contains(r.err, "started as 2 ranks, and this build has no MPI: make MPI=1"));
}

TEST_CASE("ranks: methods that see sums over the data") {
  check_same(language("opt", "--seqlen 128 --method gptq --wbits 3 --true-sequential --bc channel --paired"));
  check_same(language("bloom", "--seqlen 128 --method joint --wbits 2 --groupsize 64 --bc position"));
  check_same(language("llama", "--seqlen 128 --method billm --billm-inside sequential --bc channel"));
}

TEST_CASE("ranks: methods that see whole inputs") {
  check_same(language("opt", "--seqlen 128 --method awq --wbits 3 --bc channel"));
  check_same(vision("vit", "--method joint --wbits 4 --abits 4"));
  check_same(vision("swin", "--method repq-vit --wbits 4 --abits 4 --bc position --bc-sites linear,block,stage"));
}

TEST_CASE("ranks: searches, each part of the network by one rank") {
  check_same(vision("vit", "--method ptq4vit --wbits 4 --abits 4 --eq-n 8 --bc channel"));
  check_same(vision("swin", "--method apq-like --wbits 6 --abits 6 --eq-n 4 --bc position"));
  check_same(vision("deit", "--method base-ptq --eq-n 8 --runtime integer"));
}

TEST_CASE("ranks: an error ends all of them with its message and its code, and leaves nothing") {
  if (!has_mpi()) return;
  const cli::Folder folder;
  const cli::Result r =
      run_on(2, vision("vit", "--method base-ptq --bc channel --bc-images 100000 --save ") + (folder / "vit"));
  CHECK(r.code == 2);
  CHECK(contains(r.err, "100000"));
  CHECK(std::filesystem::is_empty(folder.path));
}

TEST_CASE("ranks: a run that lost a rank goes on with another number of them") {
  if (!has_mpi()) return;
  const cli::Folder folder;
  const std::string command = language("opt", "--method gptq --wbits 3 --seqlen 256 --save ");
  REQUIRE(run_on(1, command + (folder / "whole")).code == 0);
  // The second of three ranks is killed once a block is finished.
  const std::string to = folder / "resumed";
  const std::string killing = "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then (while ! ls " + to +
                              ".partial/*-0001* >/dev/null 2>&1; do sleep 0.01; done; kill -KILL $$) & fi; exec \"$@\"";
  CHECK(cli::run(command + to, kMpi + "-n 3 sh -c '" + killing + "' sh ").code != 0);
  CHECK_FALSE(std::filesystem::exists(to));
  CHECK(std::filesystem::exists(to + ".partial/run.json"));
  const cli::Result resumed = run_on(2, command + to + " --resume");
  CAPTURE(resumed.err);
  REQUIRE(resumed.code == 0);
  CHECK(read_file(to + "/model.safetensors") == read_file(folder / "whole/model.safetensors"));
  CHECK_FALSE(std::filesystem::exists(to + ".partial"));
}

TEST_CASE("ranks: cells of a table") {
  if (!has_mpi()) return;
  const cli::Folder folder;
  const std::string table = "table groups --limit 4 --nsamples 6 --only '^2g64-(rtn|gptq)' ";
  for (const int n : {1, 3}) {
    const std::string to = folder / std::to_string(n);
    const cli::Result r = run_on(n, table + "--out " + to + " --json " + to + ".json");
    CAPTURE(r.err);
    REQUIRE(r.code == 0);
  }
  const auto rows = [&](const char* name) {
    json rows = cli::undisturbed(json::parse(read_file(folder / name))["rows"]);
    for (json& row : rows)
      if (row["record"].is_object()) row["record"].erase("ranks");
    return rows;
  };
  CHECK(rows("1.json") == rows("3.json"));
}
