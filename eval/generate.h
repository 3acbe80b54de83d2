// Text that a language model goes on with, one token at a time.
#pragma once
#include <functional>
#include <vector>

#include "data/random.h"
#include "models/model.h"

namespace bcq {

// How the next token is drawn, in the order transformers applies it: logits over the temperature, the top_k largest
// of them, of those the fewest that together have probability top_p.
struct Sampling {
  double temperature = 0;  // 0: the largest logit
  int64_t top_k = 0;       // 0: all
  double top_p = 1;
  int64_t seed = 0;
};
// UsageError for values out of their ranges.
void check(const Sampling& sampling);
// Deterministic for a seed: logits [V]. Of equal ones the first comes first. Error when one is not finite.
int32_t pick(const Tensor& logits, const Sampling& sampling, PythonRandom& random);

// The ids that end a text: eos_token_id of generation_config.json, else of config.json; a number or a list.
std::vector<int32_t> end_tokens(const Model& model);

// The longest text a model has positions for: max_length, and what a compensation per position was fitted for.
int64_t longest_text(Model& model);

struct Generated {
  std::vector<int32_t> ids;  // without the one that ended it
  const char* finish = "";   // "length": as many as wanted; "eos"; "positions": the model has no more
  double prefill_seconds = 0, decode_seconds = 0;  // until the first token is known; for those after it
};
// At most `tokens` tokens after the prompt [at least 1]; each(id) as soon as it is known. UsageError when the prompt
// leaves no position for one.
Generated generate(Model& model, const std::vector<int32_t>& prompt, int64_t tokens, const Sampling& sampling,
                   const std::function<void(int32_t)>& each);

}  // namespace bcq
