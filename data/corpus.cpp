// Windows and crops of tokenized text; see corpus.h.
#include "data/corpus.h"

#include <algorithm>

#include "data/random.h"
#include "data/split.h"
#include "engine/check.h"
#include "engine/json.h"

namespace bcq {

std::vector<int32_t> read_ids(const std::string& path, const Tokenizer& tokenizer) {
  const std::string text = read_file(path);
  require_input(!text.empty(), "%s: the text file is empty", path.c_str());
  const int64_t bad = invalid_utf8(text);
  require_input(bad < 0, "%s: not valid UTF-8 at byte %lld", path.c_str(), static_cast<long long>(bad));
  return tokenizer.encode(text);
}

Batch Windows::batch(int64_t begin, int64_t end) const {
  require(begin >= 0 && begin <= end && end <= count, "windows %lld..%lld of %lld", static_cast<long long>(begin),
          static_cast<long long>(end), static_cast<long long>(count));
  Batch out;
  out.ids.assign(ids.begin() + begin * length, ids.begin() + end * length);
  out.windows = end - begin;
  out.length = length;
  return out;
}

Windows perplexity_windows(const std::vector<int32_t>& ids, int64_t length, const std::string& where) {
  require_usage(length >= 2, "a window needs at least 2 tokens, got %lld", static_cast<long long>(length));
  const int64_t count = static_cast<int64_t>(ids.size()) / length;
  require_input(count >= 1, "%s: the text has %zu tokens, one window needs %lld", where.c_str(), ids.size(),
                static_cast<long long>(length));
  return {std::vector<int32_t>(ids.begin(), ids.begin() + count * length), length, count};
}

std::vector<int64_t> crop_starts(int64_t total, int64_t length, int64_t count, int64_t seed, const std::string& where) {
  require_usage(length >= 1 && count >= 1, "%lld crops of %lld tokens", static_cast<long long>(count),
                static_cast<long long>(length));
  require_input(total > length, "%s: the text has %lld tokens, drawing crops of %lld needs at least %lld",
                where.c_str(), static_cast<long long>(total), static_cast<long long>(length),
                static_cast<long long>(length) + 1);
  PythonRandom random(seed);
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < count; ++i) starts.push_back(random.randint(0, total - length - 1));
  return starts;
}

Windows calibration_crops(const std::vector<int32_t>& ids, int64_t length, int64_t count, int64_t seed,
                          const std::string& where) {
  Windows out{{}, length, count};
  for (const int64_t start : crop_starts(static_cast<int64_t>(ids.size()), length, count, seed, where)) {
    out.ids.insert(out.ids.end(), ids.begin() + start, ids.begin() + start + length);
  }
  return out;
}

}  // namespace bcq
