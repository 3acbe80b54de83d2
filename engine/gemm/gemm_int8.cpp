#include "engine/gemm/gemm_int8.h"

#include <cstring>

#include "engine/core/check.h"

namespace bcq {

Int8Panels::Int8Panels(int64_t columns, int64_t depth) : columns_(columns), depth_(depth) {
  require(depth <= kInt8MostDepth, "an integer product of depth %d may overflow", depth);
  codes_ = Buffer<int8_t>(bytes());
  std::memset(codes_.data(), 0, static_cast<size_t>(bytes()));
}

void Int8Panels::set_column(int64_t c, const int8_t* codes) {
  int8_t* to = codes_.data() + at(c, 0);
  const int64_t whole = depth_ / 4;
  for (int64_t g = 0; g < whole; ++g) std::memcpy(to + g * 4 * kInt8Panel, codes + 4 * g, 4);
  if (depth_ % 4) std::memcpy(to + whole * 4 * kInt8Panel, codes + 4 * whole, static_cast<size_t>(depth_ % 4));
}

void Int8Panels::set_group(int64_t group, int64_t n, const int8_t* codes, int64_t stride) {
  for (int64_t c0 = 0; c0 < columns_; c0 += kInt8Panel) {
    int8_t* to = codes_.data() + at(c0, 4 * group);
    const int64_t width = std::min(kInt8Panel, columns_ - c0);
    for (int64_t k = 0; k < n; ++k)
      for (int64_t c = 0; c < width; ++c) to[4 * c + k] = codes[k * stride + c0 + c];
  }
}

void Int8Panels::find_range() {
  uint64_t bits = 0;  // of magnitudes, less one where negative; eight codes at a time
  for (int64_t i = 0; i < bytes(); i += 8) {
    uint64_t codes;
    std::memcpy(&codes, codes_.data() + i, 8);
    bits |= codes ^ (codes >> 7 & 0x0101010101010101u) * 255;
  }
  for (const int half : {32, 16, 8}) bits |= bits >> half;
  most_ = static_cast<int>(bits & 127) + 1;
}

std::vector<int32_t> Int8Panels::sums(int32_t factor) const {
  const std::vector<uint8_t> ones(static_cast<size_t>(4 * groups()), 1);
  std::vector<int32_t> sums(static_cast<size_t>(panels() * kInt8Panel));
  for (int64_t p = 0; p < panels(); ++p)
    kernels().int8_tile({1, ones.data(), 0, panel(p), groups(), nullptr, sums.data() + p * kInt8Panel, 0, most()});
  for (int32_t& sum : sums) sum *= factor;
  return sums;
}

}  // namespace bcq
