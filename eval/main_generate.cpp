// generate: a language model, in float or quantized, goes on with a prompt.
#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "data/text/tokenizer.h"
#include "engine/core/check.h"
#include "engine/file/file.h"
#include "engine/file/json.h"
#include "eval/cli.h"
#include "eval/generate.h"
#include "eval/run.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, prompt, prompt_file, json_path;
  bool interactive = false;
  int64_t tokens = 128;
  Sampling sampling;
};

void add_options(CommandLine& line, Options& o) {
  constexpr double kMany = 1e15;
  line.add_model(o.model, "config.json, weights and tokenizer");
  line.add({"--prompt", "TEXT", "Text to go on with"}, o.prompt);
  line.add({"--prompt-file", "FILE", "The same from a file (-: standard input)"}, o.prompt_file);
  line.add({"--interactive", "", "Go on with each line of standard input, until it ends"}, o.interactive);
  line.add({"--max-new-tokens", "N", "Tokens to add at most"}, o.tokens, 1, kMany);
  line.add(
      {"--temperature", "T", "0: the likeliest token each time; above: tokens drawn from the softmax of logits over T"},
      o.sampling.temperature, 0, kMany);
  line.add({"--top-k", "K", "Draw from the K likeliest tokens (0: from all)"}, o.sampling.top_k, 0, kMany);
  line.add({"--top-p", "P", "Draw from the fewest tokens that together have probability P"}, o.sampling.top_p, 0, 1);
  line.add({"--seed", "N", "Seed of the draws"}, o.sampling.seed, -kMany, kMany);
  line.add_output({"--json", "FILE", "Write the result as a JSON record (-: stdout, which then has no text)"},
                  o.json_path);
}

double per_second(size_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

// Stream what the model makes of a prompt, then what it took; the record of it.
json go_on(Model& model, const Tokenizer& tokenizer, const std::string& given, const Options& o) {
  const std::vector<int32_t> prompt = tokenizer.encode(given);
  const bool prints = o.json_path != "-";
  std::string text;
  const auto show = [&](const std::string& part) {
    text += part;
    if (!prints) return;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
  };
  TextStream stream(tokenizer);
  if (prints) std::fputs(given.c_str(), stdout);
  const Generated result = generate(model, prompt, o.tokens, o.sampling, [&](int32_t id) { show(stream.next(id)); });
  show(stream.finish());
  if (prints) print("\n");

  const size_t decoded = result.ids.size() - (result.ids.empty() || std::string(result.finish) == "eos" ? 0 : 1);
  const double prefill = per_second(prompt.size(), result.prefill_seconds);
  const double decode = per_second(decoded, result.decode_seconds), bits = bits_per_weight(model);
  json record = run_facts();
  print(stderr,
        "%s: %.2f bits per weight of the blocks; prompt of %d tokens, %.1f tokens/s; %d new tokens, %.1f "
        "tokens/s after the first; %.0f MB at most\n",
        model.info().name, bits, prompt.size(), prefill, result.ids.size(), decode,
        record["peak_rss_mb"].get<double>());
  if (std::string(result.finish) == "positions")
    print(stderr, "note: it ends because %s has no positions left\n", model.info().name);
  record.update({{"model", model.info().name},
                 {"bits_per_weight", bits},
                 {"prompt", given},
                 {"text", text},
                 {"prompt_ids", prompt},
                 {"ids", result.ids},
                 {"finish", result.finish},
                 {"temperature", o.sampling.temperature},
                 {"top_k", o.sampling.top_k},
                 {"top_p", o.sampling.top_p},
                 {"seed", o.sampling.seed},
                 {"prefill_seconds", result.prefill_seconds},
                 {"prefill_tokens_per_second", prefill},
                 {"decode_seconds", result.decode_seconds},
                 {"decode_tokens_per_second", decode}});
  return record;
}

void run(const CommandLine& line, const Options& o) {
  check(o.sampling);
  require_usage(line.has("--prompt") + line.has("--prompt-file") + line.has("--interactive") == 1,
                "give one of --prompt, --prompt-file and --interactive");
  for (const char* flag : {"--top-k", "--top-p", "--seed"})
    require_usage(o.sampling.temperature > 0 || !line.has(flag), "%s has no effect without --temperature", flag);
  require_usage(!o.interactive || o.json_path.empty(), "--json is the record of one prompt, not of --interactive");
  const auto model = load_model(o.model);
  require_usage(model->info().family == Family::Language, "%s is a vision model: it has no text to go on with",
                model->info().name);
  const Tokenizer tokenizer = Tokenizer::load(model->info().directory);
  malloc_trim(0);  // what reading the files took
  if (!o.interactive) {
    const std::string path = o.prompt_file == "-" ? "/dev/stdin" : o.prompt_file;
    write_record(o.json_path, go_on(*model, tokenizer, line.has("--prompt") ? o.prompt : read_file(path), o));
    return;
  }
  const auto ask = [] {
    if (::isatty(0) && ::isatty(2)) print(stderr, "> ");
    return true;
  };
  for (std::string prompt; ask() && std::getline(std::cin, prompt);) {
    if (prompt.ends_with('\r')) prompt.pop_back();
    try {
      if (!prompt.empty()) go_on(*model, tokenizer, prompt, o);
    } catch (const UsageError& e) {  // of this prompt: too long
      print(stderr, "%s\n", e.what());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line(
      "generate", "Text from a language model, in float or quantized.",
      "Examples:\n"
      "  generate --model data/mini/opt --prompt 'The little dog'\n"
      "  generate --model data/mini/opt --interactive\n"
      "  generate --model opt-125m-4bit --prompt 'Once upon a time' --max-new-tokens 200 --temperature 0.8 --top-p "
      "0.95");
  Options options;
  add_options(line, options);
  return line.run(argc, argv, [&] { run(line, options); });
}
