// Encoding and decoding; see tokenizer.h. Reading the files is in tokenizer_files.cpp.
#include "data/text/tokenizer.h"

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "engine/core/check.h"

namespace bcq {

// Leftmost-longest search for the added tokens of one kind: their ids go to `ids`, the text
// between them to `rest`, in order. A match that single_word rejects is passed over as a whole.
void Tokenizer::cut_at_added(std::string_view text, bool normalized, const Emit& rest,
                             std::vector<int32_t>& ids) const {
  size_t done = 0;
  const bool* starts = starts_[normalized ? 1 : 0];
  for (size_t i = 0; i < text.size();) {
    const AddedToken* token = nullptr;
    if (starts[static_cast<uint8_t>(text[i])]) {
      for (const AddedToken& t : added_) {
        if (t.normalized == normalized && text.compare(i, t.content.size(), t.content) == 0) {
          token = &t;
          break;
        }
      }
    }
    if (!token) {
      ++i;
      continue;
    }
    size_t begin = i, end = i + token->content.size();
    i = end;
    if (token->single_word && (word_before(text, begin) || word_after(text, end))) continue;
    if (token->lstrip) begin = std::max(spaces_before(text, begin), done);
    if (token->rstrip) end = spaces_after(text, end);
    if (begin > done) rest(text.substr(done, begin - done));
    ids.push_back(token->id);
    done = end;
  }
  if (done < text.size()) rest(text.substr(done));
}

void Tokenizer::split(std::string_view text, int step, const Emit& piece) const {
  if (step == prefix_step_ && text.front() != ' ') return split(" " + std::string(text), step, piece);
  if (step == static_cast<int>(steps_.size())) return piece(text);
  const auto next = [&](std::string_view part) { split(part, step + 1, piece); };
  steps_[static_cast<size_t>(step)].split(text, next, budget_.get());
}

std::string Tokenizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const Normalizer& step : normalizers_) out = step(out);
  return out;
}

void Tokenizer::split_at_spaces(std::string_view text, bool first, const Emit& piece) const {
  const auto& [space, prepend, split] = metaspace_;
  std::string whole = replace_all(text, " ", space);
  if ((prepend == Metaspace::Prepend::Always || (first && prepend == Metaspace::Prepend::First)) &&
      whole.compare(0, space.size(), space) != 0)
    whole = space + whole;
  if (!split) return piece(whole);
  for (size_t begin = 0, end = 0; begin < whole.size(); begin = end) {
    end = std::min(whole.find(space, begin + 1), whole.size());
    piece(std::string_view(whole).substr(begin, end - begin));
  }
}

std::vector<int32_t> Tokenizer::encode(const std::string& utf8, bool add_special) const {
  require_input(utf8.size() <= 0x7fffffff, "a text of %d bytes is too long to tokenize", utf8.size());
  const int64_t bad = invalid_utf8(utf8);
  require_input(bad < 0, "text is not valid UTF-8 at byte %d", bad);
  std::vector<int32_t> ids;
  if (add_special) ids = prefix_;
  // Pieces repeat (Zipf's law), so their ids are kept for the length of one encode(). Long pieces are rarely seen
  // twice, and the number is bounded for texts that never repeat.
  constexpr size_t kLongest = 128, kMost = size_t{1} << 17;
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
  };
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> known;
  const Emit piece = [&](std::string_view part) {
    if (part.size() > kLongest) return bpe_.encode(part, ids);
    auto it = known.find(part);
    if (it == known.end()) {
      std::vector<int32_t> fresh;
      bpe_.encode(part, fresh);
      if (known.size() >= kMost) known.clear();
      it = known.emplace(std::string(part), std::move(fresh)).first;
    }
    ids.insert(ids.end(), it->second.begin(), it->second.end());
  };
  const size_t none = ids.size();
  const Emit stretch = [&](std::string_view part) {
    if (bpe_.options.characters)
      split_at_spaces(part, ids.size() == none, piece);
    else
      split(part, 0, piece);
  };
  const Emit normal = [&](std::string_view part) { cut_at_added(part, true, stretch, ids); };
  const Emit raw = [&](std::string_view part) { normalizers_.empty() ? normal(part) : normal(normalize(part)); };
  cut_at_added(utf8, false, raw, ids);
  if (add_special) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

std::string Tokenizer::spelled(const std::string& token) const {
  if (!bpe_.options.characters) return token_bytes(token);
  int value = 0;
  if (bpe_.options.byte_fallback && token.size() == 6 && token.rfind("<0x", 0) == 0 && token[5] == '>' &&
      std::from_chars(&token[3], &token[5], value, 16).ptr == &token[5])
    return {static_cast<char>(value)};
  return replace_all(token, metaspace_.space, " ");
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (const int32_t id : ids) {
    const std::string token = bytes(id);
    require(!token.empty(), "decode: token id %d is not in a vocabulary of %d", id, vocab_size());
    text += token;
  }
  return text;
}

std::string TextStream::next(int32_t id) {
  held_ += tokenizer_->bytes(id);
  return take(false);
}

std::string TextStream::finish() { return take(true); }

std::string TextStream::take(bool all) {
  std::string_view rest = held_;
  const std::string text = as_utf8(rest, all).first;
  held_ = std::string(rest);
  return text;
}

}  // namespace bcq
