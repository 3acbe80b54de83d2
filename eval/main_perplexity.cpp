// perplexity: of a language model on texts, in float or quantized and compensated.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/grid/binary.h"
#include "eval/cli.h"
#include "eval/language.h"
#include "eval/layer_report.h"
#include "eval/resume.h"
#include "eval/save.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, corpora, calib, calib_tokens, json_path, report_path, ppl = "gptq";
  std::vector<std::string> texts, tokens;
  bool new_eval = false, paired = false, resume = false;
  int64_t limit = 0;
  SaveOptions save;
  Recipe recipe = recipe_of(Family::Language);

  bool saves() const { return !save.directory.empty(); }
};

void add_options(CommandLine& line, Options& o) {
  line.add_model(o.model, "config.json, weights and tokenizer");
  line.add_output({"--json", "FILE", "Write the result as a JSON record, several texts as an array (-: stdout)"},
                  o.json_path);

  const char* t = "Text";
  line.add({"--text", "TEXT",
            std::string("Texts to evaluate: FILE, DEFINITION=FILE, or a DEFINITION whose official file is looked for "
                        "in --corpora. Definitions: ") +
                kDefinitions + " (default: by the file's name; with --corpora alone wikitext2 ptb c4)",
            t},
           o.texts);
  line.add({"--corpora", "DIR",
            "Folder with wiki.{train,test}.raw, ptb.{train,valid,test}.txt and C4's en/*.json.gz, at any depth", t},
           o.corpora);
  line.add({"--new-eval", "", "With --corpora alone: wikitext2 ptb-new c4-new", t}, o.new_eval);
  line.add({"--tokens", "FILE", "Token ids to evaluate: little-endian int32, a JSON list, or decimal numbers", t},
           o.tokens);
  line.add({"--limit", "N", "Evaluate the first N windows only; 0: all", t}, o.limit, 0, 1e15);
  line.add({"--ppl-def", "LIST", "Definitions of perplexity: gptq, llamacpp, word, byte", t}, o.ppl);
  line.add({"--paired", "", "Measure the float model too, and the change on the same windows", t}, o.paired);

  const char* q = "Quantization";
  line.add_output({"--layer-report", "FILE",
                   "GPTQ: write each layer's calibration errors, rounded, solved, refined and compensated, as JSON or "
                   ".csv",
                   q},
                  o.report_path);
  line.add({"--calib-text", "TEXT", "Text to calibrate on, given like --text: training text", q}, o.calib);
  line.add({"--calib-tokens", "FILE", "Token ids to calibrate on, like --tokens", q}, o.calib_tokens);
  line.add_recipe(o.recipe);

  const char* s = "Saving";
  line.add({"--save", "DIR", "Write the quantized model as a folder that --model takes, with its tokenizer", s},
           o.save.directory);
  line.add({"--force", "", "Replace DIR although something else wrote it", s}, o.save.force);
  line.add({"--resume", "", "GPTQ: go on with the same command's interrupted run, from its DIR.partial", s}, o.resume);
}

// The texts to evaluate, in the order asked for.
std::vector<TextSource> evaluation_sources(const Options& o) {
  std::vector<std::string> specs = o.texts;
  if (specs.empty() && o.tokens.empty() && !o.corpora.empty())
    specs = split(o.new_eval ? "wikitext2,ptb-new,c4-new" : "wikitext2,ptb,c4");
  std::vector<TextSource> sources;
  for (const std::string& spec : specs) sources.push_back(text_source(spec, o.corpora, Split::Evaluation));
  for (const std::string& file : o.tokens) sources.push_back({Definition::Tokens, file});
  require_usage(!sources.empty(), "nothing to evaluate: give --text, --tokens or --corpora");
  return sources;
}

TextSource calibration_source(const Options& o) {
  if (!calibrates(o.recipe)) return {};
  require_usage(o.calib.empty() || o.calib_tokens.empty(), "--calib-text and --calib-tokens exclude each other");
  require_usage(!o.calib.empty() || !o.calib_tokens.empty(), "--method %s --bc %s needs --calib-text",
                name_of(o.recipe), name_of(o.recipe.bc));
  if (!o.calib_tokens.empty()) return {Definition::Tokens, o.calib_tokens};
  return text_source(o.calib, o.corpora, Split::Calibration);
}

// The definitions of --ppl-def.
std::vector<std::string> definitions_of(const Options& o) {
  const std::vector<std::string> names = split(o.ppl);
  for (const std::string& name : names)
    require_usage(std::find(std::begin(kPerplexities), std::end(kPerplexities), name) != std::end(kPerplexities),
                  "--ppl-def %s: not a list of gptq, llamacpp, word and byte", o.ppl);
  require_usage(!names.empty(), "--ppl-def: the list is empty");
  return names;
}

// What the walks over the blocks took: windows through blocks, Hessians and means, solving.
json walk_seconds(const Outcome& outcome) {
  const auto parts = [](const CalibrationSeconds& s) {
    return json{{"passes", s.passes}, {"moments", s.sums}, {"solve", s.solve}};
  };
  return {{"quantization", parts(outcome.solved.seconds)}, {"compensation", parts(outcome.compensated.seconds)}};
}

// All that decides about the result: runs that differ in any of it do not go on with each other's blocks. BLAS, because
// its kernels round differently.
json settings_of(LanguageTask& task, const Options& o) {
  task.compensation(o.recipe);
  json print = to_json(o.recipe);
  print.update({{"seqlen", seqlen_of(task.model, o.recipe)},
                {"calib_token_hash", task.calib_facts.hash},
                {"model", fingerprint(task.model.info().weights)},
                {"version", version()},
                {"blas", run_facts()["blas"]}});
  return print;
}

void check_options(Options& o) {
  Recipe& r = o.recipe;
  const bool quantized = quantizes(r);
  require_usage(solves(r) || o.report_path.empty(), "--layer-report tells of --method gptq and joint");
  require_usage(quantized || !o.saves(), "--save writes a quantized model: give a --method");
  require_usage(!is_billm(r) || r.weights.half || !o.saves(),
                "--scales f32 leaves levels that are only simulated: --save has those of f16");
  require_usage(
      r.abits == 32 || !o.saves(),
      "--save keeps weights: with activations of %d bits the model is only measured (--abits 32 leaves them float)",
      r.abits);
  require_usage(o.saves() || !o.resume, "--resume finds its blocks beside the folder of --save");
  require_usage(o.saves() || !o.save.force, "--force belongs to --save");
  require_usage(!o.new_eval || (o.texts.empty() && o.tokens.empty()), "--new-eval is for --corpora alone");
  require_usage(quantized || !o.paired, "--paired compares a quantized model: give a --method");
  if (r.gptq_format) {
    o.save.format = "gptq";
    r.weights.half = true;
  }
}

// Quantize, compensate and save, before it is measured: what is stored is what is measured.
Outcome make(LanguageTask& task, const Options& o, ProgressLine& progress, std::optional<Saved>& saved) {
  const Recipe& r = o.recipe;
  std::optional<BlockFiles> blocks;
  if (o.saves() && carries_errors(r)) blocks.emplace(partial_folder(o.save), settings_of(task, o), o.resume);
  PartStore* const store = blocks ? &*blocks : nullptr;
  const Warn warn = blocks ? blocks->keeping(progress.warn()) : progress.warn();
  Outcome outcome = quantize(task, r, progress.callback(), warn, store);
  compensate(task, r, outcome, progress.callback(), store);
  if (!o.report_path.empty() && rank() == 0) write_layer_report(o.report_path, outcome);
  wait_for_ranks();
  const bool writes = o.saves() && rank() == 0;
  if (!writes && r.gptq_format && r.method != MethodName::Stored) round_to_gptq(task.model);
  if (!writes) return outcome;
  json facts = flat_recipe(task.model, r);
  facts.update({{"model", task.model.info().name}, {"version", version()}, {"seqlen", seqlen_of(task.model, r)}});
  if (calibrates(r)) facts.update(task.calibration_facts());
  saved = save_model(task.model, o.save, facts);
  if (blocks) blocks->remove();
  return outcome;
}

void print_model(LanguageTask& task, const Options& o, const Outcome& outcome, const std::optional<Saved>& saved) {
  const Recipe& r = o.recipe;
  print("%s  %s", task.model.info().name, describe_weights(task.model, r));
  if (compensates(r)) print(" + BC (%s; %s)", name_of(r.bc), bc_text(task.model, outcome.fitted));
  print("\n");
  if (calibrates(r))
    print("calibrated on %s, %s, seed %d: %s\n", task.calib.path, name_of(task.calib.definition), r.seed,
          task.calib_facts.text());
  for (const auto& [name, s] :
       {std::pair{"quantization", outcome.solved.seconds}, {"compensation", outcome.compensated.seconds}})
    if (s.passes > 0)
      print("%s: passes %.1f s, Hessians and means %.1f s, solving %.1f s\n", name, s.passes, s.sums, s.solve);
  if (const std::string text = certificate_text(outcome.solved); !text.empty()) print("%s\n", text);
  if (saved) print("%s\n", saved_text(o.save, *saved));
  if (r.method != MethodName::Billm) return;
  double signs = 0, weights = 0;
  for (const Layer* layer : task.model.all_layers()) {
    if (!layer->is_quantized()) continue;
    signs += layer->quantized->right.as<Binary>()->sign_bits;
    weights += static_cast<double>(layer->weight.size());
  }
  print("%.2f bits per weight with all that is stored; %.2f are signs, the nominal figure\n",
        bits_per_weight(task.model), signs / weights);
}

void print_text(const EvaluationText& text, const std::vector<Perplexity>& results,
                const std::vector<Perplexity>& floats, double seconds) {
  print("%s, %s: %s\n", text.source.path, name_of(text.source.definition), text.facts.text());
  for (size_t i = 0; i < results.size(); ++i) {
    const Perplexity& p = results[i];
    print("perplexity %.4f +/- %.4f  (%s, %d windows of %d tokens, %.1f s)\n", p.perplexity, p.se, p.definition,
          text.windows.count, text.windows.length, seconds);
    if (floats.empty()) continue;
    const Estimate change = paired_ratio(p, floats[i]);
    print("  float %.4f +/- %.4f, change %+.3f %% +/- %.3f\n", floats[i].perplexity, floats[i].se, change.value,
          change.se);
  }
}

void run(const CommandLine& line, Options& o) {
  Recipe& r = o.recipe;
  check_options(o);
  const std::vector<TextSource> sources = evaluation_sources(o);
  const TextSource calib = calibration_source(o);
  Timer timer;
  ProgressLine progress;
  const auto model = load_model(o.model);
  seqlen_of(*model, r);
  set_stored(*model, r);
  require_used(r, line.given());
  if (!calibrates(r)) {
    warn_of_unread(o.calib_tokens, name_of(r), progress.warn());
    if (!o.calib.empty())
      warn_of_unread(text_source(o.calib, o.corpora, Split::Calibration).path, name_of(r), progress.warn());
  }
  if (o.saves()) {
    check_target(o.save, model->info().weights);
    check_format(o.save, *model, r);
  }
  LanguageTask task(*model, sources, calib, definitions_of(o), o.limit);
  task.warn = progress.warn();
  for (const std::string& note : model->info().notes) task.warn(note);
  task.keeps_floats = o.paired;
  std::string hashes;
  for (size_t i = 0; i < sources.size(); ++i) hashes += task.text(r, i).facts.hash + " ";
  if (calibrates(r)) task.compensation(r);
  require_same_files(model->info().weights, hashes + task.calib_facts.hash);
  Recipe fp = r;
  fp.method = MethodName::Float;
  json ignored;
  for (size_t i = 0; o.paired && i < sources.size(); ++i) task.measure(fp, i, ignored, progress.callback());

  std::optional<Saved> saved;
  const Outcome outcome = make(task, o, progress, saved);
  const bool prints = o.json_path != "-";
  if (prints) print_model(task, o, outcome, saved);
  json records = json::array();
  std::string unbounded;  // the first text whose perplexity no number holds
  for (size_t i = 0; i < sources.size(); ++i) {
    json record = model_record(*model, r, outcome.fitted);
    const Measured measured = task.measure(r, i, record, progress.callback());
    if (!std::isfinite(measured.figure) && unbounded.empty()) unbounded = sources[i].path;
    progress.finish();
    record.update(run_facts());
    record.update({{"seconds", timer.seconds()}, {"warnings", progress.warnings()}});
    if (calibrates(r)) record.update(task.calibration_facts());
    if (calibrates(r)) record["walk_seconds"] = walk_seconds(outcome);
    if (saved) record["saved"] = to_json(o.save, *saved);
    records.push_back(std::move(record));
    if (prints) print_text(task.text(r, i), task.results[i], task.floats[i], timer.seconds());
  }
  write_record(o.json_path, records.size() == 1 ? records[0] : records);
  require(unbounded.empty(), "%s: the perplexity is too large for a number: the model does not predict this text",
          unbounded);
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line(
      "perplexity", "Perplexity of a language model on texts, in float or quantized and compensated.",
      "Examples:\n"
      "  perplexity --model data/mini/opt --text data/mini/text/test.txt\n"
      "  perplexity --model opt-125m --text wiki.test.raw ptb=my_ptb.txt --ppl-def gptq,word --method rtn --paired\n"
      "  perplexity --model opt-125m --corpora corpora --calib-text c4 --method gptq --wbits 3 --bc channel \\\n"
      "             --json result.json\n"
      "  perplexity --model opt-125m --corpora corpora --calib-text c4 --method gptq --wbits 2 --groupsize 64 \\\n"
      "             --act-order --layer-bits fc2=3 --exclude '^layers\\.0\\.'\n"
      "  perplexity --model opt-125m --corpora corpora --calib-text c4 --method gptq --groupsize 128 --sym \\\n"
      "             --bc channel --save opt-125m-4bit --format gptq\n"
      "  perplexity --model opt-125m-4bit --corpora corpora\n"
      "  perplexity ... --recipe result.json");
  Options options;
  add_options(line, options);
  line.share_work();
  return line.run(argc, argv, [&] { run(line, options); });
}
