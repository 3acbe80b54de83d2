#include "engine/grid/binary.h"

#include <algorithm>
#include <bit>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"

namespace bcq {
BinaryPlanes::BinaryPlanes(int64_t rows, int64_t columns, int64_t columns_of_block)
    : out(rows), in(columns), block(columns_of_block) {
  salient.resize(at(words()));
  signs.resize(at(out * words()));
  parts.resize(at(out * words()));
  levels.resize(at(out * blocks() * kLevels));
}

int64_t BinaryPlanes::salient_columns() const {
  int64_t count = 0;
  for (const uint32_t word : salient) count += std::popcount(word);
  return count;
}

void BinaryPlanes::decode(int64_t begin, int64_t end, float* y) const {
  for (int64_t r = begin; r < end; ++r, y += in) {
    const uint32_t *sign = &signs[at(r * words())], *part = &parts[at(r * words())];
    for (int64_t b = 0; b < blocks(); ++b) {
      float pair[kLevels];
      kernels().from_f16(&levels[at((r * blocks() + b) * kLevels)], pair, kLevels);
      const auto level = [&](int k, bool plus) {  // exact: both are float16
        return static_cast<double>(pair[2 * k]) + (plus ? pair[2 * k + 1] : -pair[2 * k + 1]);
      };
      float value[8];  // by salient, part and sign
      for (int i = 0; i < 4; ++i) {
        value[i] = static_cast<float>(level(i / 2, i % 2));
        value[4 + i] = static_cast<float>(level(2, i % 2) + level(3, i / 2));
      }
      for (int64_t c = b * block; c < std::min(in, (b + 1) * block); ++c) {
        const uint32_t bit = static_cast<uint32_t>(c % 32);
        const size_t w = at(c / 32);
        y[c] = value[(salient[w] >> bit & 1) << 2 | (part[w] >> bit & 1) << 1 | (sign[w] >> bit & 1)];
      }
    }
  }
}

Binary::Binary(std::shared_ptr<const BinaryPlanes> p) : GridKind(1), planes(std::move(p)) {
  const auto values = static_cast<double>(planes->out * planes->in);
  sign_bits = values + static_cast<double>(planes->out * planes->salient_columns());
  stored_bits = 2 * values + static_cast<double>(planes->in) + 16 * static_cast<double>(planes->levels.size());
}

void Binary::fake_quantize(const Tensor&, Tensor&) const {
  throw Error("a binarized weight has no grid that other values could be rounded to");
}

}  // namespace bcq
