// The programs for images, and what all programs have: exit codes, messages that name what is wrong, whole or no
// output files, and results that do not depend on threads or batch size.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <thread>

#include "tests/cli.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::cli;

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
      3, {image.c_str()});             // but not in a calibration
  fs::remove_all(first_class.path());  // the others are named as classes of the model, and keep their labels
  CHECK(run(on_folder).code == 0);
  CHECK(read_json(json_path)["labelled_by"] == "the model's labels");
  std::vector<fs::path> classes;
  for (const auto& entry : fs::directory_iterator(folder.path))
    if (entry.is_directory()) classes.push_back(entry.path());
  for (const fs::path& path : classes) fs::rename(path, path.string() + " of another set");
  check_failure(on_folder, 3, {"class"});  // by their rank the labels would be shifted

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
    for (const char* differs : {"seconds", "evaluation_seconds", "peak_rss_mb", "data"}) record.erase(differs);
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

TEST_CASE("cli: forward refuses wrong inputs, leaves nothing behind, and times itself") {
  const Folder folder;
  const std::string input = folder / "in.safetensors", output = folder / "out.safetensors";
  const std::string command = "forward --model data/mini/vit --input " + input + " --output " + output;
  write_safetensors(input, {{"pixels", Tensor({1, 3, 28, 28})}});
  check_failure(command, 3, {"pixel_values"});
  write_safetensors(input, {{"pixel_values", Tensor({1, 3, 32, 32})}});
  check_failure(command, 3, {"[1, 3, 32, 32]", "28"});
  CHECK_FALSE(fs::exists(output));

  write_safetensors(input, {{"pixel_values", Tensor({2, 3, 28, 28})}});
  check_failure("forward --model data/mini/vit --input " + input + " --output /nowhere/out.safetensors", 2,
                {"/nowhere/out.safetensors"});  // before the work
  CHECK(run(command).code == 0);
  const Tensor once = SafeTensors::open(output).get("logits", {2, 10});

  CHECK(run(command + " --repeats 2 --json " + folder / "time.json").code == 0);
  CHECK(test::same_bits(SafeTensors::open(output).get("logits", {2, 10}), once));
  const json time = read_json(folder / "time.json");
  CHECK(time["ms"].get<double>() > 0);
  CHECK(time["repeats"] == 2);
  for (const char* key : {"model", "version", "threads", "isa", "blas", "peak_rss_mb"}) CHECK(time.contains(key));

  CHECK(run(command + " --integer-bits 8").code == 0);
  const double error = test::relative_error(SafeTensors::open(output).get("logits"), once);
  CHECK(error > 0);
  CHECK(error < 0.05);
  check_failure(command + " --integer-bits 9", 2, {"--integer-bits"});
  check_failure(command + " --repeats -1", 2, {"--repeats"});
  check_failure(command + " --json " + folder / "time.json", 2, {"--repeats"});
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
       {" --eq-alpha 0", " --eq-n zero", " --gelu-twin clean", " --eq-beta 0.001", " --bc-batch 0 --bc channel",
        " --swin-mask none", " --bc channel --bc-sites attention --bc-stream quantized --swin-mask official"})
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

TEST_CASE("cli: of rows that --only picks, BC is set beside the same method at the same width or beside nothing") {
  const Folder folder;
  fs::create_directories(folder / "mini");
  for (const char* name : {"opt", "text"})
    fs::copy(kMini + "/" + name, folder / "mini/" + name, fs::copy_options::recursive);
  const Result r = run("table language --limit 2 --nsamples 2 --only '^4-gptq-(none|channel)|^3-gptq-channel' --mini " +
                       folder / "mini" + " --out " + folder / "cells" + " --json " + folder / "t.json");
  REQUIRE(r.code == 0);
  const json rows = read_json(folder / "t.json")["rows"];
  REQUIRE(rows.size() == 4);  // the float model, 4 bits without and with, 3 bits with
  CHECK(rows[2]["bc_change_percent"].is_number());
  CHECK(rows[3]["change_percent"].is_number());
  CHECK_FALSE(rows[3]["bc_change_percent"].is_number());
}

TEST_CASE("cli: the table goes on where it was stopped, and says what was not run") {
  const Folder folder;
  fs::create_directories(folder / "mini");
  for (const char* name : {"vit", "images"})
    fs::copy(kMini + "/" + name, folder / "mini/" + name, fs::copy_options::recursive);
  const std::string command =
      "table --limit 4 --calib-images 1 --bc-images 1 --eq-n 4 --search-rounds 1 --probe-draws 1 "
      "--only '^[0-9]-(base|easy|ptq|repq|joint)' --mini " +
      folder / "mini" + " --out " + folder / "cells" + " --json ";
  const Result first = run(command + folder / "a.json");
  REQUIRE(first.code == 0);
  const json a = read_json(folder / "a.json")["rows"];
  REQUIRE(a.size() == 22);  // the float model, five cells at each of three widths, three more at two of them
  for (const json& row : a) CHECK(row["state"] == "measured");
  CHECK(contains(first.err, "(cell 22 of 22)"));
  CHECK(contains(run(command + folder / "b.json").out, "| 4/4   | PTQ4ViT + BC (channel)"));
  CHECK(contains(run("table --only awq --mini " + folder / "mini" + " --out " + folder / "none").err, "no row has"));
  // One cell is lost, one is of other settings, one of another version, one is damaged: these are measured again.
  const auto cell = [&](const char* name) { return folder / "cells/vit-" + name + ".json"; };
  fs::remove(cell("4-ptq4vit-channel"));
  for (const auto& [name, key] : {std::pair{"8-base-ptq-none", "limit"}, std::pair{"6-easyquant-none", "version"}}) {
    json changed = read_json(cell(name));
    changed["settings"][key] = "other";
    write_file(cell(name), changed.dump());
  }
  fs::resize_file(cell("8-ptq4vit-none"), 100);
  json damaged = read_json(cell("6-base-ptq-none"));
  damaged["top1"] = "much";
  write_file(cell("6-base-ptq-none"), damaged.dump());
  const Result second = run(command + folder / "b.json");
  REQUIRE(second.code == 0);
  CHECK(contains(second.err, "(cell 5 of 5)"));
  for (const char* part :
       {"4/4 PTQ4ViT + BC (channel)", "8/8 BasePTQ", "6/6 EasyQuant", "8/8 PTQ4ViT", "of another run (limit)",
        "of another run (version)", "not valid JSON", "key \"top1\" has the wrong type"})
    CHECK_MESSAGE(contains(second.err, part), part);
  const json b = read_json(folder / "b.json")["rows"];
  CHECK(undisturbed(a) == undisturbed(b));  // the warnings of this run belong to files, not to cells
  // Another option or other weights: nothing of the cells they touch is used.
  CHECK(contains(run(command + folder / "b.json --bc-seed 4").err, "(cell 8 of 8)"));
  const std::string weights = folder / "mini/vit/model.safetensors";
  std::string bytes = read_file(weights);
  bytes[bytes.size() - 2] ^= 1;
  write_file(weights, bytes);
  CHECK(contains(run(command + folder / "b.json --bc-seed 4").err, "(cell 22 of 22)"));

  fs::create_directories(folder / "models/deit_small_patch16_224");
  const Result nothing = run("table --models " + folder / "models" + " --imagenet " + folder / "models" + " --out " +
                             folder / "none" + " --json " + folder / "none.json");
  CHECK(nothing.code == 4);  // a folder without a checkpoint: the others are still shown
  std::string rows;          // with one space for each run of them
  std::unique_copy(nothing.out.begin(), nothing.out.end(), std::back_inserter(rows),
                   [](char a, char b) { return a == ' ' && b == ' '; });
  CHECK(contains(rows, "| 4/4 | PTQ4ViT + BC (position) | ViT-B* | 68.29 | not run |"));
  CHECK(contains(rows, "| DeiT-S | 67.47 | failed |"));
  CHECK(contains(rows, "| 8/8 | APQ-like | DeiT-S | 79.78 | failed |"));
  const json none = read_json(folder / "none.json");
  CHECK(none["rows"].size() == 330);
  CHECK(none["notes"].dump().find("+36.89") != std::string::npos);
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
    const bool is_product = row["kind"] == "linear" || row["kind"] == "matmul";
    REQUIRE(row["histogram"].is_object() == is_product);
    if (is_product) {
      const auto levels = row["histogram"]["levels"].get<std::vector<double>>();
      CHECK(levels.size() <= (row["kind"] == "linear" ? 16 : 16 * 8));  // a grid a head
      CHECK(levels.size() >= 2);
      CHECK(std::is_sorted(levels.begin(), levels.end()));
      CHECK(row["histogram"]["lo"] < row["histogram"]["hi"]);
      int64_t values = 0;
      for (const json& count : row["histogram"]["counts"]) values += count.get<int64_t>();
      CHECK(values >= 250);
    }
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
