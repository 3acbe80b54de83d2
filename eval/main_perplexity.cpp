// perplexity: of a language model on texts, in float or quantized and compensated.
#include <cstdio>
#include <optional>

#include "engine/core/check.h"
#include "eval/cli.h"
#include "eval/language.h"
#include "eval/layer_report.h"
#include "eval/resume.h"
#include "eval/save.h"
#include "eval/tables/cells.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, corpora, calib, json_path, report_path;
  std::vector<std::string> texts, tokens;
  std::string calib_tokens;
  bool new_eval = false, paired = false;
  SaveOptions save;
  bool resume = false;
  LanguageRun run;
};

void add_options(CLI::App& app, Options& o) {
  LanguageRun& r = o.run;
  app.add_option("--model", o.model, "Folder with config.json, weights and tokenizer, or the .safetensors file in it")
      ->required()
      ->type_name("DIR|FILE");
  app.add_option("--json", o.json_path, "Write the result as a JSON record, several texts as an array (-: stdout)")
      ->type_name("FILE");
  add_threads_option(app);

  const char* t = "Text";
  app.add_option("--text", o.texts,
                 std::string("Texts to evaluate: FILE, DEFINITION=FILE, or a DEFINITION whose official file is looked "
                             "for in --corpora. Definitions: ") +
                     kDefinitions + " (default: by the file's name; with --corpora alone wikitext2 ptb c4)")
      ->type_name("TEXT")
      ->group(t);
  app.add_option("--corpora", o.corpora,
                 "Folder with wiki.{train,test}.raw, ptb.{train,valid,test}.txt and C4's en/*.json.gz, at any depth")
      ->type_name("DIR")
      ->group(t);
  app.add_flag("--new-eval", o.new_eval, "With --corpora alone: wikitext2 ptb-new c4-new")->group(t);
  app.add_option("--tokens", o.tokens, "Token ids to evaluate: little-endian int32, a JSON list, or decimal numbers")
      ->type_name("FILE")
      ->group(t);
  app.add_option("--seqlen", r.seqlen, "Tokens of a window (default: the model's positions, at most 2048)")
      ->type_name("L")
      ->group(t);
  app.add_option("--limit", r.limit, "Evaluate the first N windows only")->type_name("N")->group(t);
  app.add_option("--ppl-def", r.ppl, std::string("Definitions of perplexity: ") + kPerplexities)
      ->delimiter(',')
      ->check(CLI::IsMember({"gptq", "llamacpp", "word", "byte"}))
      ->capture_default_str()
      ->type_name("LIST")
      ->group(t);
  app.add_flag("--paired", o.paired, "Measure the float model too, and the change on the same windows")->group(t);

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
  app.add_option("--prefill-bits", r.prefill_bits,
                 "Bits activations are rounded to where windows meet packed weights: 24 keeps what floats keep, 16 is "
                 "faster")
      ->check(CLI::IsMember({24, 16}))
      ->capture_default_str()
      ->group(q);
  app.add_option("--percdamp", r.weights.percdamp, "GPTQ: damping of the Hessian, share of its mean diagonal")
      ->capture_default_str()
      ->group(q);
  app.add_option("--hessian", r.hessian,
                 "Products of inputs GPTQ looks at: raw, or centred for layers whose bias --bc fits afterwards")
      ->check(CLI::IsMember({"raw", "centred"}))
      ->capture_default_str()
      ->group(q);
  app.add_option("--target", r.target,
                 "What GPTQ rounds: own, the weights; or float, weights refitted to give the float network's outputs "
                 "from the inputs they get (with --true-sequential: else each layer of a block makes up for the same "
                 "errors again)")
      ->check(CLI::IsMember({"own", "float"}))
      ->capture_default_str()
      ->group(q);
  app.add_option("--refine", r.refine, "GPTQ: sweeps of coordinate descent on its codes, which only lower the error")
      ->capture_default_str()
      ->type_name("N")
      ->group(q);
  app.add_flag("--true-sequential", r.true_sequential,
               "GPTQ: round a block's layers one after the other, each on what those before it make")
      ->group(q);
  app.add_option("--layer-report", o.report_path,
                 "GPTQ: write each layer's calibration errors, rounded, solved, refined and compensated, as JSON or "
                 ".csv")
      ->type_name("FILE")
      ->group(q);
  app.add_option("--calib-text", o.calib, "Text to calibrate on, given like --text: training text")
      ->type_name("TEXT")
      ->group(q);
  app.add_option("--calib-tokens", o.calib_tokens, "Token ids to calibrate on, like --tokens")
      ->type_name("FILE")
      ->group(q);
  app.add_option("--nsamples", r.nsamples, "Windows drawn from it")->capture_default_str()->type_name("N")->group(q);
  app.add_option("--seed", r.seed, "Seed of the draw (Python's random)")->capture_default_str()->group(q);

  app.add_option_function<std::string>(
         "--scales", [&r](const std::string& type) { r.weights.half = type == "f16"; },
         "f32, or f16: rounded to what GPTQ checkpoints store before weights are rounded to them")
      ->check(CLI::IsMember({"f32", "f16"}))
      ->default_str("f32; f16 with --format gptq")
      ->group(q);

  const char* b = "Bias compensation";
  app.add_option("--bc", r.bc, "none, channel (folded into the biases) or position (as the paper's tables)")
      ->check(CLI::IsMember({"none", "channel", "position"}))
      ->capture_default_str()
      ->group(b);
  app.add_option("--bc-sites", r.bc_sites, "Outputs to compensate: linear,block")->capture_default_str()->group(b);
  app.add_option("--bc-stream", r.bc_stream,
                 "What layers are fed while errors are measured: float inputs as in the official scripts, or those of "
                 "the quantized network (with gptq: in the same walk)")
      ->check(CLI::IsMember({"float", "quantized"}))
      ->capture_default_str()
      ->group(b);

  const char* s = "Saving";
  app.add_option("--save", o.save.directory,
                 "Write the quantized model as a folder that --model takes, with its tokenizer")
      ->type_name("DIR")
      ->group(s);
  app.add_option("--format", o.save.format,
                 "bcq: holds everything; gptq: a GPTQ checkpoint for transformers, GPTQModel and vLLM")
      ->check(CLI::IsMember({"bcq", "gptq"}))
      ->capture_default_str()
      ->group(s);
  app.add_flag("--force", o.save.force, "Replace DIR although something else wrote it")->group(s);
  app.add_flag("--resume", o.resume, "GPTQ: go on with the same command's interrupted run, from its DIR.partial")
      ->group(s);
  app.footer(
      "Examples:\n"
      "  perplexity --model data/mini/opt --text data/mini/text/test.txt\n"
      "  perplexity --model opt-125m --text wiki.test.raw ptb=my_ptb.txt --ppl-def gptq,word --method rtn --paired\n"
      "  perplexity --model opt-125m --corpora corpora --calib-text c4 --method gptq --wbits 3 --bc channel \\\n"
      "             --json result.json\n"
      "  perplexity --model opt-125m --corpora corpora --calib-text c4 --method gptq --wbits 2 --groupsize 64 \\\n"
      "             --act-order --layer-bits fc2=3 --exclude '^layers\\.0\\.'\n"
      "  perplexity --model opt-125m --corpora corpora --calib-text c4 --method gptq --groupsize 128 --sym \\\n"
      "             --bc channel --save opt-125m-4bit --format gptq\n"
      "  perplexity --model opt-125m-4bit --corpora corpora");
}

// The texts to evaluate, in the order asked for.
std::vector<TextSource> evaluation_sources(const Options& o) {
  std::vector<std::string> specs = o.texts;
  if (specs.empty() && o.tokens.empty() && !o.corpora.empty())
    specs = o.new_eval ? std::vector<std::string>{"wikitext2", "ptb-new", "c4-new"}
                       : std::vector<std::string>{"wikitext2", "ptb", "c4"};
  std::vector<TextSource> sources;
  for (const std::string& spec : specs) sources.push_back(text_source(spec, o.corpora, Split::Evaluation));
  for (const std::string& file : o.tokens) sources.push_back({Definition::Tokens, file});
  require_usage(!sources.empty(), "nothing to evaluate: give --text, --tokens or --corpora");
  return sources;
}

TextSource calibration_source(const Options& o) {
  require_usage(o.calib.empty() || o.calib_tokens.empty(), "--calib-text and --calib-tokens exclude each other");
  require_usage(!o.calib.empty() || !o.calib_tokens.empty(), "--method %s%s needs --calib-text", o.run.method,
                o.run.bc != "none" ? (" --bc " + o.run.bc).c_str() : "");
  if (!o.calib_tokens.empty()) return {Definition::Tokens, o.calib_tokens};
  return text_source(o.calib, o.corpora, Split::Calibration);
}

std::string facts_text(const TokenFacts& facts) {
  return format("%d tokens (%s), hash %s", facts.tokens, facts.bos < 0 ? "no BOS" : format("BOS %d", facts.bos),
                facts.hash);
}

// What the walks over the blocks took: windows through blocks, Hessians and means, solving.
json walk_seconds(const CalibrationResult& quantization, const CalibrationResult& compensation) {
  const auto parts = [](const CalibrationSeconds& s) {
    return json{{"passes", s.passes}, {"moments", s.sums}, {"solve", s.solve}};
  };
  return {{"quantization", parts(quantization.seconds)}, {"compensation", parts(compensation.seconds)}};
}

json calibration_facts(const Calibration& calib) {
  return {{"calib_text", calib.source.path},
          {"calib_definition", name_of(calib.source.definition)},
          {"calib_token_hash", calib.facts.hash}};
}

// All that decides about the result: runs that differ in any of it do not go on with each other's blocks. BLAS, because
// its kernels round differently.
json settings_of(Model& model, const LanguageRun& r, const Calibration& calib, const SaveOptions& save) {
  json print = recipe(model, r);
  print["layer_bits"] = r.layer_bits;  // of the float model there are none yet
  print.update({{"exclude", r.exclude},
                {"seqlen", seqlen_of(model, r)},
                {"calib_token_hash", calib.facts.hash},
                {"model", fingerprint(model.info().weights)},
                {"format", save.format},
                {"version", version()},
                {"blas", run_facts()["blas"]}});
  return print;
}

// UsageError unless what the run makes of the model can be saved as asked.
void check_saving(Model& model, const LanguageRun& r, const SaveOptions& save) {
  check_target(save, model.info().weights);
  const LayerBits of_layer = allocate_bits(model, layer_rules(r.layer_bits, r.exclude));
  const auto bits = [&](const Layer& layer) {
    const auto found = of_layer.find(&layer);
    return found == of_layer.end() ? r.weights.bits : found->second;
  };
  check_format(save, model, bits, r.weights.groupsize, r.bc == "position");
}

void print_text(const EvaluationText& text, const std::vector<Perplexity>& results,
                const std::vector<Perplexity>& floats, double seconds) {
  print("%s, %s: %s\n", text.source.path, name_of(text.source.definition), facts_text(text.facts));
  for (size_t i = 0; i < results.size(); ++i) {
    const Perplexity& p = results[i];
    print("perplexity %.4f +/- %.4f  (%s, %d windows of %d tokens, %.1f s)\n", p.perplexity, p.se, p.definition,
          p.windows, p.length, seconds);
    if (floats.empty()) continue;
    const Ratio change = paired_ratio(p, floats[i]);
    print("  float %.4f +/- %.4f, change %+.3f %% +/- %.3f\n", floats[i].perplexity, floats[i].se, change.percent,
          change.se);
  }
}

void run(Options& o) {
  LanguageRun& r = o.run;
  const bool calibrates = r.method == "gptq" || r.bc != "none";
  require_usage(r.method != "fp" || r.bc == "none", "--bc %s needs --method rtn or gptq", r.bc);
  require_usage(r.method == "gptq" || o.report_path.empty(), "--layer-report tells of --method gptq");
  const bool saves = !o.save.directory.empty();
  require_usage(r.method != "fp" || !saves, "--save writes a quantized model: give --method rtn or gptq");
  require_usage(saves || !o.resume, "--resume finds its blocks beside the folder of --save");
  if (saves && o.save.is_gptq()) r.weights.half = true;
  require_usage(r.method != "fp" || !o.paired, "--paired compares a quantized model: give --method rtn or gptq");
  const std::vector<TextSource> sources = evaluation_sources(o);
  const TextSource calib_source = calibrates ? calibration_source(o) : TextSource{};

  Timer timer;
  ProgressLine progress;
  const auto model = load_model(o.model);
  if (model->info().packed) set_stored(*model, r);
  seqlen_of(*model, r);
  if (saves) check_saving(*model, r, o.save);
  std::optional<Tokenizer> tokenizer;  // token ids need none
  const auto needs_one = [](const TextSource& s) { return s.definition != Definition::Tokens; };
  if (std::any_of(sources.begin(), sources.end(), needs_one) || (calibrates && needs_one(calib_source)) ||
      r.ppl != std::vector<std::string>{"gptq"})
    tokenizer = Tokenizer::load(model->info().directory);
  const Tokenizer* words = tokenizer ? &*tokenizer : nullptr;

  std::vector<EvaluationText> texts;
  for (const TextSource& source : sources) texts.push_back(read_evaluation(*model, source, words, r));
  std::vector<std::vector<Perplexity>> floats(texts.size());
  if (o.paired) {
    LanguageRun fp = r;
    fp.method = "fp";
    for (size_t i = 0; i < texts.size(); ++i) floats[i] = evaluate_language(*model, texts[i], fp, progress.callback());
  }
  Calibration calib;
  if (calibrates) calib = read_calibration(*model, calib_source, words, r);
  std::optional<BlockFiles> blocks;
  if (saves && r.method == "gptq")
    blocks.emplace(partial_folder(o.save), settings_of(*model, r, calib, o.save), o.resume);
  PartStore* const store = blocks ? &*blocks : nullptr;
  const CalibrationResult solved =
      quantize_language(*model, calib.batches, r, progress.callback(), progress.warn(), store);
  const CalibrationResult compensated = compensate_language(*model, calib.batches, r, progress.callback(), store);
  const int64_t bc_parameters = solved.fitted() + compensated.fitted();
  if (!o.report_path.empty()) write_layer_report(o.report_path, solved);
  std::optional<Saved> saved;  // before it is measured: what is stored is what is measured
  if (saves) {
    json facts = recipe(*model, r);
    facts.update({{"model", model->info().name}, {"version", version()}, {"seqlen", seqlen_of(*model, r)}});
    if (calibrates) facts.update(calibration_facts(calib));
    saved = save_model(*model, model->info().weights, o.save, facts);
    if (blocks) blocks->remove();
  }

  const bool prints = o.json_path != "-";
  if (prints) {
    print("%s  %s", model->info().name, describe_weights(*model, r));
    if (r.bc != "none")
      print(" + BC (%s, %d values, %d bytes added: %.2f %% of the parameters)", r.bc, bc_parameters,
            4 * added_values(*model),
            100.0 * static_cast<double>(added_values(*model)) / static_cast<double>(model->info().parameters));
    print("\n");
    if (calibrates)
      print("calibrated on %s, %s, seed %d: %s\n", calib.source.path, name_of(calib.source.definition), r.seed,
            facts_text(calib.facts));
    for (const auto& [name, s] : {std::pair{"quantization", solved.seconds}, {"compensation", compensated.seconds}})
      if (s.passes > 0)
        print("%s: passes %.1f s, Hessians and means %.1f s, solving %.1f s\n", name, s.passes, s.sums, s.solve);
    if (saved)
      print("saved to %s (%s): %.1f MB, was %.1f MB; %.3f bits per quantized weight\n", o.save.directory, o.save.format,
            static_cast<double>(saved->bytes) / 1e6, static_cast<double>(saved->bytes_before) / 1e6,
            saved->bits_per_weight);
  }
  json records = json::array();
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto results = evaluate_language(*model, texts[i], r, progress.callback());
    progress.finish();
    json record = language_record(*model, r, texts[i], results, floats[i], bc_parameters, timer.seconds());
    record.update(run_facts());
    record["warnings"] = progress.warnings();
    if (calibrates) record.update(calibration_facts(calib));
    if (calibrates) record["walk_seconds"] = walk_seconds(solved, compensated);
    if (saved)
      record["saved"] = {{"folder", o.save.directory},
                         {"format", o.save.format},
                         {"bytes", saved->bytes},
                         {"bytes_before", saved->bytes_before},
                         {"bits_per_weight", saved->bits_per_weight}};
    records.push_back(std::move(record));
    if (prints) print_text(texts[i], results, floats[i], timer.seconds());
  }
  write_record(o.json_path, records.size() == 1 ? records[0] : records);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Perplexity of a language model on texts, in float or quantized and compensated.", "perplexity"};
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { run(options); });
}
