// Text files as token windows: for perplexity, and for calibration.
//
// Words for lengths: a text has T tokens, a window L of them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "engine/tensor.h"

namespace bcq {

// The whole file as one text, byte for byte (line ends and spaces kept, a byte-order mark
// too), tokenized once: a tokenizer with a beginning-of-text token gives one in total.
// InputError naming the file when it cannot be read, is empty, or is not UTF-8.
std::vector<int32_t> read_ids(const std::string& path, const Tokenizer& tokenizer);

// `count` windows of `length` ids each, in order.
struct Windows {
  std::vector<int32_t> ids;  // [count, length]
  int64_t length = 0;
  int64_t count = 0;

  Batch batch(int64_t begin, int64_t end) const;  // windows [begin, end); Error when out of range
  Batch all() const { return batch(0, count); }
};

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

}  // namespace bcq
