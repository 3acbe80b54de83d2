// BPE tokenizers from the files a model ships with, of bytes (GPT-2, OPT, BLOOM, Llama 3, Qwen2) and of characters, as
// SentencePiece has them (Llama 2, Mistral): text to token ids, equal to the Hugging Face tokenizers library, and back.
//
// Two layouts are read: tokenizer.json, or vocab.json with merges.txt. What a file asks for is
// obeyed, passed over where it changes no id, or refused by name.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/bpe.h"
#include "data/text/normalize.h"
#include "data/text/split.h"

namespace bcq {

// A token that is found in the text before it is split, with the flags of the file.
struct AddedToken {
  std::string content;  // as it is searched: normalized where the text is
  int32_t id = 0;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // ... and after it
  bool normalized = false;   // searched in what the others left over
};

class Tokenizer {
 public:
  // From a model directory. InputError, naming file and key, when neither layout is there,
  // a file is malformed, or asks for something that would change ids and is not known here.
  //
  // Beginning-of-text policy. tokenizer.json: what its post-processor inserts;
  // "add_bos_token": true beside one that inserts nothing is a contradiction and refused.
  // vocab.json: add_bos_token of tokenizer_config.json, without that key true exactly when
  // config.json says the model is OPT. Truncation and padding settings are ignored.
  //
  // Added tokens beside vocab.json: those of added_tokens_decoder (tokenizer_config.json) with their flags; where that
  // is missing those of added_tokens.json; and the special tokens that are in the vocabulary.
  static Tokenizer load(const std::string& dir);

  // Ids of a text; add_special: with the tokens the post-processor puts around it. An added
  // token written in the text becomes its id either way. InputError with the byte offset when
  // the text is not valid UTF-8 (nothing is replaced: a damaged corpus is not a result), or
  // longer than 2^31 - 1 bytes, or when splitting takes too long (SplitBudget: over all texts of this tokenizer).
  std::vector<int32_t> encode(const std::string& utf8, bool add_special = true) const;

  // The bytes the tokens spell; raw, so a cut character stays as it is. Where a space was put before a text, it is
  // there. Error on unknown ids.
  std::string decode(const std::vector<int32_t>& ids) const;

  // The bytes of one token; empty when the id has none.
  std::string bytes(int32_t id) const {
    return id >= 0 && id < vocab_size() ? bytes_[static_cast<size_t>(id)] : std::string();
  }

  int32_t bos() const { return prefix_.empty() ? -1 : prefix_.front(); }      // what encode puts first; -1: nothing
  int64_t vocab_size() const { return static_cast<int64_t>(bytes_.size()); }  // largest id + 1
  const std::vector<AddedToken>& added_tokens() const { return added_; }

 private:
  friend class TokenizerReader;
  explicit Tokenizer(Bpe bpe) : bpe_(std::move(bpe)) {}

  using Emit = std::function<void(std::string_view)>;
  void cut_at_added(std::string_view text, bool normalized, const Emit& rest, std::vector<int32_t>& ids) const;
  void split(std::string_view text, int step, const Emit& piece) const;
  std::string normalize(std::string_view text) const;
  void split_at_spaces(std::string_view text, bool first, const Emit& piece) const;
  std::string spelled(const std::string& token) const;  // the bytes of a token string

  // How characters are cut into pieces, instead of by steps: spaces become `space`.
  struct Metaspace {
    enum class Prepend { Never, First, Always };  // before what does not begin with one; First: at the text's beginning
    std::string space = {};
    Prepend prepend = Prepend::Never;
    bool split = false;  // a piece ends before each
  };

  Bpe bpe_;
  std::vector<Normalizer> normalizers_;  // of the text between the added tokens that are not normalized
  Metaspace metaspace_;
  std::vector<Splitter> steps_;  // applied one after another, each to every piece of the last
  int prefix_step_ = -1;         // what comes to this step without a space at its start is given one; -1: nothing
  std::shared_ptr<SplitBudget> budget_ = std::make_shared<SplitBudget>();
  std::vector<AddedToken> added_;  // longest first
  bool starts_[2][256] = {};       // [normalized][byte]: an added token begins with that byte
  std::vector<int32_t> prefix_, suffix_;
  std::vector<std::string> bytes_;  // per id; empty when the id has no token
};

// Text from tokens that come one at a time. A character is given when it is whole; bytes that cannot become one are
// U+FFFD, one for each run that a character could have begun with, as in transformers. An id without a token (models
// have more rows than their tokenizers) is no text.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  std::string next(int32_t id);
  std::string finish();  // what was held back

 private:
  std::string take(bool all);
  const Tokenizer* tokenizer_;
  std::string held_;
};

}  // namespace bcq
