// Perplexity of a language model, in float or quantized and compensated: one cell of the language tables.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "data/text/corpus.h"
#include "data/text/tokenizer.h"
#include "eval/run.h"

namespace bcq {

// The window length of a run. UsageError when it is longer than the model's positions.
int64_t seqlen_of(const Model& model, const Recipe& recipe);
// The window of the embedded models: what they were trained on, and what a BLOOM's config does not limit it to.
constexpr int64_t kMiniSeqlen = 256;

// What the result of a text says of its tokens: how many before windows were cut, their hash, and the id that every
// tokenized string begins with (-1: none).
struct TokenFacts {
  int64_t tokens = 0;
  std::string hash;
  int32_t bos = -1;
  std::string text() const;  // "1234 tokens (BOS 2), hash 0123"
};

// A text to measure on: some of the first windows of it.
struct EvaluationText {
  TextSource source;
  TokenFacts facts;  // of the whole text
  Windows windows;
  TextCounts counts;  // where perplexity per word or byte is asked for
};

// Perplexity: exp(Σ nll / Σ weight) over units that are taken as independent.
//   gptq      unit: a window; nll: the mean over its L-1 predictions; weight 1. (GPTQ's opt_eval)
//   llamacpp  unit: a prediction of the second half of a window, whose first token is replaced by the tokenizer's
//             beginning-of-text token where it has one; weight 1. (llama-perplexity, error included)
//   word      unit: a window; nll: the sum over its predictions; weight: the words they spell
//   byte      the same with bytes
inline constexpr const char* kPerplexities[] = {"gptq", "llamacpp", "word", "byte"};
struct Perplexity {
  std::string definition;
  std::vector<double> nll, weight;  // of each unit
  double perplexity = 0;
  double se = 0;  // standard error: spread of the units, as of a ratio of two means; NaN for one unit
};
Perplexity perplexity(std::string definition, std::vector<double> nll, std::vector<double> weight);

// a / b as a percentage above 1, from the same units.
Estimate paired_ratio(const Perplexity& a, const Perplexity& b);
// The same of the first definition's units, when that is gptq.
Estimate paired_ratio(const Measured& a, const Measured& b);

class LanguageTask : public Task {
 public:
  // `texts` are read when they are first measured on, `calib` when it is first calibrated on. The tokenizer is loaded
  // unless all of them are token ids. UsageError for a definition of perplexity that needs one.
  LanguageTask(Model& m, std::vector<TextSource> texts, TextSource calib,
               std::vector<std::string> definitions = {"gptq"}, int64_t limit = 0);
  std::vector<Batch> calibration(const Recipe& recipe) override { return compensation(recipe); }
  // Windows, each a batch of its own as in the official scripts.
  const std::vector<Batch>& compensation(const Recipe& recipe) override;
  // One perplexity for each definition; the first is the result. Every window on its own, nothing carried over. The
  // definitions share a pass; llamacpp needs one of its own where there is a beginning-of-text token. The record has
  // the change against the float model where that was measured before and kept. Throws Error when an output is not
  // finite.
  Measured measure(const Recipe& recipe, size_t i, json& record, const Progress& progress) override;
  const EvaluationText& text(const Recipe& recipe, size_t i);
  json calibration_facts() const;  // of what compensation() has read

  Warn warn;  // hears of damaged text; without it that is refused
  std::vector<TextSource> sources;
  TextSource calib;
  TokenFacts calib_facts;
  std::vector<std::string> definitions;
  int64_t limit;                                         // windows to evaluate from the start; 0: all
  bool keeps_floats = false;                             // the results of float models are kept as floats
  std::vector<std::vector<Perplexity>> results, floats;  // by text, as last measured

 private:
  std::optional<Tokenizer> tokenizer_;
  std::vector<EvaluationText> texts_;
  std::vector<Batch> calib_;
};

// The recipe of a model that was loaded packed: method Stored, with what most of its layers have. UsageError as
// set_stored_method() has it.
void set_stored(Model& model, Recipe& recipe);

// "gptq 2 bit g64 act-order, 12 layers of 3 bit": what was done to the weights of a quantized model.
std::string describe_weights(Model& model, const Recipe& recipe);

}  // namespace bcq
