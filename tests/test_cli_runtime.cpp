// imagenet --runtime integer: the same classes as simulated, the same bits whatever runs it.
#include "tests/cli.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::cli;

namespace {

// A quick calibration, on which nothing here depends.
const std::string kFew = " --calib-data data/mini/images/calib --calib-images 4 ";
const std::string kQuick = kFew + "--eq-n 5 --search-rounds 1 ";

json record_of(const Folder& folder, const std::string& command, const std::string& environment = "") {
  const Result r = run(command + " --json " + folder / "r.json", environment);
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  return read_json(folder / "r.json");
}

}  // namespace

TEST_CASE("cli: --runtime integer has the top-1 of the simulated model, on every instruction set and thread count") {
  const Folder folder;
  for (const std::string name : {"vit", "deit", "swin"}) {
    CAPTURE(name);
    const std::string command = "imagenet --model data/mini/" + name + " --data data/mini/images/val --limit 40" +
                                kQuick +
                                "--method ptq4vit --probe-draws 1 --pixels quantized --bc channel --bc-images 4 ";
    const json simulated = record_of(folder, command), integer = record_of(folder, command + "--runtime integer");
    CHECK(integer["runtime"] == "integer");
    CHECK(simulated["runtime"] == "simulate");
    CHECK(integer["top1"] == simulated["top1"]);
    CHECK(integer["simulated_products"].empty());
    CHECK(integer["integer_weight_bytes"].get<int64_t>() > 0);
  }
  // Calibrated without products of floats that a BLAS could compute otherwise: nothing is searched.
  const std::string fixed = kVit +
                            "--limit 8 --calib-data data/mini/images/calib --calib-images 2 --eq-n 1 --method "
                            "base-ptq --pixels quantized --runtime integer ";
  const json want = record_of(folder, fixed);
  CHECK(record_of(folder, fixed + "--threads 1")["outputs_hash"] == want["outputs_hash"]);
  CHECK(record_of(folder, fixed + "--batch-size 3")["outputs_hash"] == want["outputs_hash"]);
  for (const char* isa : {"plain", "avx2", "avx-vnni", "avx512"}) {
    const Result r = run(fixed + "--json " + folder / "r.json", std::string("BCQ_ISA=") + isa + " ");
    if (contains(r.err, "cannot run here")) continue;
    CHECK(read_json(folder / "r.json")["outputs_hash"] == want["outputs_hash"]);
  }
}

TEST_CASE("cli: --runtime integer says what it simulates, and when there is nothing else") {
  const Result r = run(kVit + "--limit 4 --method base-ptq" + kQuick + "--runtime integer");
  CHECK(r.code == 0);
  CHECK(contains(r.out, "simulated: patch_embed.proj"));
  check_failure(kVit + "--limit 4 --method base-ptq --wbits 9 --abits 9" + kQuick + "--runtime integer", 2,
                {"--wbits 9 --abits 9"});
  check_failure(kVit + "--limit 4 --runtime integer", 2, {"--method"});
}

TEST_CASE("cli: a saved vision model gives the same bits in both runtimes, and is not quantized again") {
  const Folder folder;
  const std::string saved = folder / "saved", again = "imagenet --model " + saved + " --data data/mini/images/val ";
  const std::string make = kVit + "--limit 20 --method joint --wbits 4 --abits 4" + kFew + "--save " + saved + " ";
  for (const std::string runtime : {"--runtime integer ", "--runtime simulate "}) {
    const json made = record_of(folder, make + runtime), loaded = record_of(folder, again + "--limit 20 " + runtime);
    CHECK(loaded["outputs_hash"] == made["outputs_hash"]);
    CHECK(loaded["method"] == "stored");
    for (const char* key : {"top1", "wbits", "abits", "runtime", "parameters", "bits_per_weight", "labelled_by"})
      CHECK(loaded[key] == made[key]);
    CHECK(made["saved"]["bits_per_weight"] > 4);
    CHECK(made["saved"]["bytes"].get<double>() < 0.2 * made["saved"]["bytes_before"].get<double>());
    CHECK(!loaded.contains("saved"));
    CHECK(record_of(folder, again + "--limit 20 " + runtime + "--recipe " + folder / "r.json")["outputs_hash"] ==
          made["outputs_hash"]);
  }
  CHECK(contains(run(again + "--limit 4").out, "stored W4A4"));
  CHECK(read_json(saved + "/config.json")["quantization_config"]["recipe"]["method"] == "joint");
  check_failure(again + "--method joint" + kFew, 2, {"quantized already", "--method"});
  check_failure(again + "--paired", 2, {"--paired", "float network"});
  check_failure(again + "--layer-report x.csv", 2, {"--layer-report"});
  check_failure(again + "--save " + folder / "b", 2, {"--save", "--method"});
  check_failure(kVit + "--recipe " + folder / "r.json", 2, {"stored quantized"});
  check_failure(kVit + "--method ptq4vit --wbits 9" + kQuick + "--save " + saved, 2, {"--save", "2 to 8 bits"});
  check_failure(kVit + "--method joint" + kFew + "--force --save data/mini/vit", 2, {"the model itself"});
  const std::string pixels = folder / "x.safetensors";
  write_safetensors(pixels, {{"pixel_values", Tensor({1, 3, 28, 28})}});
  const std::string forward = "forward --model " + saved + " --input " + pixels + " --output " + folder / "y ";
  CHECK(run(forward).code == 0);
  check_failure(forward + "--integer-bits 8", 2, {"quantized already"});
  const auto logits = [&] { return SafeTensors::open(folder / "y").get("logits"); };
  const Tensor simulated = logits();
  CHECK(run(forward + "--runtime simulate").code == 0);
  CHECK(test::same_bits(logits(), simulated));
  CHECK(run(forward + "--runtime integer").code == 0);
  CHECK_FALSE(test::same_bits(logits(), simulated));
  CHECK(test::relative_error(logits(), simulated) < 0.2);
  check_failure(forward + "--runtime fast", 2, {"fast", "integer"});
  check_failure("forward --model data/mini/vit --input " + pixels + " --output " + folder / "y --runtime integer", 2,
                {"saved quantized"});
}

TEST_CASE("cli: bench says what is wrong") {
  check_failure("bench --only [", 2, {"\"[\"", "not a regular expression"});
  check_failure("bench --repeats 0", 2, {"--repeats"});
  const Folder folder;
  write_file(folder / "a.json", R"([{"work": "x", "ms": 4}, {"work": "y", "ms": 1}])");
  write_file(folder / "b.json", R"([{"work": "x", "ms": 3, "gops": 2}, {"work": "z", "ms": 1}])");
  const std::string a = "bench --compare " + folder / "a.json", b = " --compare " + folder / "b.json";
  const Result compared = run(a + b);
  CHECK(compared.code == 0);
  CHECK(contains(compared.out, "0.75"));
  CHECK(std::count(compared.out.begin(), compared.out.end(), '\n') == 2);
  check_failure(a, 2, {"two files"});
  write_file(folder / "b.json", R"([{"work": "z", "ms": 1}])");
  check_failure(a + b, 3, {"no work in common"});
  write_file(folder / "b.json", R"([3])");
  check_failure(a + b, 3, {"b.json", "not the records"});
}

TEST_CASE("cli: the smallest method, in integers, is saved and read again") {
  const Folder folder;
  const std::string common = kVit + "--limit 40 --runtime integer --json ";
  REQUIRE(run(common + (folder / "a.json") +
              " --calib-data data/mini/images/calib --calib-images 8 --method minmax --wbits 8 --abits 8 --save " +
              (folder / "saved"))
              .code == 0);
  REQUIRE(run("imagenet --data data/mini/images/val --limit 40 --runtime integer --model " + (folder / "saved") +
              " --json " + (folder / "b.json"))
              .code == 0);
  CHECK(result_of(folder / "a.json")["outputs_hash"] == result_of(folder / "b.json")["outputs_hash"]);
}
