// The byte alphabet and the merge loop; see bpe.h.
#include "data/text/bpe.h"

#include <utf8proc.h>

#include <array>
#include <functional>
#include <queue>

#include "engine/core/check.h"

namespace bcq {
namespace {

constexpr int32_t kMaxId = 1 << 24;  // far above any vocabulary; bounds what an id may allocate

struct Alphabet {
  std::array<std::string, 256> character;
  std::unordered_map<std::string, uint8_t> byte;

  Alphabet() {
    uint32_t spare = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const uint32_t code = printable ? b : spare++;
      std::string& s = character[b];
      utf8proc_uint8_t utf8[4];
      s.assign(utf8, utf8 + utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), utf8));
      byte[s] = static_cast<uint8_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet a;
  return a;
}

}  // namespace

const std::string& byte_character(uint8_t byte) { return alphabet().character[byte]; }

std::string token_bytes(const std::string& token) {
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const size_t length = static_cast<uint8_t>(token[i]) < 0x80 ? 1 : 2;
    const auto it = alphabet().byte.find(token.substr(i, length));
    if (it == alphabet().byte.end()) return token;
    bytes.push_back(static_cast<char>(it->second));
    i += length;
  }
  return bytes;
}

Bpe::Bpe(std::unordered_map<std::string, int32_t> vocab, const Merges& merges, const std::string& where)
    : where_(where), vocab_(std::move(vocab)) {
  std::vector<bool> seen;
  for (const auto& [token, id] : vocab_) {
    require_input(id >= 0 && id < kMaxId, "%s: id %d of token \"%s\" is out of range", where, id, token);
    const size_t at = static_cast<size_t>(id);
    if (at >= seen.size()) seen.resize(at + 1);
    require_input(!seen[at], "%s: id %d stands for two tokens, one is \"%s\"", where, id, token);
    seen[at] = true;
  }
  for (uint32_t b = 0; b < 256; ++b) bytes_[b] = find(byte_character(static_cast<uint8_t>(b)));
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [a, b] = merges[rank];
    const int32_t left = find(a), right = find(b), merged = find(a + b);
    require_input(left >= 0 && right >= 0 && merged >= 0,
                  "%s: merge %d (\"%s\" \"%s\") has a part or a result that is "
                  "not in the vocabulary",
                  where, rank, a, b);
    // Of a pair listed twice the later rank counts, as in the reference's dictionaries.
    merges_[static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right)] = {static_cast<int32_t>(rank), merged};
  }
}

int32_t Bpe::find(const std::string& token) const {
  const auto it = vocab_.find(token);
  return it == vocab_.end() ? -1 : it->second;
}

const Bpe::Merge* Bpe::find_merge(int32_t left, int32_t right) const {
  const auto it = merges_.find(static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right));
  return it == merges_.end() ? nullptr : &it->second;
}

std::vector<int32_t> Bpe::byte_tokens(std::string_view character) const {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::vector<int32_t> ids;
  for (const char c : character) {
    ids.push_back(find({'<', '0', 'x', kHex[c >> 4 & 15], kHex[c & 15], '>'}));
    if (ids.back() < 0) return {};
  }
  return ids;
}

std::vector<int32_t> Bpe::symbols(std::string_view piece) const {
  std::vector<int32_t> ids;
  ids.reserve(piece.size());
  bool waits = false;  // an unknown is written when the next symbol is none, and after what byte fallback writes
  for (size_t i = 0, n = 1; i < piece.size(); i += n) {
    const auto byte = static_cast<uint8_t>(piece[i]);
    n = !options.characters || byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    const std::string_view character = options.characters ? piece.substr(i, n) : std::string_view(byte_character(byte));
    const int32_t id = options.characters ? find(std::string(character)) : bytes_[byte];
    if (id < 0 && options.byte_fallback) {
      const std::vector<int32_t> fallback = byte_tokens(character);
      ids.insert(ids.end(), fallback.begin(), fallback.end());
      if (!fallback.empty()) continue;
    }
    require_input(id >= 0 || options.unknown >= 0, "%s: the vocabulary has no token for %s", where_,
                  options.characters ? "\"" + std::string(character) + "\"" : format("byte 0x%02x", byte));
    if (waits && (id >= 0 || !options.fuse_unknown)) ids.push_back(options.unknown);
    if (id >= 0) ids.push_back(id);
    waits = id < 0;
  }
  if (waits) ids.push_back(options.unknown);
  return ids;
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options.ignore_merges) {
    std::string spelled(options.characters ? piece : std::string_view{});
    for (size_t i = 0; i < piece.size() && !options.characters; ++i)
      spelled += byte_character(static_cast<uint8_t>(piece[i]));
    if (const int32_t whole = find(spelled); whole >= 0) return ids.push_back(whole);
  }
  std::vector<int32_t> symbol = symbols(piece), before(symbol.size()), after(symbol.size());
  const int32_t n = static_cast<int32_t>(symbol.size());
  for (int32_t i = 0; i < n; ++i) {
    before[static_cast<size_t>(i)] = i - 1;
    after[static_cast<size_t>(i)] = i + 1;
  }
  // Pairs that may be merged, best rank first and leftmost first among equals. Entries go
  // stale when a neighbour is merged; they are recognised when popped.
  struct Pair {
    int32_t rank, left, merged;
    bool operator>(const Pair& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };
  std::priority_queue<Pair, std::vector<Pair>, std::greater<>> queue;
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right >= n) return;
    const Merge* m = find_merge(symbol[static_cast<size_t>(left)], symbol[static_cast<size_t>(right)]);
    if (m) queue.push({m->rank, left, m->id});
  };
  for (int32_t i = 0; i + 1 < n; ++i) offer(i, i + 1);
  while (!queue.empty()) {
    const Pair top = queue.top();
    queue.pop();
    const size_t left = static_cast<size_t>(top.left);
    if (symbol[left] < 0 || after[left] >= n) continue;
    const size_t right = static_cast<size_t>(after[left]);
    const Merge* m = find_merge(symbol[left], symbol[right]);
    if (!m || m->id != top.merged) continue;
    symbol[left] = m->id;
    symbol[right] = -1;
    after[left] = after[right];
    if (after[left] < n) before[static_cast<size_t>(after[left])] = top.left;
    offer(before[left], top.left);
    offer(top.left, after[left]);
  }
  for (int32_t i = 0; i < n; i = after[static_cast<size_t>(i)]) ids.push_back(symbol[static_cast<size_t>(i)]);
}

}  // namespace bcq
