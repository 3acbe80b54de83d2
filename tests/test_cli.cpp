// The programs from outside: exit codes, messages that name what is wrong, whole or no
// output files, and results that do not depend on threads or batch size.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

#include "engine/json.h"
#include "engine/safetensors.h"

namespace {

using namespace bcq;
namespace fs = std::filesystem;

const std::string kMini = "data/mini";

struct Result {
  int code;
  std::string out, err;
};

struct Folder {
  fs::path path;
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "bcq-cli-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

// environment: "NAME=value " in front of the command.
Result run(const std::string& command, const std::string& environment = "") {
  const char* bin = std::getenv("BCQ_BIN");
  Folder folder;
  const std::string line =
      environment + (bin ? bin : "build/bin") + "/" + command + " >" + folder / "out" + " 2>" + folder / "err";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder / "out"), read_file(folder / "err")};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The command fails with this code and says all of these on stderr.
void check_failure(const std::string& command, int code, std::initializer_list<const char*> says) {
  const Result r = run(command);
  CAPTURE(command);
  CAPTURE(r.err);
  CHECK(r.code == code);
  for (const char* part : says) CHECK_MESSAGE(contains(r.err, part), part);
}

// A copy of the embedded ViT whose tensors `change` edits.
template <class F>
std::string changed_vit(const Folder& folder, F change) {
  const std::string to = folder / "vit";
  fs::create_directory(to);
  fs::copy(kMini + "/vit/config.json", to + "/config.json");
  const SafeTensors file = SafeTensors::open(kMini + "/vit/model.safetensors");
  std::map<std::string, Tensor> tensors;
  for (const auto& entry : file.tensors()) tensors[entry.first] = file.get(entry.first).clone();
  change(tensors);
  write_safetensors(to + "/model.safetensors", tensors);
  return to;
}

// A record without what the machine adds to it.
json result_of(const std::string& path) {
  json record = read_json(path);
  for (const char* key : {"seconds", "calibration", "threads", "peak_rss_mb"}) record.erase(key);  // times
  return record;
}

const std::string kVit = "imagenet --model data/mini/vit --data data/mini/images/val ";

}  // namespace

TEST_CASE("cli: help, version and usage") {
  for (const char* program : {"imagenet", "perplexity", "forward", "demo", "bench"}) {
    const Result help = run(std::string(program) + " --help");
    CHECK(help.code == 0);
    CHECK(contains(help.out, "Example"));
    const Result version = run(std::string(program) + " --version");
    CHECK(version.code == 0);
    CHECK(contains(version.out, "bcq "));
  }
  check_failure("imagenet", 2, {"--model is required"});
  check_failure(kVit + "--method magic", 2, {"--method"});
  check_failure(kVit + "--method ptq4vit", 2, {"--calib-data"});
  check_failure(kVit + "--bc channel", 2, {"--method"});
  check_failure(kVit + "--threads 0", 2, {"threads"});
  check_failure(kVit + "--method ptq4vit --wbits 1 --calib-data data/mini/images/calib", 2, {"bits"});
  check_failure(kVit + "--method ptq4vit --calib-images 100000 --calib-data data/mini/images/calib", 2, {"100000"});
  check_failure("perplexity --model data/mini/opt --text data/mini/text/test.txt --seqlen 100000", 2, {"--seqlen"});
  check_failure("perplexity --model data/mini/opt --text data/mini/text/test.txt --method gptq", 2, {"--calib-text"});
  check_failure("perplexity --model data/mini/opt --text data/mini/text/test.txt --method rtn --exclude fc9", 2,
                {"fc9"});
  check_failure("perplexity --model data/mini/vit --text data/mini/text/test.txt", 2, {"imagenet"});
  check_failure("perplexity --model data/mini/opt", 2, {"--text", "--corpora"});
  check_failure("perplexity --model data/mini/opt --text c4", 2, {"--corpora", "c4-validation.00000-of-00008.json.gz"});
  check_failure("perplexity --model data/mini/opt --text data/mini/text/test.txt --ppl-def bits", 2, {"--ppl-def"});
  check_failure("perplexity --model data/mini/opt --text data/mini/text/test.txt --paired", 2, {"--paired"});
  check_failure("imagenet --model data/mini/opt --data data/mini/images/val", 2, {"perplexity"});
  const Result no_such_isa = run(kVit, "BCQ_ISA=magic ");
  CHECK(no_such_isa.code == 2);
  CHECK(contains(no_such_isa.err, "BCQ_ISA=magic"));
}

TEST_CASE("cli: model files that are not what they have to be") {
  const Folder folder;
  check_failure("imagenet --model /nowhere/at/all --data data/mini/images/val", 3, {"/nowhere/at/all"});
  check_failure("imagenet --model " + folder.path.string() + " --data data/mini/images/val", 3, {"config.json"});

  SUBCASE("a tensor of another shape is named, with both shapes") {
    const std::string model = changed_vit(folder, [](auto& t) { t.at("norm.weight") = Tensor({5}); });
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"norm.weight", "[5]"});
  }
  SUBCASE("a missing tensor is named") {
    const std::string model = changed_vit(folder, [](auto& t) { t.erase("head.bias"); });
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"head.bias"});
  }
  SUBCASE("a tensor the forward pass would ignore is refused") {
    const std::string model = changed_vit(folder, [](auto& t) { t["blocks.0.ls1.gamma"] = Tensor({5}); });
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"blocks.0.ls1.gamma"});
  }
  SUBCASE("a truncated file") {
    const std::string model = changed_vit(folder, [](auto&) {});
    fs::resize_file(model + "/model.safetensors", fs::file_size(model + "/model.safetensors") - 1);
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"model.safetensors"});
  }
  SUBCASE("a config of another model") {
    const std::string model = changed_vit(folder, [](auto&) {});
    write_file(model + "/config.json", R"({"architecture": "vit_base_patch16_224", "num_classes": 1000})");
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"cls_token", "768"});
    write_file(model + "/config.json", R"({"architecture": "resnet50"})");
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"resnet50"});
    write_file(model + "/config.json", R"({"model_type": "opt", "model_type": "opt"})");
    check_failure("imagenet --model " + model + " --data data/mini/images/val", 3, {"model_type"});
  }
}

TEST_CASE("cli: language models that are not what their config says") {
  const Folder folder;
  fs::copy("tests/fixtures/bloom_tiny/model.safetensors", folder / "model.safetensors");
  const json config = read_json("tests/fixtures/bloom_tiny/config.json");
  const std::string file = folder / "model.safetensors";
  const auto refused = [&](const char* key, const json& value, std::initializer_list<const char*> parts) {
    json changed = config;
    changed[key] = value;
    write_file(folder / "config.json", changed.dump());
    check_failure("perplexity --model " + folder.path.string() + " --text data/mini/text/test.txt", 3, parts);
  };
  refused("n_layer", 3, {"model.safetensors", "transformer.h.2.input_layernorm.weight", "missing", "config.json"});
  refused("n_layer", 1, {"model.safetensors", "transformer.h.1."});
  refused("hidden_size", 32, {"model.safetensors", "transformer.word_embeddings.weight", "[53, 16]", "[53, 32]"});
  refused("n_head", 5, {"config.json", "num_attention_heads"});
  refused("model_type", "opt", {"config.json", "num_hidden_layers"});
  refused("model_type", "gpt_neox", {"config.json", "gpt_neox"});
  refused("quantization_config", {{"bits", 4}}, {"config.json", "quantization_config"});

  fs::copy("tests/fixtures/opt_tiny/model.safetensors", file, fs::copy_options::overwrite_existing);
  json opt = read_json("tests/fixtures/opt_tiny/config.json");
  opt["activation_function"] = "silu";
  write_file(folder / "config.json", opt.dump());
  check_failure("perplexity --model " + folder.path.string() + " --text data/mini/text/test.txt", 3,
                {"config.json", "activation_function", "silu", "gelu_new"});
}

TEST_CASE("cli: a NaN in a weight file") {
  // The writer refuses NaN, so the bytes are changed in the file.
  const Folder folder;
  const std::string model = changed_vit(folder, [](auto&) {});
  const std::string path = model + "/model.safetensors";
  std::string bytes = read_file(path);
  const uint32_t nan = 0x7fc00000;
  bytes.replace(bytes.size() - 4, 4, reinterpret_cast<const char*>(&nan), 4);
  write_file(path, bytes);
  check_failure("imagenet --model " + model + " --data data/mini/images/val", 3,
                {"model.safetensors", "pos_embed", "NaN"});
}

TEST_CASE("cli: data that are not what they have to be") {
  const Folder folder;
  const std::string json_path = folder / "result.json";
  const std::string on_folder =
      "imagenet --model data/mini/vit --data " + folder.path.string() + " --json " + json_path;
  check_failure(on_folder, 3, {folder.path.c_str()});  // empty

  fs::copy(kMini + "/images/val", folder.path, fs::copy_options::recursive);
  const auto first_class = *fs::directory_iterator(folder.path);
  const fs::path image = *fs::directory_iterator(first_class.path());
  fs::resize_file(image, fs::file_size(image) / 2);
  check_failure(on_folder, 4, {image.c_str(), "1 of 2000"});  // left out, listed, remembered in the exit code
  const json record = read_json(json_path);
  CHECK(record["images"] == 1999);
  REQUIRE(record["unreadable"].size() == 1);
  CHECK(contains(record["unreadable"][0].get<std::string>(), image.string()));
  check_failure(
      "imagenet --model data/mini/vit --method base-ptq --data data/mini/images/val --calib-images 2000 "
      "--calib-data " +
          folder.path.string(),
      3, {image.c_str()});  // but not in a calibration
  fs::remove_all(first_class.path());
  check_failure(on_folder, 3, {"class"});  // labels would be shifted

  write_file(folder / "short.txt", "too short");
  check_failure("perplexity --model data/mini/opt --text " + folder / "short.txt", 3, {"short.txt", "tokens"});
  write_file(folder / "latin1.txt", "caf\xe9");
  check_failure("perplexity --model data/mini/opt --text " + folder / "latin1.txt", 3, {"latin1.txt", "UTF-8"});
}

TEST_CASE("cli: an archive and a cache give what the folder gives, two runs at once too") {
  const Folder folder;
  REQUIRE(std::system(("tar -cf " + folder / "val.tar" + " -C data/mini/images val").c_str()) == 0);
  const auto evaluate = [&](const std::string& data, const std::string& cache, const std::string& name) {
    const Result r =
        run("imagenet --model data/mini/vit --limit 60 --data " + data + cache + " --json " + folder / name);
    CHECK(r.code == 0);
    json record = read_json(folder / name);
    for (const char* differs : {"seconds", "peak_rss_mb", "data"}) record.erase(differs);
    return record;
  };
  const json plain = evaluate(kMini + "/images/val", "", "plain.json");
  CHECK(plain.contains("jpeg_decoder"));
  const std::string cache = " --cache " + folder / "cache";
  json one, two;
  std::thread other([&] { two = evaluate(folder / "val.tar", cache, "two.json"); });
  one = evaluate(folder / "val.tar", cache, "one.json");
  other.join();
  CHECK(one == plain);
  CHECK(two == plain);
  CHECK(evaluate(folder / "val.tar", cache, "three.json") == plain);
  fs::resize_file(folder / "val.tar", 100000);
  check_failure("imagenet --model data/mini/vit --data " + folder / "val.tar" + cache, 3, {"val.tar", "truncated"});
}

TEST_CASE("cli: forward refuses wrong inputs and leaves nothing behind") {
  const Folder folder;
  const std::string input = folder / "in.safetensors", output = folder / "out.safetensors";
  const std::string command = "forward --model data/mini/vit --input " + input + " --output " + output;
  write_safetensors(input, {{"pixels", Tensor({1, 3, 28, 28})}});
  check_failure(command, 3, {"pixel_values"});
  write_safetensors(input, {{"pixel_values", Tensor({1, 3, 32, 32})}});
  check_failure(command, 3, {"[1, 3, 32, 32]", "28"});
  CHECK_FALSE(fs::exists(output));

  write_safetensors(input, {{"pixel_values", Tensor({2, 3, 28, 28})}});
  check_failure("forward --model data/mini/vit --input " + input + " --output /nowhere/out.safetensors", 1,
                {"/nowhere/out.safetensors"});
  CHECK(run(command).code == 0);
  CHECK(SafeTensors::open(output).get("logits", {2, 10}).size() == 20);
}

TEST_CASE("cli: a vision record says everything, and threads and batch size change nothing") {
  const Folder folder;
  const std::string common = kVit +
                             "--limit 40 --calib-data data/mini/images/calib --calib-images 4 --bc-images 4 "
                             "--method ptq4vit --wbits 6 --abits 6 --bc channel --json ";
  REQUIRE(run(common + folder / "a.json" + " --threads 1 --batch-size 1").code == 0);
  REQUIRE(run(common + folder / "b.json" + " --threads 2 --batch-size 16").code == 0);
  const json a = read_json(folder / "a.json");
  for (const char* key :
       {"model", "method", "wbits", "abits", "groupsize", "bc", "top1", "top1_se", "top5", "images", "seconds",
        "bits_per_weight", "bc_parameters", "threads", "isa", "blas", "version", "seed", "calib_images"})
    CHECK_MESSAGE(a.contains(key), key);
  CHECK(a["images"] == 40);
  CHECK(a["bc_parameters"] > 0);
  CHECK(a["bits_per_weight"] > 6.0);
  CHECK(a["bits_per_weight"] < 6.1);
  CHECK(result_of(folder / "a.json") == result_of(folder / "b.json"));
}

TEST_CASE("cli: every embedded vision model gives one record, whatever the threads and the batch size") {
  const Folder folder;
  for (const std::string name : {"vit", "deit", "swin"}) {
    if (!fs::exists(kMini + "/" + name)) continue;
    for (const std::string method :
         {"fp32", "base-ptq --wbits 4 --abits 4 --bc position --bc-images 3 --calib-images 2"}) {
      CAPTURE(name);
      CAPTURE(method);
      const std::string command = "imagenet --model data/mini/" + name +
                                  " --data data/mini/images/val --limit 20 --calib-data data/mini/images/calib " +
                                  "--method " + method + " --json ";
      REQUIRE(run(command + folder / "a.json" + " --threads 1 --batch-size 1").code == 0);
      REQUIRE(run(command + folder / "b.json" + " --threads 2 --batch-size 16").code == 0);
      CHECK(result_of(folder / "a.json") == result_of(folder / "b.json"));
    }
  }
}

TEST_CASE("cli: every choice of the quantizers is in the help, changes the record, and is refused when wrong") {
  const Folder folder;
  const Result help = run("imagenet --help");
  const std::pair<const char*, const char*> choices[] = {{"metric", "l2"},
                                                         {"probe", "noise"},
                                                         {"probe-draws", "1"},
                                                         {"softmax-twin", "clean"},
                                                         {"gelu-twin", "aligned"},
                                                         {"conv-intervals", "layer"},
                                                         {"pixels", "quantized"},
                                                         {"matmul-intervals", "layer"},
                                                         {"eq-alpha", "0.5"},
                                                         {"eq-beta", "2"},
                                                         {"eq-n", "4"},
                                                         {"search-rounds", "1"},
                                                         {"calibration", "sequential"}};
  std::string all;
  for (const auto& choice : choices) {
    const std::string name = choice.first, value = choice.second;
    CHECK_MESSAGE(contains(help.out, "--" + name), name);
    all += " --" + name + " " + value;
  }
  CHECK(contains(help.out, "base-ptq, easyquant: 0.5"));  // the presets' own defaults
  const std::string common = kVit + "--limit 2 --calib-data data/mini/images/calib --calib-images 2 --method ptq4vit";
  REQUIRE(run(common + all + " --json " + folder / "r.json").code == 0);
  const json record = read_json(folder / "r.json");
  for (const auto& choice : choices) {
    std::string key = choice.first;
    const std::string value = choice.second;
    std::replace(key.begin(), key.end(), '-', '_');
    REQUIRE_MESSAGE(record.contains(key), key);
    const json& kept = record[key];
    if (kept.is_string()) CHECK(kept == value);
    if (kept.is_number()) CHECK(kept.get<double>() == std::stod(value));
  }
  for (const char* wrong :
       {" --eq-alpha 0", " --eq-n zero", " --gelu-twin clean", " --eq-beta 0.001", " --bc-batch 0 --bc channel"})
    CHECK_MESSAGE(run(common + wrong).code == 2, wrong);
}

TEST_CASE("cli: the search for outputs to compensate ranks 32 choices on images it was not fitted on") {
  const Folder folder;
  const std::string common = kVit +
                             "--limit 2 --calib-data data/mini/images/calib --calib-images 2 --bc-images 4 --eq-n 4 "
                             "--method ptq4vit --wbits 4 --abits 4 --bc channel --bc-search ";
  const Result r = run(common + "--bc-search-images 8 --json " + folder / "r.json");
  REQUIRE(r.code == 0);
  CHECK(contains(r.out, "conv,linear,matmul"));
  const json record = read_json(folder / "r.json");
  const json& ranking = record["bc_search"];
  REQUIRE(ranking.size() == 32);
  std::set<std::string> sites;
  for (size_t i = 0; i < 32; ++i) {
    sites.insert(ranking[i]["sites"].get<std::string>());
    if (i > 0) CHECK(ranking[i]["kl"].get<double>() >= ranking[i - 1]["kl"].get<double>());
  }
  CHECK(sites.size() == 32);
  CHECK(sites.count("conv,linear,matmul,attention,mlp,block,model") == 1);
  CHECK(sites.count("") == 1);
  CHECK(record["bc_sites"] == ranking[0]["sites"]);
  CHECK(record["bc_parameters"] == ranking[0]["values"]);
  CHECK(run(common + "--bc-images 320").code == 2);  // none left to select on
  CHECK(run(common + "--bc none").code == 2);
  CHECK(run(common + "--bc-sites linear").code == 2);
}

TEST_CASE("cli: the table goes on where it was stopped, and says what was not run") {
  const Folder folder;
  fs::create_directories(folder / "mini");
  for (const char* name : {"vit", "images"})
    fs::copy(kMini + "/" + name, folder / "mini/" + name, fs::copy_options::recursive);
  const std::string command =
      "table --limit 4 --calib-images 1 --bc-images 1 --eq-n 4 --search-rounds 1 --probe-draws 1 --mini " +
      folder / "mini" + " --out " + folder / "cells" + " --json ";
  const Result first = run(command + folder / "a.json");
  REQUIRE(first.code == 0);
  const json a = read_json(folder / "a.json")["rows"];
  REQUIRE(a.size() == 16);  // the float model, and five cells at each of three widths
  for (const json& row : a) CHECK(row["state"] == "measured");
  CHECK(contains(first.err, "(cell 16 of 16)"));
  CHECK(contains(run(command + folder / "b.json").out, "| 4/4   | PTQ4ViT + BC (channel)"));
  // One cell is lost, one is of other settings, one of another version, one is damaged: these are measured again.
  const auto cell = [&](const char* name) { return folder / "cells/vit-" + name + ".json"; };
  fs::remove(cell("4-ptq4vit-channel"));
  for (const auto& [name, key] : {std::pair{"8-base-ptq-none", "limit"}, std::pair{"6-easyquant-none", "version"}}) {
    json changed = read_json(cell(name));
    changed["settings"][key] = "other";
    write_file(cell(name), changed.dump());
  }
  fs::resize_file(cell("8-ptq4vit-none"), 100);
  const Result second = run(command + folder / "b.json");
  REQUIRE(second.code == 0);
  CHECK(contains(second.err, "(cell 4 of 4)"));
  for (const char* part : {"4/4 PTQ4ViT + BC (channel)", "8/8 BasePTQ", "6/6 EasyQuant", "8/8 PTQ4ViT",
                           "of another run (limit)", "of another run (version)", "not valid JSON"})
    CHECK_MESSAGE(contains(second.err, part), part);
  const json b = read_json(folder / "b.json")["rows"];
  for (size_t i = 0; i < a.size(); ++i) CHECK(a[i]["record"]["top1"] == b[i]["record"]["top1"]);
  // Another option or other weights: nothing of the cells they touch is used.
  CHECK(contains(run(command + folder / "b.json --bc-seed 4").err, "(cell 6 of 6)"));
  const std::string weights = folder / "mini/vit/model.safetensors";
  std::string bytes = read_file(weights);
  bytes[bytes.size() - 2] ^= 1;
  write_file(weights, bytes);
  CHECK(contains(run(command + folder / "b.json --bc-seed 4").err, "(cell 16 of 16)"));

  fs::create_directories(folder / "models/deit_small_patch16_224");
  const Result nothing = run("table --models " + folder / "models" + " --imagenet " + folder / "models" + " --out " +
                             folder / "none" + " --json " + folder / "none.json");
  CHECK(nothing.code == 4);  // a folder without a checkpoint: the others are still shown
  CHECK(contains(nothing.out, "| 4/4   | PTQ4ViT + BC (position)  | ViT-B*  | 68.29 | not run |"));
  CHECK(contains(nothing.out, "| DeiT-S  | 67.47 |  failed |"));
  const json none = read_json(folder / "none.json");
  CHECK(none["rows"].size() == 160);
  CHECK(none["notes"].dump().find("+36.89") != std::string::npos);
}

TEST_CASE("cli: the language tables go on where they were stopped, and say what was not run") {
  const Folder folder;
  const std::string common = "table language --limit 1 --seqlen 16 --nsamples 2 --out " + folder / "cells" + " --json ";
  const Result first = run(common + folder / "a.json");
  CAPTURE(first.err);
  REQUIRE(first.code == 0);
  const json a = read_json(folder / "a.json")["rows"];
  REQUIRE(a.size() % 13 == 0);  // the float model, and four cells at each of three widths
  for (const json& row : a) CHECK(row["record"]["perplexity"] > 1);
  fs::remove(folder / "cells/opt-3-gptq-channel-plain.json");
  const Result second = run(common + folder / "b.json");
  REQUIRE(second.code == 0);
  CHECK(contains(second.err, "opt 3 GPTQ + BC (channel), plain"));
  CHECK_FALSE(contains(second.err, "RTN"));
  const json b = read_json(folder / "b.json")["rows"];
  for (size_t i = 0; i < a.size(); ++i) CHECK(a[i]["record"]["perplexity"] == b[i]["record"]["perplexity"]);

  // A model and one text, no calibration text: the float model and RTN are measured on it.
  fs::create_directories(folder / "hub/facebook");
  fs::copy(kMini + "/opt", folder / "hub/facebook/opt-125m", fs::copy_options::recursive);
  fs::create_directories(folder / "texts/wikitext-2-raw");
  fs::copy(kMini + "/text/test.txt", folder / "texts/wikitext-2-raw/wiki.test.raw");
  const Result groups = run("table groups --limit 1 --seqlen 16 --models " + folder / "hub" + " --corpora " +
                            folder / "texts" + " --out " + folder / "groups --json " + folder / "g.json");
  CAPTURE(groups.err);
  REQUIRE(groups.code == 0);
  int measured = 0;
  const json table = read_json(folder / "g.json");
  for (const json& row : table["rows"]) measured += row["record"].is_null() ? 0 : 1;
  CHECK(measured == 4);
  CHECK(contains(groups.out,
                 "| 4g128 | AWQ                      | OPT-125M   | c4        |   25.90 |          paper only |"));
  CHECK(contains(groups.out,
                 "| 2g64  | GPTQ + BC (position)     | BLOOM-560M | ptb       |  178.73 |             not run |"));
  check_failure("table language --models " + folder / "hub", 2, {"--corpora"});
}

TEST_CASE("cli: a layer report has a row for every output, in both forms") {
  const Folder folder;
  const std::string common = kVit +
                             "--limit 4 --calib-data data/mini/images/calib --calib-images 2 --bc-images 4 "
                             "--method base-ptq --wbits 4 --abits 4 --bc channel --layer-report ";
  REQUIRE(run(common + folder / "r.json").code == 0);
  REQUIRE(run(common + folder / "r.csv").code == 0);
  const json rows = read_json(folder / "r.json");
  REQUIRE(rows.size() == 75);  // 8 blocks of 6 products, attention, MLP and itself; embedding, head and the network
  for (const json& row : rows) {
    if (row["op"].is_null()) continue;  // an output of several products, which were compensated one by one
    CHECK(row["mse_after"].get<double>() <= row["mse_before"].get<double>());
    CHECK(row["b"]["intervals"].size() >= 1);
    CHECK(row["search_seconds"].get<double>() > 0);
    CHECK(row["sqnr_before_db"].get<double>() ==
          doctest::Approx(10 * std::log10(row["signal"].get<double>() / row["mse_before"].get<double>())));
  }
  CHECK(rows[0]["output"] == "patch_embed.proj");
  CHECK(rows.back()["output"] == "model");
  const std::string csv = read_file(folder / "r.csv");
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 76);
  CHECK(csv.rfind("output,kind,op,signal,mse_before,", 0) == 0);
  CHECK(run(kVit + "--layer-report x.csv").code == 2);
}

TEST_CASE("cli: a language record says everything, and threads change nothing") {
  const Folder folder;
  const std::string common =
      "perplexity --model data/mini/opt --text data/mini/text/test.txt --limit 4 --calib-text "
      "data/mini/text/calib.txt --nsamples 4 --method gptq --wbits 3 --bc channel --act-order --groupsize 64 --mse "
      "--layer-bits fc2=4 --exclude ^layers.0.self_attn --json ";
  REQUIRE(run(common + folder / "a.json" + " --threads 1").code == 0);
  REQUIRE(run(common + folder / "b.json" + " --threads 2").code == 0);
  const json a = read_json(folder / "a.json"), b = read_json(folder / "b.json");
  for (const char* key : {"model",
                          "method",
                          "wbits",
                          "abits",
                          "groupsize",
                          "bc",
                          "perplexity",
                          "perplexity_se",
                          "tokens",
                          "seconds",
                          "bits_per_weight",
                          "bc_parameters",
                          "threads",
                          "isa",
                          "blas",
                          "version",
                          "seqlen",
                          "seed",
                          "nsamples",
                          "text_token_hash",
                          "text_definition",
                          "bos",
                          "calib_token_hash"})
    CHECK_MESSAGE(a.contains(key), key);
  CHECK(a["perplexity"] == b["perplexity"]);
  CHECK(a["windows"] == 4);
  CHECK(a["act_order"] == true);
  CHECK(a["mse"] == 2.4);
  CHECK(a["layer_bits"].size() == 10);
  CHECK(a["layer_bits"]["layers.5.fc2"] == 4);
  CHECK(a["layer_bits"]["layers.0.self_attn.k_proj"] == 32);
}

TEST_CASE("cli: several texts and definitions in one run, each beside the float model") {
  const Folder folder;
  std::string ids;
  for (int i = 0; i < 40; ++i) ids += std::to_string(2 + i) + " ";
  write_file(folder / "ids", ids);
  const Result r =
      run("perplexity --model data/mini/opt --seqlen 16 --limit 2 --text data/mini/text/test.txt "
          "wikitext2=data/mini/text/test.txt --tokens " +
          folder / "ids" + " --ppl-def gptq,byte --method rtn --wbits 3 --paired --json " + folder / "r.json");
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  const json records = read_json(folder / "r.json");
  REQUIRE(records.size() == 3);
  CHECK(records[0]["text_definition"] == "plain");
  CHECK(records[1]["text_definition"] == "wikitext2");
  CHECK(records[0]["text_tokens"] < records[1]["text_tokens"]);  // of "\n\n" between rows
  CHECK(records[2]["text_tokens"] == 40);
  CHECK(records[2]["bos"].is_null());
  for (const json& record : records) {
    CHECK(record["perplexity"] == record["perplexities"]["gptq"]["perplexity"]);
    CHECK(record["perplexities"]["byte"]["change_percent"] > 0);
    CHECK(contains(r.out, record["text_token_hash"].get<std::string>()));
  }
  write_file(folder / "ids", "2 3 5000 4");
  check_failure("perplexity --model data/mini/opt --seqlen 4 --tokens " + folder / "ids", 3, {"5000"});
  write_file(folder / "test.parquet", "PAR1");
  check_failure("perplexity --model data/mini/opt --text " + folder / "test.parquet", 3, {"Parquet", "to_json"});
}

TEST_CASE("cli: a config with the required keys alone is enough") {
  const Folder folder;
  fs::copy(kMini + "/opt/model.safetensors", folder / "model.safetensors");
  json config = {{"model_type", "opt"}};
  const json full = read_json(kMini + "/opt/config.json");
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size", "max_position_embeddings"})
    config[key] = full.at(key);
  write_file(folder / "config.json", config.dump());
  // Integers are beyond our writer, so the ids are a header and bytes: input_ids [1, 2] I64.
  std::string header = R"({"input_ids":{"dtype":"I64","shape":[1,2],"data_offsets":[0,16]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size(), ids[2] = {2, 20};
  std::string bytes(reinterpret_cast<const char*>(&length), 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(ids), sizeof ids);
  write_file(folder / "in.safetensors", bytes);
  const Result r = run("forward --model " + folder.path.string() + " --input " + folder / "in.safetensors" +
                       " --output " + folder / "out.safetensors");
  CAPTURE(r.err);
  REQUIRE(r.code == 0);
  CHECK(SafeTensors::open(folder / "out.safetensors").get("logits").shape == Shape{1, 2, 2048});
}

// ---- Saved models -------------------------------------------------------------------------------

namespace {

const std::string kText = " --text data/mini/text/test.txt --limit 3";
const std::string kCalib = " --calib-text data/mini/text/calib.txt --nsamples 4";

json perplexity(const std::string& options) {
  const Result r = run("perplexity" + options + kText + " --json -");
  CAPTURE(options);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  return parse_json(r.out, "stdout");
}

}  // namespace

TEST_CASE("perplexity: a saved model is measured as when it was made, to the last digit") {
  for (const std::string options :
       {"--method gptq --wbits 3 --groupsize 32 --act-order --sym --bc channel --format gptq",
        "--method gptq --wbits 5 --groupsize 24 --bc channel --scales f16", "--method rtn --wbits 4 --bc position"}) {
    const Folder folder;
    const std::string saved = folder / "saved";
    const json made = perplexity(" --model " + kMini + "/opt " + options + kCalib + " --save " + saved);
    const json again = perplexity(" --model " + saved);
    CHECK(again["perplexity"] == made["perplexity"]);
    CHECK(again["method"] == "stored");
    for (const char* key : {"wbits", "groupsize", "sym", "scales", "parameters"}) CHECK(again[key] == made[key]);
    const bool smaller = made["saved"]["bytes"] < made["saved"]["bytes_before"];
    CHECK(smaller == (made["bc"] != "position"));  // 128 values for each of a bias
    CHECK(made["saved"]["bits_per_weight"] > made["wbits"]);
    CHECK(contains(run("perplexity --model " + saved + kText).out, "stored " + made["wbits"].dump() + " bit"));
    check_failure("perplexity --model " + saved + kText + " --method rtn", 2, {"quantized already", "--method"});
  }
}

TEST_CASE("perplexity: what cannot be saved is refused at once") {
  const Folder folder;
  const std::string start = "perplexity --model " + kMini + "/opt" + kText + kCalib + " --save " + folder / "x";
  check_failure(start, 2, {"--method"});
  check_failure(start + " --method rtn --format gptq --bc position", 2, {"bias per position", "--format bcq"});
  check_failure(start + " --method rtn --format gptq --wbits 6", 2, {"6 bits", "layers.0.self_attn.q_proj"});
  check_failure(start + " --method rtn --format gptq --layer-bits fc1=5", 2, {"5 bits", "layers.0.fc1"});
  check_failure("perplexity --model " + kMini + "/opt" + kText + " --method rtn --save " + kMini + "/opt --force", 2,
                {"the model itself"});
  check_failure("perplexity --model " + kMini + "/opt" + kText + " --method rtn --resume", 2, {"--save"});
  CHECK(fs::is_empty(folder.path));
}

TEST_CASE("perplexity: killed after any block and resumed, the same bytes") {
  const Folder folder;
  const std::string options =
      "--model " + kMini + "/opt" + kText + kCalib + " --method gptq --wbits 3 --bc channel --save ";
  REQUIRE(run("perplexity " + options + folder / "whole").code == 0);
  const std::string saved = folder / "saved", partial = saved + ".partial";
  const char* bin = std::getenv("BCQ_BIN");
  const std::string program = std::string(bin ? bin : "build/bin") + "/perplexity ";
  int resumed = 0;
  for (const int block : {0, 2, 4}) {  // killed when it is there, each time further
    const pid_t child = fork();
    if (child == 0) {
      const std::string line = "exec " + program + options + saved + (block ? " --resume" : "") + " >/dev/null 2>&1";
      execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
      _exit(127);
    }
    const std::string wanted = partial + "/GPTQ-000" + std::to_string(block) + ".safetensors";
    int status = 0;
    while (!fs::exists(wanted) && waitpid(child, &status, WNOHANG) == 0) usleep(500);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    resumed += WIFSIGNALED(status) && fs::exists(partial);
  }
  CHECK(resumed == 3);
  CHECK_FALSE(fs::exists(saved));
  check_failure("perplexity " + options + saved, 2, {"interrupted", "--resume"});
  check_failure("perplexity " + options + saved + " --resume --percdamp 0.02", 2,
                {"another run", "percdamp 0.01 instead of 0.02"});
  REQUIRE(run("perplexity " + options + saved + " --resume").code == 0);
  CHECK_FALSE(fs::exists(partial));
  for (const char* file : {"model.safetensors", "config.json", "tokenizer.json"})
    CHECK(read_file(saved + "/" + file) == read_file(folder / "whole/" + file));
}
