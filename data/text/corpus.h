// Texts as token windows: for perplexity, and for calibration.
//
// A definition says which rows a file holds, how they are joined and which windows are taken. Those of WikiText-2,
// PTB and C4 are the published ones (get_loaders in the GPTQ repository's datautils.py, which the bias-compensation
// scripts share), down to Python's random numbers: the same seed picks the same windows.
//
// Words for lengths: a text has T tokens, a window L of them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/text/text_file.h"
#include "data/text/tokenizer.h"
#include "engine/core/tensor.h"

namespace bcq {

enum class Definition {
  Plain,      // the whole file, byte for byte, tokenized once
  Wikitext2,  // a row per line, its end kept, blank lines empty; rows joined with "\n\n"
  Ptb,        // a sentence per line, stripped; joined with "\n\n". The papers' PTB: the validation split
  PtbNew,     // joined with " ". The test split
  C4,         // 256 crops of random documents of more than L tokens, drawn with seed 0
  C4New,      // the first 1100 documents joined with " ", of that 256 L tokens
  Tokens      // ids from a file, see read_tokens()
};
inline constexpr char kDefinitions[] = "plain, wikitext2, ptb, ptb-new, c4, c4-new, tokens";
const char* name_of(Definition definition);

struct TextSource {
  Definition definition = Definition::Plain;
  std::string path;
};

enum class Split { Evaluation, Calibration };
// What a program's option says of a text:
//   DEFINITION=FILE   that
//   FILE              by its name: wiki.*.raw and wiki.*.tokens are wikitext2, ptb.*.txt is ptb, .json, .jsonl and
//                     either with .gz are c4; all others are plain
//   DEFINITION        the official file, wherever it lies below the folder `corpora`
// UsageError for a definition without `corpora`; InputError when the file is not there, or there twice.
TextSource text_source(const std::string& spec, const std::string& corpora, Split split);
// The official file of a definition below `corpora`, "" when it is not there.
std::string find_corpus(Definition definition, const std::string& corpora, Split split);

// FNV-1a of the ids as little-endian 32-bit words, in hexadecimal: tells whether two runs saw the same tokens.
std::string token_hash(const std::vector<int32_t>& ids);

// `count` windows of `length` ids each, in order.
struct Windows {
  std::vector<int32_t> ids;  // [count, length]
  int64_t length = 0;
  int64_t count = 0;

  Batch batch(int64_t begin, int64_t end) const;  // windows [begin, end); Error when out of range
};

// The tokens perplexity is measured on. A tokenizer with a beginning-of-text token gives one per tokenized string:
// one in total, or for C4 one per document, inside a crop only when that starts at 0. `tokenizer` may be null for
// Definition::Tokens. InputError naming the file for what is wrong in it; `warn` (may be empty) is told what was
// mended.
std::vector<int32_t> evaluation_ids(const TextSource& source, const Tokenizer* tokenizer, int64_t length,
                                    const Warn& warn = {});

// Where calibration windows begin.
//   None      as in the published loaders after random.seed(seed): C4 (both) in random documents, the others at random
//             places of the whole text
//   Document  at random documents, with random.seed(seed) and one randint for each; where one is shorter than the
//             window, the next ones follow. Documents are the objects of C4 (both), each tokenized on its own; of token
//             ids what begins with one of `separators`; of other texts the same if any are given, else what follows a
//             blank line.
// For networks that have seen nothing but whole documents: from inside one they predict badly, and errors of
// quantization there are not those that matter.
enum class Align { None, Document };

// `separators`: by default the tokenizer's beginning-of-text token. UsageError when token ids have none. InputError
// when no document is followed by enough tokens, or the text is all one document.
Windows calibration_windows(const TextSource& source, const Tokenizer* tokenizer, int64_t length, int64_t count,
                            int64_t seed, Align align = Align::None, const std::vector<int32_t>& separators = {},
                            const Warn& warn = {});

// Consecutive, non-overlapping windows from the first token on; the last T mod L tokens are
// dropped. `where` names the text in messages. UsageError when length < 2 (nothing would be
// predicted); InputError with both numbers when the text is shorter than one window.
Windows perplexity_windows(const std::vector<int32_t>& ids, int64_t length, const std::string& where);

// Where GPTQ's calibration crops of a text of `total` tokens start: after random.seed(seed),
// one randint(0, total - length - 1) per crop. The last possible window is never drawn and
// crops may overlap, as in the reference. InputError when total < length + 1.
std::vector<int64_t> crop_starts(int64_t total, int64_t length, int64_t count, int64_t seed, const std::string& where);

// The crops themselves.
Windows calibration_crops(const std::vector<int32_t>& ids, int64_t length, int64_t count, int64_t seed,
                          const std::string& where);

// What the predicted tokens of a window (all but its first) spell, for perplexities per byte and per word.
struct TextCounts {
  std::vector<double> bytes;  // [count]
  std::vector<double> words;  // [count]; a word counts where it begins: no ASCII white space after some
};
TextCounts count_text(const Windows& windows, const Tokenizer& tokenizer);

}  // namespace bcq
