// Byte-pair encoding: one piece of text to token ids and back (Sennrich et al., 2016), of bytes in the alphabet of
// GPT-2, or of characters, as SentencePiece has it. Where a text is cut into pieces is split.h's business.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace bcq {

// Vocabularies spell every byte as one printable character: 33-126, 161-172 and 174-255 as
// themselves, the other 68, in order, as U+0100, U+0101, ... The UTF-8 of each byte's character.
const std::string& byte_character(uint8_t byte);
// The bytes a token string spells, or the string itself when it is not spelled in those.
std::string token_bytes(const std::string& token);

class Bpe {
 public:
  using Merges = std::vector<std::pair<std::string, std::string>>;  // best rank first

  // vocab: token string -> id, spelled in byte characters. InputError naming `where`: an id
  // that is negative, too large or used twice; a merge of or into something not in the vocab.
  Bpe(std::unordered_map<std::string, int32_t> vocab, const Merges& merges, const std::string& where);

  int32_t find(const std::string& token) const;  // id of a token string, -1 when there is none
  int64_t size() const { return static_cast<int64_t>(vocab_.size()); }
  const std::unordered_map<std::string, int32_t>& vocab() const { return vocab_; }

  struct Options {
    bool characters = false;  // pieces are characters as they stand, and so are token strings; else they are bytes
    // What a character without a token becomes: the tokens "<0xC4>" and "<0xA0>" of its bytes C4 A0 (as the reference
    // does it, where the vocabulary has them all; a byte's character is byte_character()), else `unknown`, of which a
    // run is one when `fuse_unknown` is set; InputError when that is -1.
    bool byte_fallback = false, fuse_unknown = false;
    int32_t unknown = -1;
    bool ignore_merges = false;  // a piece that is itself a token skips the merges
  };
  Options options;

  // Append the ids of `piece` (raw bytes): start from single bytes or characters and keep merging the
  // adjacent pair of best rank, leftmost first. O(n log n).
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank, id;
  };
  const Merge* find_merge(int32_t left, int32_t right) const;
  std::vector<int32_t> symbols(std::string_view piece) const;          // before any merge
  std::vector<int32_t> byte_tokens(std::string_view character) const;  // "<0xC4>" ...; empty when one is missing

  std::string where_;
  std::unordered_map<std::string, int32_t> vocab_;
  std::unordered_map<uint64_t, Merge> merges_;  // key: left id << 32 | right id
  int32_t bytes_[256];                          // -1: there is no token
};

}  // namespace bcq
