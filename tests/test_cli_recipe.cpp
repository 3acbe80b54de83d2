// The recipe of the programs, and what is refused before any work: counts, outputs, files that are no recipes.
#include "tests/cli.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::cli;

namespace {

const std::string kImages = kVit + "--limit 20 --calib-data data/mini/images/calib ";
const std::string kText =
    "perplexity --model data/mini/opt --text data/mini/text/test.txt --limit 2 --calib-text data/mini/text/calib.txt ";

json record_of(const std::string& command) {
  const Result r = run(command + " --json -");
  CAPTURE(command);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  return parse_json(r.out, "stdout");
}

}  // namespace

TEST_CASE("cli: the recipe of a result, given back, makes the same result") {
  const Folder folder;
  const std::string file = " --recipe " + folder / "r.json";
  const json image = record_of(kImages +
                               "--method easyquant --wbits 4 --abits 6 --calib-images 2 --eq-n 4 --search-rounds 1 "
                               "--bc channel --bc-images 3 --bc-batch 2 --bc-seed 5 --runtime integer");
  write_file(folder / "r.json", image.dump());
  const json same = record_of(kImages + file);
  CHECK(same["outputs_hash"] == image["outputs_hash"]);
  CHECK(same["recipe"] == image["recipe"]);
  const json other = record_of(kImages + file + " --bc none");  // what the command line says wins
  CHECK(other["bc"] == "none");
  CHECK(other["eq_n"] == 4);
  CHECK(other["outputs_hash"] != image["outputs_hash"]);

  for (const std::string options :
       {"--seed 1 --nsamples 3 --method gptq --wbits 3 --groupsize 32 --act-order --mse --layer-bits fc2=4 --exclude "
        "'^layers.0.' --bc "
        "channel",
        "--method rtn --wbits 2 --groupsize 64 --sym --scales f16",
        "--seed 1 --nsamples 3 --method gptq --wbits 2 --hessian centred "
        "--bc position --bc-stream quantized --true-sequential --target float --refine 2"}) {
    const json text = record_of(kText + "--seqlen 64 " + options);
    write_file(folder / "r.json", text.at("recipe").dump());  // a bare recipe
    const json again = record_of(kText + file);
    CHECK(again["perplexity"] == text["perplexity"]);
    CHECK(again["recipe"] == text["recipe"]);
  }
  // A checkpoint's rounding is part of the recipe, whether it is saved again or not.
  const json saved = record_of(kText +
                               "--nsamples 3 --seqlen 64 --method gptq --groupsize 32 --bc channel --format gptq "
                               "--save " +
                               folder / "saved");
  write_file(folder / "r.json", saved.dump());
  CHECK(record_of(kText + file)["perplexity"] == saved["perplexity"]);
}

TEST_CASE("cli: --print-recipe writes what --recipe reads, and needs no model") {
  const Folder folder;
  for (const std::string command : {"imagenet --method ptq4vit --wbits 4 --bc position --metric l2",
                                    "perplexity --method gptq --wbits 3 --mse 2", "imagenet", "perplexity"}) {
    const Result r = run(command + " --print-recipe");
    REQUIRE(r.code == 0);
    write_file(folder / "r.json", r.out);
    const std::string program = command.substr(0, command.find(' '));
    CHECK(run(program + " --print-recipe --recipe " + folder / "r.json").out == r.out);
  }
  const json printed = parse_json(run("imagenet --method base-ptq --wbits 6 --print-recipe").out, "stdout");
  CHECK(printed["metric"] == "cosine");
  CHECK(printed["wbits"] == 6);
}

TEST_CASE("cli: files that are no recipes are refused with their keys") {
  const Folder folder;
  const std::string file = folder / "r.json";
  const auto refused = [&](const std::string& program, const std::string& text,
                           std::initializer_list<const char*> parts) {
    write_file(file, text);
    check_failure(program + " --recipe " + file, 3, parts);
  };
  refused("imagenet", R"({"method": "ptq4vit", "wbit": 4})", {"r.json", "wbit"});
  refused("imagenet", R"({"method": "awq"})", {"r.json", "method", "awq", "base-ptq"});
  refused("imagenet", R"({"recipe": {"method": "ptq4vit", "abits": "4"}})", {"r.json", "abits", "\"4\""});
  refused("perplexity", R"({"bc_images": 3})", {"r.json", "bc_images", "language"});
  refused("perplexity", R"([1, 2])", {"r.json", "JSON object"});
  refused("perplexity", R"([{"recipe": {"method": "rtn"}}, {"recipe": {"method": "fp"}}])",
          {"r.json", "several recipes"});
  refused("perplexity", "{", {"r.json", "JSON"});
  check_failure("perplexity --recipe " + folder / "none.json", 3, {"none.json"});
  write_file(file, R"({"method": "stored"})");
  check_failure(kText + "--recipe " + file, 2, {"stored", "opt"});
}

TEST_CASE("cli: counts out of their range are wrong usage") {
  const std::string search = kImages + "--method base-ptq --eq-n 2 --bc channel --bc-search ";
  for (const std::string& command : {kVit + "--limit -1",
                                     kVit + "--batch-size 0",
                                     kVit + "--limit 1.5",
                                     kVit + "--limit 99999999999999999999",
                                     kImages + "--method ptq4vit --calib-images 0",
                                     kImages + "--method ptq4vit --bc channel --bc-images -3",
                                     search + "--calib-images 2 --bc-images 321",
                                     search + "--calib-images 2 --bc-images 320",
                                     search + "--bc-search-images 0",
                                     kText + "--seqlen -5",
                                     kText + "--limit -1",
                                     kText + "--method rtn --wbits 9",
                                     kText + "--method rtn --groupsize 9223372036854775807",
                                     kText + "--method rtn --groupsize 0",
                                     kText + "--method gptq --nsamples 0",
                                     kText + "--method gptq --refine -1",
                                     kText + "--method rtn --mse -1",
                                     std::string("generate --model data/mini/opt --prompt a --max-new-tokens -1"),
                                     std::string("table language --limit -2"),
                                     std::string("bench --repeats 0")}) {
    const Result r = run(command);
    CAPTURE(command);
    CAPTURE(r.err);
    CHECK(r.code == 2);
    CHECK(contains(r.err, "--"));
  }
}

TEST_CASE("cli: patterns of any length are looked for without recursion") {
  const std::string names(20000, 'a');
  check_failure(kText + "--method rtn --layer-bits '" + names + "=4'", 2, {"fits none of the layers"});
  check_failure(kText + "--method rtn --exclude '(a|b)*" + names + "'", 2, {"fits none of the layers"});
  check_failure(kText + "--method rtn --exclude '" + std::string(2000, '(') + "'", 2, {"not a regular expression"});
}

TEST_CASE("cli: options that would have no effect are refused by name") {
  const Folder folder;
  check_failure(kVit + "--limit 1 --eq-n 50", 2, {"--eq-n has no effect", "--method fp32"});
  check_failure(kImages + "--method repq-vit --metric l2", 2, {"--metric has no effect", "--method repq-vit"});
  check_failure(kImages + "--method ptq4vit --bc-images 4", 2, {"--bc-images has no effect", "--bc none"});
  check_failure(kImages + "--method ptq4vit --bc-search-images 9", 2, {"--bc-search-images", "--bc-search"});
  check_failure(kText + "--method rtn --percdamp 0.1", 2, {"--percdamp has no effect", "--method rtn"});
  check_failure(kText + "--method gptq --act-scale tensor", 2, {"--act-scale has no effect"});
  check_failure(kText + "--method rtn --force", 2, {"--force", "--save"});
  check_failure(kText + "--method billm --groupsize 64", 2, {"--groupsize has no effect", "--method billm"});
  check_failure(kText + "--method billm --format gptq", 2, {"--format has no effect"});
  check_failure("generate --model data/mini/opt --prompt a --top-k 5", 2, {"--top-k", "--temperature"});
  check_failure(kImages + "--method repq-vit --qwt --bc data-free", 2, {"--qwt", "quantized"});
  check_failure("table groups --calib-separator 3 --out " + folder / "x", 2, {"--calib-separator has no effect"});
  // What a recipe holds of another method, and the command line sets, is no fault.
  const std::string recipe = folder / "r.json";
  write_file(recipe, run(kImages + "--method ptq4vit --eq-n 5 --print-recipe").out);
  CHECK(run(kImages + "--method fp32 --recipe " + recipe).code == 0);
  write_file(recipe, R"({"method": "fp32", "eq_n": 5})");
  check_failure(kImages + "--recipe " + recipe, 3, {"r.json", "\"eq_n\" has no effect", "fp32"});
}

TEST_CASE("cli: data that a method does not need are named, and have to be there") {
  const Result rtn = run(kText + "--method rtn");
  CHECK(rtn.code == 0);
  CHECK(contains(rtn.err, "calib.txt is not read: --method rtn needs no data"));
  const Result fp32 = run(kImages + "--method fp32");
  CHECK(fp32.code == 0);
  CHECK(contains(fp32.err, "calib is not read: --method fp32 needs no data"));
  check_failure("imagenet --model data/mini/vit --data data/mini/images/val --limit 2 --calib-data none/there", 3,
                {"none/there", "no such"});
}

TEST_CASE("cli: what cannot be written to stdout is no success") {
  const char* given = std::getenv("BCQ_BIN");
  const std::string bin = given ? given : "build/bin";
  for (const char* command : {"imagenet --help", "perplexity --print-recipe", "generate --version"})
    CHECK(std::system((bin + "/" + command + " >/dev/full 2>/dev/null").c_str()) != 0);
}

TEST_CASE("cli: a stdout that is closed is no success, and no file takes its place") {
  const Folder folder;
  const std::string json = folder / "r.json";
  for (const char* closed : {">&-", "<&- >&-", "<&- >&- 2>&-"}) {
    const char* bin = std::getenv("BCQ_BIN");
    const std::string line = std::string(bin ? bin : "build/bin") +
                             "/perplexity --model data/mini/opt --limit 1 --text data/mini/text/test.txt --json " +
                             json + " 2>/dev/null " + closed;
    CAPTURE(line);
    const int status = std::system(line.c_str());
    CHECK(WEXITSTATUS(status) == 1);
    CHECK(read_json(json)["windows"] == 1);  // nothing else was written into it
    fs::remove(json);
  }
}

TEST_CASE("cli: where memory is short a program ends and says so") {
  if (test::sanitized()) {
    MESSAGE("skipped: sanitizers need all addresses");
    return;
  }
  for (const int mb : {100, 150, 200, 300, 350, 400, 450}) {
    const Result r =
        run("perplexity --model data/mini/opt --text data/mini/text/test.txt --limit 1 --seqlen 32 --nsamples 2 "
            "--calib-text data/mini/text/calib.txt --method gptq --threads 2",
            format("ulimit -v %d; unset OPENBLAS_NUM_THREADS; timeout -s KILL 120 ", mb * 1024));
    CAPTURE(mb);
    CAPTURE(r.err);
    CHECK((r.code == 0 || r.code == 1));
    CHECK((r.code == 0 || contains(r.err, "out of memory")));
  }
}

TEST_CASE("cli: names that are no UTF-8 do not lose a result") {
  const Folder folder;
  const std::string model = folder / "v\xff";
  fs::copy(kMini + "/vit", model);
  CHECK(
      run("imagenet --model '" + model + "' --data data/mini/images/val --limit 2 --json " + folder / "r.json").code ==
      0);
  CHECK(read_json(folder / "r.json")["images"] == 2);
  const std::string text = folder / "t\xff.txt";
  fs::copy(kMini + "/text/calib.txt", text);
  const Result r =
      run("perplexity --model data/mini/opt --text data/mini/text/test.txt --limit 2 --method gptq --nsamples 2 "
          "--seqlen 32 --calib-text '" +
          text + "' --save " + folder / "saved --json " + folder / "t.json");
  CAPTURE(r.err);
  CHECK(r.code == 0);
  CHECK(contains(read_json(folder / "t.json")["calib_text"], ".txt"));
}

TEST_CASE("cli: a perplexity beyond all numbers is no success") {
  const Folder folder;
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"})
    if (fs::exists(kMini + "/opt/" + name)) fs::copy(kMini + "/opt/" + std::string(name), folder / name);
  const SafeTensors file = SafeTensors::open(kMini + "/opt/model.safetensors");
  std::map<std::string, Tensor> tensors;
  for (const auto& entry : file.tensors()) {
    Tensor t = file.get(entry.first).clone();
    if (contains(entry.first, "decoder.final_layer_norm.weight") || entry.first == "final_layer_norm.weight")
      for (int64_t i = 0; i < t.size(); ++i) t[i] *= 1e6f;
    tensors[entry.first] = t;
  }
  write_safetensors(folder / "model.safetensors", tensors);
  const Result r = run("perplexity --model " + folder.path.string() +
                       " --text data/mini/text/test.txt --limit 2 --json " + folder / "r.json");
  CHECK(r.code == 1);
  CHECK(contains(r.err, "too large for a number"));
  CHECK(read_json(folder / "r.json")["perplexity"].is_null());
}

TEST_CASE("cli: tables read their figures from files, and say which is missing") {
  const Folder folder;
  const char* bin = std::getenv("BCQ_BIN");
  fs::create_directories(folder / "bin");
  fs::copy(std::string(bin ? bin : "build/bin") + "/table", folder / "bin/table");
  const std::string there = "cd " + folder.path.string() + " && bin/table";
  const auto code = [&](const std::string& rest) { return std::system((there + rest + " >out 2>err").c_str()) / 256; };
  CHECK(code(" --mini none") == 3);
  CHECK(contains(read_file(folder / "err"), "eval/tables/vision.json: not found"));
  fs::create_directories(folder / "share/bcq/tables");
  fs::copy("eval/tables/vision.json", folder / "share/bcq/tables/vision.json");
  CHECK(code(" --mini none") == 3);
  CHECK(contains(read_file(folder / "err"), "none of the models"));
  write_file(folder / "share/bcq/tables/vision.json", R"({"rows": [{"bits": 8, "method": "magic"}], "embedded": []})");
  CHECK(code(" --mini none") == 3);
  CHECK(contains(read_file(folder / "err"), "magic"));
}

TEST_CASE("cli: a table of one's own is a file") {
  const Folder folder;
  const std::string own = folder / "own.json";
  const auto table = [&](const std::string& text, const std::string& options) {
    write_file(own, text);
    return run("table " + own + " --out " + folder / "cells" + options);
  };
  const std::string rows =
      R"("embedded": ["opt"], "rows": [{"bits": 32, "method": "fp"}, {"bits": 6, "abits": 8, "method": "smoothquant"}]})";
  const Result made = table(R"({"family": "language", "about": "Six bits", )" + rows,
                            " --limit 1 --seqlen 32 --nsamples 2 --json " + folder / "own-table.json");
  CAPTURE(made.err);
  REQUIRE(made.code == 0);
  const json row = read_json(folder / "own-table.json")["rows"][1];
  CHECK(row["state"] == "measured");
  CHECK(row["record"]["wbits"] == 6);
  CHECK(row["record"]["abits"] == 8);
  CHECK(contains(table(R"({"family": "language", "about": "Six bits", )" + rows, " --help").out, "Six bits"));
  check_failure("table " + own + " --imagenet x", 2, {"--imagenet"});
  CHECK(contains(table(R"({"family": "music", )" + rows, "").err, "neither vision nor language"));
  CHECK(contains(table(R"({"embedded": ["vit"], "rows": [{"bits": 4, "method": "repq-vit"}]})", "").err,
                 "the first row"));
  // A row of options of its own, beside the same without.
  const auto with_options = [&](const std::string& more) {
    const std::string gptq = R"({"bits": 3, "method": "gptq")", bc = gptq + R"(, "bc": "channel")";
    return R"({"family": "language", "embedded": ["opt"], "rows": [{"bits": 32, "method": "fp"}, )" + gptq + "}, " +
           bc + "}, " + bc + ", " + more + "}]}";
  };
  const std::string few = " --limit 2 --seqlen 32 --nsamples 2 --json " + folder / "options.json";
  const std::string centred = R"("name": "a b", "options": {"hessian": "centred", "bc_stream": "quantized"})";
  CHECK(contains(table(with_options(centred), few + " --target float --gptaq-alpha 1").err,
                 "--gptaq-alpha has no effect on any row"));
  CHECK(contains(table(with_options(centred), few + " --format gptq").err, "--format"));
  REQUIRE(table(with_options(centred), few + " --bc-stream float --target gptaq --gptaq-alpha 1").code == 0);
  const json own_options = read_json(folder / "options.json")["rows"];
  CHECK(own_options[2]["record"]["hessian"] == "raw");
  CHECK(own_options[2]["record"]["gptaq_alpha"] == 1);
  CHECK(own_options[3]["record"]["hessian"] == "centred");
  CHECK(own_options[3]["record"]["bc_stream"] == "quantized");  // what a row says is not the command line's to change
  CHECK(own_options[3]["method"] == "GPTQ + BC (channel), a b");
  CHECK(own_options[2]["bc_change_percent"].is_number());
  CHECK(own_options[3]["bc_change_percent"].is_null());  // there is no such row without BC
  CHECK(fs::exists(folder / "cells/opt-3-gptq-channel-a-b-plain.json"));
  const auto refused = [&](const std::string& more, const std::string& why) {
    const Result r = table(with_options(more), few);
    CAPTURE(r.err);
    CHECK(r.code == 3);
    CHECK(contains(r.err, why));
  };
  refused(R"("name": "x", "options": {"groupsize": 64})", "\"groupsize\" is none of the options of a row");
  refused(R"("name": "x", "options": {"format": "gptq"})", "\"format\" is none of the options of a row");
  refused(R"("name": "x", "options": {"nsamples": 4})",
          "\"nsamples\" is none of the options of a row: it is for the command line alone");
  refused(R"("name": "x", "options": {"hesian": "raw"})", "hesian");
  refused(R"("name": "x", "options": 3)", "wrong type or size");
  refused(R"("options": {"hessian": "raw"})", "needs a name");
  refused(R"("name": "x", "hessian": "raw")", "a row has no key \"hessian\"");
  refused(R"("name": "x"}, {"bits": 3, "method": "rtn", "name": "y", "options": {"hessian": "centred"})",
          "key \"hessian\" has no effect with method rtn");
  // What a row asks for is completed by the command line, each option seeing those before it.
  const auto vision_row = [&](const std::string& row, const std::string& options) {
    return table(R"({"embedded": ["vit"], "rows": [{"bits": 32, "method": "fp32"}, )" + row + "]}",
                 " --limit 2 --calib-images 4 --bc-images 8 --json " + folder / "vision.json" + options);
  };
  const std::string joint = R"({"bits": 4, "method": "joint", "bc": "channel"})";
  REQUIRE(vision_row(joint, " --bc-stream float").code == 0);
  CHECK(read_json(folder / "vision.json")["rows"][1]["record"]["bc_images"] == 8);
  const std::string qwt =
      R"({"bits": 4, "method": "repq-vit", "bc": "channel", "name": "q", "options": {"qwt": true}})";
  CHECK(vision_row(qwt, " --bc-stream quantized").code == 0);
  const Result incomplete = vision_row(qwt, " --bc-stream float");
  CHECK(incomplete.code == 2);
  CHECK(contains(incomplete.err, own + ": row {"));
  // An option that every row it is for has its own of.
  const std::string alone = R"({"family": "language", "embedded": ["opt"], "rows": [{"bits": 32, "method": "fp"},
      {"bits": 3, "method": "gptq", "name": "x", "options": {"refine": 1}}]})";
  CHECK(contains(table(alone, few + " --refine 2").err, "--refine has no effect on any row"));
  const std::string widths = R"({"embedded": ["vit"], "rows": [{"bits": 32, "method": "fp32"},
      {"bits": 4, "method": "repq-vit"}, {"bits": 4, "abits": 8, "method": "repq-vit"}%s]})";
  REQUIRE(table(std::string(widths).erase(widths.find("%s"), 2),
                " --limit 2 --calib-images 2 --json " + folder / "widths.json")
              .code == 0);
  const json two = read_json(folder / "widths.json")["rows"];
  CHECK(two[1]["width"] == "4/4");
  CHECK(two[2]["width"] == "4/8");
  CHECK(two[2]["record"]["abits"] == 8);
  CHECK(fs::exists(folder / "cells/vit-4a8-repq-vit-none.json"));
  CHECK(contains(
      table(std::string(widths).replace(widths.find("%s"), 2, R"(, {"bits": 4, "method": "repq-vit"})"), "").err,
      "two rows are 4/4 RepQ-ViT"));
  check_failure("table nothing", 3, {"eval/tables/nothing.json: not found"});
}
