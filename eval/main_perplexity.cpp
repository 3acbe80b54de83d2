// perplexity: of a language model on a text, in float or quantized and compensated.
#include <cmath>
#include <cstdio>

#include "engine/check.h"
#include "eval/cli.h"
#include "eval/language.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, text, calib, json_path;
  LanguageRun run;
};

void add_options(CLI::App& app, Options& o) {
  LanguageRun& r = o.run;
  app.add_option("--model", o.model, "Folder with config.json, weights and tokenizer, or the .safetensors file in it")
      ->required()
      ->type_name("DIR|FILE");
  app.add_option("--text", o.text, "UTF-8 text to evaluate")->required()->type_name("FILE");
  app.add_option("--seqlen", r.seqlen, "Tokens of a window (default: the model's positions, at most 2048)")
      ->type_name("L");
  app.add_option("--limit", r.limit, "Evaluate the first N windows only")->type_name("N");
  app.add_option("--json", o.json_path, "Write the result as a JSON record (-: stdout)")->type_name("FILE");
  add_threads_option(app);

  const char* q = "Quantization";
  app.add_option("--method", r.method, "fp, rtn or gptq")
      ->check(CLI::IsMember({"fp", "rtn", "gptq"}))
      ->capture_default_str()
      ->group(q);
  app.add_option("--wbits", r.weights.bits, "Bits of the weights")->capture_default_str()->type_name("K")->group(q);
  app.add_option("--groupsize", r.weights.groupsize, "Columns that share a scale (-1: a whole row)")
      ->capture_default_str()
      ->type_name("G")
      ->group(q);
  app.add_flag("--sym", r.weights.sym, "Symmetric grids: the zero point is the middle code")->group(q);
  app.add_option("--mse", r.weights.mse,
                 "Clip ranges where that lowers the sum of |error|^NORM (off without this flag)")
      ->expected(0, 1)
      ->default_str("2.4")
      ->type_name("[NORM]")
      ->group(q);
  app.add_option("--layer-bits", r.layer_bits,
                 "Other bits for layers whose name fits: fc2=8; the last that fits counts")
      ->allow_extra_args(false)
      ->type_name("REGEX=K")
      ->group(q);
  app.add_option("--exclude", r.exclude, "Layers to leave in float, such as ^layers\\.0\\.")
      ->allow_extra_args(false)
      ->type_name("REGEX")
      ->group(q);
  app.add_flag("--act-order", r.weights.act_order, "GPTQ: round the columns with the largest inputs first")->group(q);
  app.add_flag("--static-groups", r.weights.static_groups,
               "GPTQ: scales of groups from the float weights; of neighbouring columns with --act-order too")
      ->group(q);
  app.add_option("--percdamp", r.weights.percdamp, "GPTQ: damping of the Hessian, share of its mean diagonal")
      ->capture_default_str()
      ->group(q);
  app.add_option("--calib-text", o.calib, "UTF-8 text to calibrate on: training text")->type_name("FILE")->group(q);
  app.add_option("--nsamples", r.nsamples, "Windows drawn from it")->capture_default_str()->type_name("N")->group(q);
  app.add_option("--seed", r.seed, "Seed of the draw (Python's random)")->capture_default_str()->group(q);

  const char* b = "Bias compensation";
  app.add_option("--bc", r.bc, "none, channel (folded into the biases) or position (as the paper's tables)")
      ->check(CLI::IsMember({"none", "channel", "position"}))
      ->capture_default_str()
      ->group(b);
  app.add_option("--bc-sites", r.bc_sites, "Outputs to compensate: linear,block")->capture_default_str()->group(b);
  app.footer(
      "Examples:\n"
      "  perplexity --model data/mini/opt --text data/mini/text/test.txt\n"
      "  perplexity --model opt-125m --text wiki.test.raw --calib-text wiki.train.raw \\\n"
      "             --method gptq --wbits 3 --bc channel --json result.json\n"
      "  perplexity --model opt-125m --text wiki.test.raw --calib-text wiki.train.raw --method gptq --wbits 2 \\\n"
      "             --groupsize 64 --act-order --layer-bits fc2=3 --exclude '^layers\\.0\\.'");
}

void run(Options& o) {
  LanguageRun& r = o.run;
  const bool calibrates = r.method == "gptq" || r.bc != "none";
  require_usage(r.method != "fp" || r.bc == "none", "--bc %s needs --method rtn or gptq", r.bc.c_str());
  require_usage(!calibrates || !o.calib.empty(), "--method %s%s needs --calib-text", r.method.c_str(),
                r.bc != "none" ? (" --bc " + r.bc).c_str() : "");

  Timer timer;
  ProgressLine progress;
  const auto model = load_model(o.model);
  const int64_t T = seqlen_of(*model, r);
  const Tokenizer tokenizer = Tokenizer::load(model->info().directory);
  const std::vector<int32_t> ids = read_ids(o.text, tokenizer);
  std::vector<Batch> calib;
  const Windows windows = perplexity_windows(ids, T, o.text);
  if (calibrates) calib = calibration_batches(*model, read_ids(o.calib, tokenizer), r, o.calib);
  quantize_language(*model, calib, r, progress.callback(), progress.warn());
  const int64_t bc_parameters = compensate_language(*model, calib, r, progress.callback());
  const Perplexity result = evaluate_language(*model, windows, r, progress.callback());
  progress.finish();

  json record = language_record(*model, r, result, bc_parameters, timer.seconds());
  record.update(run_facts());
  record["text"] = o.text;
  record["text_tokens"] = ids.size();
  record["text_token_hash"] = token_hash(ids);
  record["bos"] = tokenizer.bos() < 0 ? json(nullptr) : json(tokenizer.bos());
  record["warnings"] = progress.warnings();
  if (o.json_path != "-") {
    std::printf("%s  %s", model->info().name.c_str(), describe_weights(*model, r).c_str());
    if (r.bc != "none") std::printf(" + BC (%s, %lld values)", r.bc.c_str(), static_cast<long long>(bc_parameters));
    std::printf("\ntokens %zu (%s), hash %s\n", ids.size(),
                tokenizer.bos() < 0 ? "no BOS" : format("BOS %d", tokenizer.bos()).c_str(), token_hash(ids).c_str());
    std::printf("perplexity %.4f +/- %.4f  (%zu windows of %lld tokens, %.1f s)\n", result.perplexity, result.se,
                result.nll.size(), static_cast<long long>(T), timer.seconds());
  }
  write_record(o.json_path, record);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Perplexity of a language model, in float or quantized and compensated.", "perplexity"};
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { run(options); });
}
