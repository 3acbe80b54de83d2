// The programs for texts: records, tables, saved models and runs that were interrupted.
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <thread>

#include "tests/cli.h"

using namespace bcq;
using namespace bcq::cli;

TEST_CASE("cli: the language tables go on where they were stopped, and say what was not run") {
  const Folder folder;
  fs::create_directories(folder / "mini");
  for (const char* name : {"opt", "bloom", "text"})
    fs::copy(kMini + "/" + name, folder / "mini/" + name, fs::copy_options::recursive);
  const std::string common = "table language --threads 2 --limit 2 --seqlen 16 --nsamples 2 --mini " + folder / "mini" +
                             " --out " + folder / "cells" + " --json ";
  const Result first = run(common + folder / "a.json");
  CAPTURE(first.err);
  REQUIRE(first.code == 0);
  const json a = read_json(folder / "a.json")["rows"];
  REQUIRE(a.size() % 15 == 0);                 // the float model, four cells at each of three widths, joint at two
  std::map<std::string, double> perplexities;  // by bits, method and model
  const auto key = [](const json& row, const std::string& bits, const std::string& method) {
    return bits + method + row["model"].get<std::string>();
  };
  for (const json& row : a) {
    CAPTURE(row);
    CHECK(row["state"] == "measured");
    const double ppl = row["record"]["perplexity"];
    const std::string bits = row["bits"], method = row["method"];
    perplexities[key(row, bits, method)] = ppl;
    // A paired change is that of the two perplexities; its error is of the windows' differences.
    const auto check_change = [&](const char* name, double base) {
      CHECK(row[name].get<double>() == doctest::Approx(100 * (ppl / base - 1)).epsilon(1e-9));
      CHECK(row[name + std::string("_se")].get<double>() > 0);
    };
    if (bits != "32") check_change("change_percent", perplexities[key(row, "32", "FP")]);
    if (contains(method, "BC")) check_change("bc_change_percent", perplexities[key(row, bits, "GPTQ")]);
    CHECK(row["change_percent"].is_null() == (bits == "32"));
    CHECK(row["bc_change_percent"].is_null() == !contains(method, "BC"));
  }
  fs::remove(folder / "cells/opt-3-gptq-channel-plain.json");
  const Result second = run(common + folder / "b.json");
  REQUIRE(second.code == 0);
  CHECK(contains(second.err, "opt 3 GPTQ + BC (channel), plain"));
  CHECK_FALSE(contains(second.err, "RTN"));
  const json b = read_json(folder / "b.json")["rows"];
  CHECK(undisturbed(a) == undisturbed(b));  // of cells kept and measured again

  const Result billm = run("table billm --limit 1 --nsamples 2 --seqlen 32 --mini " + folder / "mini" + " --out " +
                           folder / "billm --json " + folder / "l.json");
  REQUIRE(billm.code == 0);
  const json rows_of_billm = read_json(folder / "l.json")["rows"];
  CHECK(rows_of_billm.size() == 4);  // of the one model of its table that is there
  for (const json& row : rows_of_billm) CHECK(row["state"] == "measured");

  // A model and one text, no calibration text: the float model and RTN are measured on it.
  fs::create_directories(folder / "hub/facebook");
  fs::copy(kMini + "/opt", folder / "hub/facebook/opt-125m", fs::copy_options::recursive);
  fs::create_directories(folder / "texts/wikitext-2-raw");
  fs::copy(kMini + "/text/test.txt", folder / "texts/wikitext-2-raw/wiki.test.raw");
  const std::string command = "table groups --limit 1 --seqlen 16 --models " + folder / "hub" + " --corpora " +
                              folder / "texts" + " --out " + folder / "groups --json " + folder / "g.json";
  const Result groups = run(command);
  CAPTURE(groups.err);
  REQUIRE(groups.code == 0);
  int measured = 0;
  const json table = read_json(folder / "g.json");
  for (const json& row : table["rows"]) measured += row["record"].is_null() ? 0 : 1;
  CHECK(measured == 4);
  CHECK(contains(groups.out,
                 "| 4g128 | AWQ                      | OPT-125M   | c4        |   25.90 |             not run |"));
  CHECK(contains(groups.out,
                 "| 2g64  | GPTQ + BC (position)     | BLOOM-560M | ptb       |  178.73 |             not run |"));
  check_failure("table language --models " + folder / "hub", 2, {"--corpora"});

  // A cell that fails, here because its file cannot be written, fails by itself.
  std::vector<fs::path> cells;
  for (const auto& entry : fs::directory_iterator(folder / "groups"))
    if (entry.path().extension() == ".json") cells.push_back(entry.path());
  REQUIRE(cells.size() == 4);
  std::sort(cells.begin(), cells.end());
  for (const fs::path& cell : cells) fs::remove(cell);
  fs::create_directories(cells[0] / "taken");
  const Result taken = run(command);
  CHECK(taken.code == 4);
  CHECK(contains(taken.err, " could not be measured: " + cells[0].string()));
  CHECK(contains(taken.err, "OPT-125M 2g64 RTN, wikitext2 could not be measured"));
  std::map<std::string, int> one_failed;
  const json with_failure = read_json(folder / "g.json")["rows"];
  for (const json& row : with_failure) ++one_failed[row["state"].get<std::string>()];
  CHECK(one_failed["measured"] == 3);
  CHECK(one_failed["failed"] == 1);
  fs::remove_all(cells[0]);

  // A broken checkpoint fails by itself: the others are shown.
  fs::copy(kMini + "/bloom", folder / "hub/bloom-560m", fs::copy_options::recursive);
  fs::resize_file(folder / "hub/bloom-560m/model.safetensors", 1000000);
  const Result broken = run(command);
  CHECK(broken.code == 4);
  CHECK(contains(broken.err, "BLOOM-560M could not be measured: "));
  CHECK(contains(broken.out, "- BLOOM-560M failed: "));
  std::map<std::string, int> states;
  const json rows = read_json(folder / "g.json")["rows"];
  for (const json& row : rows) ++states[row["model"].get<std::string>() + " " + row["state"].get<std::string>()];
  CHECK(states["OPT-125M measured"] == 4);
  CHECK(states["BLOOM-560M failed"] == 4);  // and not what could not be measured anyway
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
  REQUIRE(run(common + folder / "c.json" + " --prefill-bits 16").code == 0);
  const json c = read_json(folder / "c.json");
  CHECK(a["prefill_bits"] == 24);
  CHECK(c["prefill_bits"] == 16);
  const double fine = a["perplexity"], coarse = c["perplexity"];
  CHECK(coarse != fine);
  CHECK(std::abs(coarse / fine - 1) < 0.01);
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
    check_failure("perplexity --model " + saved + kText + " --sym", 2, {"--sym has no effect", "quantized already"});
  }
}

TEST_CASE("perplexity: what cannot be saved is refused at once") {
  const Folder folder;
  const std::string start = "perplexity --model " + kMini + "/opt" + kText + " --save " + folder / "x";
  check_failure(start, 2, {"--method"});
  check_failure(start + kCalib + " --method rtn --format gptq --bc position", 2, {"bias per position", "--format bcq"});
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

TEST_CASE("cli: generate goes on with a prompt, in float and packed, alike on any number of threads and kernel set") {
  const Folder folder;
  REQUIRE(run("perplexity --model data/mini/bloom --text data/mini/text/test.txt --limit 1 --seqlen 32 --method rtn "
              "--wbits 4 --groupsize 64 --save " +
              folder / "packed")
              .code == 0);
  for (const std::string& model : {std::string("data/mini/opt"), folder / "packed"}) {
    CAPTURE(model);
    const std::string common = "generate --model " + model + " --prompt 'The little dog' --max-new-tokens 12 ";
    const Result greedy = run(common + "--threads 1 --json " + folder / "a.json");
    CAPTURE(greedy.err);
    REQUIRE(greedy.code == 0);
    CHECK(contains(greedy.err, "tokens/s"));
    const json a = read_json(folder / "a.json");
    CHECK(greedy.out == "The little dog" + a["text"].get<std::string>() + "\n");
    CHECK(a["ids"].size() == 12);
    CHECK(a["finish"] == "length");
    CHECK(a["bits_per_weight"].get<double>() == doctest::Approx(model == "data/mini/opt" ? 32 : 4.3).epsilon(0.1));
    for (const char* isa : {"BCQ_ISA=plain ", "BCQ_ISA=avx2 ", "BCQ_ISA=avx-vnni ", "BCQ_ISA=avx512 ", ""}) {
      const Result other = run(common + "--threads 2 --json -", isa);
      if (contains(other.err, "cannot run here")) continue;
      REQUIRE(other.code == 0);
      CHECK(json::parse(other.out)["ids"] == a["ids"]);
    }
    const std::string drawn = common + "--temperature 0.9 --top-k 50 --top-p 0.95 --seed ";
    CHECK(run(drawn + "1").out == run(drawn + "1").out);
    CHECK(run(drawn + "1").out != run(drawn + "2").out);
  }
}

TEST_CASE("cli: generate says what is wrong") {
  const Folder folder;
  check_failure("generate --model data/mini/opt", 2, {"one of --prompt"});
  check_failure("generate --model data/mini/opt --prompt a --interactive", 2, {"one of --prompt"});
  check_failure("generate --model data/mini/opt --interactive --json x.json", 2, {"--json"});
  check_failure("generate --model data/mini/vit --prompt a", 2, {"is a vision model"});
  check_failure("generate --model data/mini/opt --prompt a --max-new-tokens 0", 2, {"--max-new-tokens"});
  check_failure("generate --model data/mini/opt --prompt a --temperature -1", 2, {"--temperature"});
  check_failure("generate --model data/mini/opt --prompt a --top-p 0", 2, {"--top-p"});
  check_failure("generate --model data/mini/bloom --prompt ''", 2, {"prompt is empty"});
  check_failure("generate --model data/mini/opt --prompt $(printf '\\377')", 3, {"not valid UTF-8 at byte 0"});
  std::string words;
  for (int i = 0; i < 300; ++i) words += "dog ";
  check_failure("generate --model data/mini/opt --prompt '" + words + "'", 2, {"opt has positions for 256"});
  fs::create_directories(folder / "bare");
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy(kMini + "/opt/" + name, folder / "bare/" + name);
  check_failure("generate --model " + folder / "bare --prompt a", 3, {"no tokenizer"});
}

TEST_CASE("table: the language tables are read from the whole command line, also when the program begins anew") {
  const std::string anew = "env -u OPENBLAS_NUM_THREADS ";
  for (const char* environment : {"", anew.c_str()})
    CHECK(contains(run("table language --help", environment).out, "opt-125m"));
}

TEST_CASE("perplexity: folded models of a family without shifts and biases are saved, and measured the same") {
  const std::string llama = "tests/fixtures/llama_bias_tiny", plain = "tests/fixtures/llama_tiny";
  const Folder folder;
  json ids = json::array();
  for (int i = 0; i < 400; ++i) ids.push_back(4 + i * 7919 % 41);
  write_file(folder / "ids.json", ids.dump());
  const std::string data = " --tokens " + folder / "ids.json" + " --seqlen 16 --limit 5 --wbits 4 -q --json - ";
  for (const std::string& model : {llama, plain})
    for (const std::string options : {"--method dfq --bc none", "--method dfq --bc none --format gptq"}) {
      CAPTURE(model + options);
      if (model == plain && contains(options, "gptq")) continue;  // of 16 inputs, which that format cannot hold
      const std::string saved = folder / "saved";
      fs::remove_all(saved);
      const Result made = run("perplexity --model " + model + data + options + " --save " + saved);
      REQUIRE_MESSAGE(made.code == 0, made.err);
      const Result again = run("perplexity --model " + saved + " --tokens " + folder / "ids.json" +
                               " --seqlen 16 --limit 5 -q --json -");
      REQUIRE_MESSAGE(again.code == 0, again.err);
      CHECK(parse_json(again.out, "a")["perplexity"] == parse_json(made.out, "b")["perplexity"]);
    }
  // What an RMSNorm makes on average its parameters do not tell: nothing is corrected without data.
  const Result free = run("perplexity --model " + plain + data + "--method rtn --bc data-free");
  CHECK_MESSAGE(parse_json(free.out, "c")["bc_parameters"] == 0, free.err);
}

TEST_CASE("generate: a prompt from a file, from standard input, and line by line") {
  const Folder folder;
  const std::string common = "generate --model data/mini/opt --max-new-tokens 6 -q ";
  write_file(folder / "p.txt", "The little dog");
  const std::string one = run(common + "--prompt 'The little dog'").out;
  CHECK(one.starts_with("The little dog"));
  CHECK(run(common + "--prompt-file " + folder / "p.txt").out == one);
  CHECK(run(common + "--prompt-file - < " + folder / "p.txt").out == one);
  const std::string other = run(common + "--prompt 'A cat'").out;
  write_file(folder / "p.txt", "The little dog\n\nA cat\n");
  CHECK(run(common + "--interactive < " + folder / "p.txt").out == one + other);
  std::string words;
  for (int i = 0; i < 300; ++i) words += "dog ";
  write_file(folder / "p.txt", words + "\nA cat\r\n");  // one that is too long does not end it
  const Result session = run(common + "--interactive < " + folder / "p.txt");
  CHECK(session.code == 0);
  CHECK(session.out.ends_with(other));
  CHECK(contains(session.err, "positions"));
}

TEST_CASE("cli: manual pages and completion hold every option; a pipe gets no progress") {
  for (const std::string program :
       {"imagenet", "perplexity", "classify", "report", "generate", "forward", "table", "bench"}) {
    CAPTURE(program);
    const std::string help = run(program + " --help").out, man = run(program + " --man").out,
                      completion = run(program + " --completion").out;
    CHECK(man.starts_with(".TH "));
    CHECK(contains(completion, "complete -o bashdefault -o default -F _bcq_" + program + " " + program));
    int options = 0;
    for (size_t at = help.find("\n  --"); at != std::string::npos; at = help.find("\n  --", at + 1)) {
      std::string flag = help.substr(at + 3, help.find_first_of(" ,\n", at + 3) - at - 3);
      if (flag == "--version") continue;
      ++options;
      CHECK_MESSAGE(contains(completion, flag), flag);
      for (size_t dash = 0; (dash = flag.find('-', dash)) != std::string::npos; dash += 2) flag.insert(dash, "\\");
      CHECK_MESSAGE(contains(man, flag), flag);
    }
    CHECK(options >= 3);
  }
  const Result complete =
      run("true; bash -c 'source <(\"${BCQ_BIN:-build/bin}\"/imagenet --completion); COMP_WORDS=(imagenet "
          "--method jo); COMP_CWORD=2; _bcq_imagenet; echo \"${COMPREPLY[@]}\"'");
  CHECK(complete.out == "joint\n");
}

TEST_CASE("cli: joint is its options by one name; windows begin with documents; activations are rounded, not saved") {
  const Folder folder;
  const std::string common =
      "perplexity --model data/mini/opt --text data/mini/text/test.txt --limit 2 --seqlen 64 "
      "--wbits 3 --calib-text data/mini/text/calib.txt ";
  std::string certificate;
  const auto perplexity = [&](const std::string& options) {
    const Result result = run(common + "--nsamples 4 " + options + " --json " + folder / "r.json");
    CHECK_MESSAGE(result.code == 0, result.err);
    certificate = result.err + result.out;
    return read_json(folder / "r.json");
  };
  const json joint = perplexity("--method joint --layer-report " + folder / "layers.json");
  // One line sums up the layers' errors.
  const json layers = read_json(folder / "layers.json");
  std::string line = format("error over signal of %d layers, dB:", layers.size());
  for (const auto& [name, key] : {std::pair{"rounded", "mse_rounded"},
                                  {", GPTQ", "mse_gptq"},
                                  {", refined", "mse_refined"},
                                  {", and a bias", "mse_compensated"},
                                  {", on held-out data", "mse_held_out"}}) {
    double sum = 0;
    for (const json& layer : layers)
      sum += 10 * std::log10(layer[key].get<double>() / layer["signal"].get<double>()) /
             static_cast<double>(layers.size());
    line += format(" %s %.1f", name, sum);
  }
  for (size_t at; (at = line.find(" ,")) != std::string::npos;) line.erase(at, 1);
  CAPTURE(certificate);
  CHECK(certificate.find(line) != std::string::npos);
  const json long_form = perplexity(
      "--method gptq --hessian centred --target float --true-sequential --refine 10 --range weighted "
      "--scale-rounds 3 "
      "--bc channel --bc-stream quantized --bc-held-out 0.25");
  CHECK(joint["perplexity"] == long_form["perplexity"]);
  CHECK(joint["perplexity"] < perplexity("--method gptq")["perplexity"]);
  const json aligned = perplexity("--method joint --calib-align document");
  CHECK(aligned["calib_token_hash"] != joint["calib_token_hash"]);
  CHECK(aligned["recipe"]["calib_align"] == "document");
  const json rounded = perplexity("--method joint --abits 4 --act-scale tensor");
  CHECK(rounded["perplexity"] > joint["perplexity"]);
  CHECK(rounded["abits"] == 4);
  check_failure(common + "--method joint --abits 8 --save " + folder / "saved", 2, {"--abits"});
  check_failure(common + "--method joint --abits 9", 2, {"--abits", "2 to 8"});
  check_failure(common + "--method rtn --abits 8 --act-scale tensor", 2, {"per token"});
  check_failure(common + "--method joint --nsamples 4 --mse 2.4", 2, {"norm of their own"});
  check_failure(common + "--method joint --bc-held-out 0.7", 2, {"--bc-held-out", "0 to 0.5"});
}
