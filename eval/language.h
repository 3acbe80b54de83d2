// Perplexity of a language model, in float or quantized and compensated: one cell of the language tables.
#pragma once
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/tokenizer.h"
#include "engine/json.h"
#include "models/model.h"
#include "quant/allocation.h"
#include "quant/bias_comp.h"
#include "quant/walk.h"

namespace bcq {

struct LanguageRun {
  std::string method = "fp";                     // fp, rtn, gptq
  GptqOptions weights;                           // of which rtn takes the grid
  std::vector<std::string> layer_bits, exclude;  // REGEX=K and REGEX: site_rules()
  int64_t nsamples = 128;                        // calibration windows
  int64_t seqlen = 0;                            // tokens of a window; 0: the model's longest, at most 2048
  int64_t seed = 0;
  std::string bc = "none";  // none, channel, position
  std::string bc_sites = "linear,block";
  int64_t limit = 0;  // windows to evaluate from the start; 0: all
};

// The window length of a run. UsageError when it is longer than the model's positions.
int64_t seqlen_of(const Model& model, const LanguageRun& run);
// The calibration windows of a run, each a batch of its own as in the official scripts: drawn from the ids of a text.
std::vector<Batch> calibration_batches(const Model& model, const std::vector<int32_t>& ids, const LanguageRun& run,
                                       const std::string& where);

void quantize_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run, const Progress& progress,
                       const Warn& warn);
// The number of values fitted; 0 for bc none.
int64_t compensate_language(Model& model, const std::vector<Batch>& calib, const LanguageRun& run,
                            const Progress& progress);

struct Perplexity {
  std::vector<double> nll;  // mean negative log-likelihood of each window's T-1 predictions
  double perplexity = 0;    // exp of their mean: GPTQ's definition
  double se = 0;            // standard error from the spread between windows
  int64_t tokens = 0;       // tokens in the windows that were used
};
// Every window on its own, nothing carried over. Throws Error when an output is not finite.
Perplexity evaluate_language(const Model& model, const Windows& windows, const LanguageRun& run,
                             const Progress& progress);
// FNV-1a of the ids as little-endian 32-bit words, in hexadecimal: tells whether two runs saw the same tokens.
std::string token_hash(const std::vector<int32_t>& ids);

// a / b as a percentage above 1, and its standard error, from the same windows.
struct Ratio {
  double percent = 0, se = 0;
};
Ratio paired_ratio(const Perplexity& a, const Perplexity& b);

// "gptq 2 bit g64 act-order, 12 layers of 3 bit": what was done to the weights of a quantized model.
std::string describe_weights(Model& model, const LanguageRun& run);
json language_record(Model& model, const LanguageRun& run, const Perplexity& result, int64_t bc_parameters,
                     double seconds);

}  // namespace bcq
