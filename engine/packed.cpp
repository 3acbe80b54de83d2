#include "engine/packed.h"

#include <algorithm>

#include "engine/check.h"
#include "engine/parallel.h"

namespace bcq {

void pack_codes(const uint8_t* codes, int64_t n, int bits, uint32_t* words) {
  const uint32_t* const end = words + packed_words(n, bits);
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    buffer |= static_cast<uint64_t>(codes[i]) << filled;
    filled += bits;
    if (filled < 32) continue;
    *words++ = static_cast<uint32_t>(buffer);
    buffer >>= 32;
    filled -= 32;
  }
  if (filled > 0) *words++ = static_cast<uint32_t>(buffer);
  std::fill(words, const_cast<uint32_t*>(end), 0u);
}

void unpack_codes(const uint32_t* words, int64_t n, int bits, uint8_t* codes) {
  const uint64_t mask = (1u << bits) - 1;
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (filled < bits) {
      buffer |= static_cast<uint64_t>(*words++) << filled;
      filled += 32;
    }
    codes[i] = static_cast<uint8_t>(buffer & mask);
    buffer >>= bits;
    filled -= bits;
  }
}

PackedWeight::PackedWeight(Affine g, Shape s, const std::vector<uint8_t>& codes)
    : grid(std::move(g)), shape(std::move(s)) {
  require(shape.size() == 2 && static_cast<int64_t>(codes.size()) == numel(shape), "%zu codes for a weight of shape %s",
          codes.size(), to_string(shape).c_str());
  words.resize(static_cast<size_t>(shape[0] * row_words()));
  parallel_for(shape[0], [&](int64_t r) {
    pack_codes(codes.data() + r * shape[1], shape[1], grid.bits, words.data() + r * row_words());
  });
}

std::vector<uint8_t> PackedWeight::codes() const {
  std::vector<uint8_t> all(static_cast<size_t>(numel(shape)));
  parallel_for(shape[0], [&](int64_t r) {
    unpack_codes(words.data() + r * row_words(), shape[1], grid.bits, all.data() + r * shape[1]);
  });
  return all;
}

void PackedWeight::decode(int64_t begin, int64_t end, float* y) const {
  const int64_t cols = shape[1], groups = grid.scale.dim(1);
  std::vector<uint8_t> row(static_cast<size_t>(cols));
  for (int64_t r = begin; r < end; ++r, y += cols) {
    unpack_codes(words.data() + r * row_words(), cols, grid.bits, row.data());
    const float *scale = grid.scale.data + r * groups, *zero = grid.zero.data + r * groups;
    const auto value = [&](int64_t c, int64_t g) {
      return scale[g] * (static_cast<float>(row[static_cast<size_t>(c)]) - zero[g]);
    };
    if (!grid.column_group.empty())
      for (int64_t c = 0; c < cols; ++c) y[c] = value(c, grid.group_of(c));
    else
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t c = g * grid.group; c < std::min(cols, (g + 1) * grid.group); ++c) y[c] = value(c, g);
  }
}

}  // namespace bcq
