// Perplexity of a language model, in float or quantized and compensated: one cell of the language tables.
#pragma once
#include <string>
#include <vector>

#include "data/text/corpus.h"
#include "data/text/tokenizer.h"
#include "engine/file/json.h"
#include "models/model.h"
#include "quant/allocation.h"
#include "quant/bias_comp.h"
#include "quant/weight_methods.h"

namespace bcq {

struct LanguageRun {
  std::string method = "fp";                     // fp, rtn, gptq
  GptqOptions weights;                           // of which rtn takes the grid
  std::vector<std::string> layer_bits, exclude;  // REGEX=K and REGEX: site_rules()
  int64_t nsamples = 128;                        // calibration windows
  int64_t seqlen = 0;                            // tokens of a window; 0: the model's longest, at most 2048
  int64_t seed = 0;
  bool true_sequential = false;  // GptqMethodOptions::sequential
  std::string hessian = "raw";   // raw, centred
  std::string target = "own";    // own, float
  int refine = 0;                // sweeps
  std::string bc = "none";       // none, channel, position
  std::string bc_sites = "linear,block";
  std::string bc_stream = "float";          // float, quantized: BcStream. GPTQ does the latter in its own walk
  int prefill_bits = 24;                    // Context::window_bits
  int64_t limit = 0;                        // windows to evaluate from the start; 0: all
  std::vector<std::string> ppl = {"gptq"};  // definitions of perplexity, see below; the first is the result
};

// The window length of a run. UsageError when it is longer than the model's positions.
int64_t seqlen_of(const Model& model, const LanguageRun& run);
// The window of the embedded models: what they were trained on, and what a BLOOM's config does not limit it to.
constexpr int64_t kMiniSeqlen = 256;

// What the result of a text says of its tokens: how many before windows were cut, their hash, and the id that every
// tokenized string begins with (-1: none).
struct TokenFacts {
  int64_t tokens = 0;
  std::string hash;
  int32_t bos = -1;
};
// A text to calibrate on: run.nsamples windows, each a batch of its own as in the official scripts.
struct Calibration {
  TextSource source;
  TokenFacts facts;  // of the windows
  std::vector<Batch> batches;
};
Calibration read_calibration(const Model& model, const TextSource& source, const Tokenizer* tokenizer,
                             const LanguageRun& run);

// A text to measure on: the first run.limit windows of it.
struct EvaluationText {
  TextSource source;
  TokenFacts facts;  // of the whole text
  Windows windows;
  TextCounts counts;  // where run.ppl asks for perplexity per word or byte
};
// `tokenizer` may be null for token ids from a file. UsageError for perplexity per word or byte without one.
EvaluationText read_evaluation(const Model& model, const TextSource& source, const Tokenizer* tokenizer,
                               const LanguageRun& run);

// What the walk did, for gptq. `store` (may be null) keeps finished blocks and has those of an interrupted run.
CalibrationResult quantize_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run,
                                    const Progress& progress, const Warn& warn, PartStore* store = nullptr);
// What quantize_language() has left to do.
CalibrationResult compensate_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run,
                                      const Progress& progress, PartStore* store = nullptr);

// Perplexity: exp(Σ nll / Σ weight) over units that are taken as independent.
//   gptq      unit: a window; nll: the mean over its L-1 predictions; weight 1. (GPTQ's opt_eval)
//   llamacpp  unit: a prediction of the second half of a window, whose first token is replaced by the tokenizer's
//             beginning-of-text token where it has one; weight 1. (llama-perplexity, error included)
//   word      unit: a window; nll: the sum over its predictions; weight: the words they spell
//   byte      the same with bytes
inline constexpr char kPerplexities[] = "gptq, llamacpp, word, byte";
struct Perplexity {
  std::string definition;
  std::vector<double> nll, weight;  // of each unit
  double perplexity = 0;
  double se = 0;  // standard error: spread of the units, as of a ratio of two means; NaN for one unit
  int64_t windows = 0, length = 0;
};
Perplexity perplexity(std::string definition, std::vector<double> nll, std::vector<double> weight);

// One for each definition of run.ppl. Every window on its own, nothing carried over. The definitions share a pass;
// llamacpp needs one of its own where there is a beginning-of-text token. Throws Error when an output is not finite.
std::vector<Perplexity> evaluate_language(const Model& model, const EvaluationText& text, const LanguageRun& run,
                                          const Progress& progress);

// a / b as a percentage above 1, and its standard error, from the same units.
struct Ratio {
  double percent = 0, se = 0;
};
Ratio paired_ratio(const Perplexity& a, const Perplexity& b);

// Evaluate a model that was loaded packed: run.method becomes "stored", run.weights what most of its layers have.
// UsageError when the run quantizes or compensates.
void set_stored(Model& model, LanguageRun& run);

// "gptq 2 bit g64 act-order, 12 layers of 3 bit": what was done to the weights of a quantized model.
std::string describe_weights(Model& model, const LanguageRun& run);
// How the weights of a model were quantized and compensated: method, bits, groups, options, seed.
json recipe(Model& model, const LanguageRun& run);

// What a run measured on one text. `floats`: the float model's perplexities on it, empty when not measured.
json language_record(Model& model, const LanguageRun& run, const EvaluationText& text,
                     const std::vector<Perplexity>& results, const std::vector<Perplexity>& floats,
                     int64_t bc_parameters, double seconds);

}  // namespace bcq
