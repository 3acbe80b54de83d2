#include "engine/gemm/gemm_packed.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/core/half.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

// The code of slot i of a chunk into the words of its row, kRows apart, in the parts that codes_of() reads.
void put_code(uint32_t code, int bits, int64_t i, uint32_t* words) {
  const int64_t quad = i / 4, byte = i % 4;
  for (int part; bits > 0; bits -= part, code >>= part, words += part * PackedWeight::kRows) {
    part = bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    const int64_t at = quad * part;
    words[at / 8 * PackedWeight::kRows] |= (code & ((1u << part) - 1)) << (8 * byte + at % 8);
  }
}

constexpr int64_t kFewTokens = 4;      // at most: multiplied with packed codes
constexpr int64_t kManyTokens = 1024;  // at most are held as limbs at a time
constexpr int64_t kTileTokens = 256;   // at most are multiplied with rows that are unpacked once

}  // namespace

// ---- The weight ----------------------------------------------------------------------------------------

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

PackedWeight::PackedWeight(const Affine& grid, Shape s, const std::vector<uint8_t>& codes)
    : PackedWeight(grid, std::move(s), [&](int64_t r, uint8_t* row) {
        require(static_cast<int64_t>(codes.size()) == numel(shape_), "%d codes for a weight of shape %s", codes.size(),
                to_string(shape_));
        std::copy_n(codes.data() + r * shape_[1], shape_[1], row);
      }) {}

PackedWeight::PackedWeight(const Affine& grid, Shape s, const RowCodes& row_codes)
    : bits_(grid.bits), group_(grid.group), shape_(std::move(s)), scattered_(!grid.column_group.empty()) {
  require(shape_.size() == 2 && grid.scale.dim(0) == shape_[0] && grid.zero.shape == grid.scale.shape,
          "a grid of shape %s for a weight of shape %s", to_string(grid.scale.shape), to_string(shape_));
  const int64_t out = shape_[0], in = shape_[1], groups = grid.scale.dim(1);
  std::vector<std::vector<int32_t>> members(at(groups));
  for (int64_t c = 0; c < in; ++c) members[at(grid.group_of(c))].push_back(static_cast<int32_t>(c));
  for (std::vector<int32_t>& columns : members) {
    columns.resize((columns.size() + 3) / 4 * 4, -1);
    order_.insert(order_.end(), columns.begin(), columns.end());
    ends_.push_back(static_cast<int32_t>(order_.size() / 4));
    require(static_cast<int64_t>(columns.size()) <= kInt8MostDepth, "sums over a group of %d columns may overflow",
            columns.size());
  }
  bool in_order = true;
  for (int64_t i = 0; i < slots(); ++i) in_order &= order_[at(i)] == (i < in ? i : -1);
  if (in_order) order_ = {};

  const bool half = scale_bits(grid) == 16;
  (half ? scale16_.resize(at(blocks() * groups * kRows)) : scale_.resize(at(blocks() * groups * kRows)));
  zero_.resize(at(blocks() * groups * kRows));
  const int64_t words_of_block = chunks() * bits_ * kRows;
  words_ = Buffer<uint32_t>(blocks() * words_of_block);
  parallel_for(blocks(), [&](int64_t block) {
    uint32_t* words = words_.data() + block * words_of_block;
    std::fill_n(words, words_of_block, 0u);
    std::vector<uint8_t> codes(at(in));
    for (int64_t r = block * kRows; r < std::min(out, (block + 1) * kRows); ++r) {
      const int64_t lane = r % kRows;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t i = (block * groups + g) * kRows + lane;
        const float scale = grid.scale[r * groups + g], zero = grid.zero[r * groups + g];
        if (half)
          scale16_[at(i)] = to_f16(scale);
        else
          scale_[at(i)] = scale;
        require(zero >= 0 && zero <= 255 && std::floor(zero) == zero, "the zero point %g of row %d is no code",
                static_cast<double>(zero), r);
        zero_[at(i)] = static_cast<uint8_t>(zero);
      }
      row_codes(r, codes.data());
      for (int64_t i = 0; i < slots(); ++i)
        if (column_of(i) >= 0) put_code(codes[at(column_of(i))], bits_, i % 32, words + i / 32 * bits_ * kRows + lane);
    }
  });
  const auto [least, largest] = std::minmax_element(grid.zero.data, grid.zero.data + grid.zero.size());
  const int half_range = 1 << (bits_ - 1);
  const int most = std::max(static_cast<int>(*largest), (1 << bits_) - 1 - static_cast<int>(*least));
  less_zeros_ = bits_ < 8 && most <= (kernels().sums_in_16_bits ? half_range : 128);
  most_ = less_zeros_ ? most : half_range;
}

PackedRows PackedWeight::rows(int64_t block) const {
  const int64_t steps = block * groups() * kRows;
  return {bits_,
          chunks(),
          words_.data() + block * chunks() * bits_ * kRows,
          groups(),
          ends_.data(),
          scale_.empty() ? nullptr : scale_.data() + steps,
          scale_.empty() ? scale16_.data() + steps : nullptr,
          zero_.data() + steps};
}

float PackedWeight::scale_of(const PackedRows& rows, int64_t i) {
  if (rows.scale) return rows.scale[i];
  float scale;
  kernels().from_f16(rows.scale16 + i, &scale, 1);
  return scale;
}

Affine PackedWeight::grid() const {
  const int64_t out = shape_[0];
  Affine grid{bits_, group_, Tensor::uninitialized({out, groups()}), Tensor::uninitialized({out, groups()})};
  for (int64_t r = 0; r < out; ++r)
    for (int64_t g = 0; g < groups(); ++g) {
      const int64_t i = (r / kRows * groups() + g) * kRows + r % kRows, to = r * groups() + g;
      grid.zero[to] = zero_[at(i)];
      grid.scale[to] = scale_of(rows(r / kRows), g * kRows + r % kRows);
    }
  if (!scattered_) return grid;
  grid.column_group.resize(at(shape_[1]));
  for (int64_t g = 0, i = 0; g < groups(); ++g)
    for (; i < ends_[at(g)] * 4; ++i)
      if (column_of(i) >= 0) grid.column_group[at(column_of(i))] = static_cast<int32_t>(g);
  return grid;
}

std::vector<uint8_t> PackedWeight::codes() const {
  const int64_t out = shape_[0], in = shape_[1];
  std::vector<uint8_t> all(at(out * in));
  parallel_for(blocks(), [&](int64_t block) {
    const Buffer<uint8_t> codes(panel_bytes());
    kernels().packed_codes(rows(block), codes.data());
    for (int64_t i = 0; i < slots(); ++i) {
      const int64_t column = column_of(i);
      for (int64_t r = block * kRows; column >= 0 && r < std::min(out, (block + 1) * kRows); ++r)
        all[at(r * in + column)] = codes.data()[(i / 4 * kRows + r % kRows) * 4 + i % 4];
    }
  });
  return all;
}

void PackedWeight::decode(int64_t begin, int64_t end, float* y) const {
  const int64_t in = shape_[1];
  const Buffer<uint8_t> codes(panel_bytes());
  for (int64_t r = begin; r < end; ++r, y += in) {
    const PackedRows packed = rows(r / kRows);
    const int64_t lane = r % kRows;
    if (r == begin || lane == 0) kernels().packed_codes(packed, codes.data());
    for (int64_t g = 0, i = 0; g < groups(); ++g) {
      const float scale = scale_of(packed, g * kRows + lane);
      for (const int zero = packed.zero[g * kRows + lane]; i < ends_[at(g)] * 4; ++i) {
        const int code = codes.data()[(i / 4 * kRows + lane) * 4 + i % 4];
        if (column_of(i) >= 0) y[column_of(i)] = scale * static_cast<float>(code - zero);
      }
    }
  }
}

// ---- Its products --------------------------------------------------------------------------------------
//
// One to four tokens are multiplied with the codes as they are stored, each token by itself. For more tokens, 128 rows
// of codes at a time are unpacked into int8 panels (engine/gemm/gemm_int8.h), and the limbs of four tokens or more make
// up the rows of one int8 tile.

// Tokens in limbs, column by column as the weight has them; padding is zeros.
struct PackedWeight::Tokens {
  int limbs, offset;  // of Kernels::to_limbs
  int64_t count, stride;
  Buffer<uint8_t> values;     // [count, limbs, stride]
  std::vector<float> units;   // [count]
  std::vector<int32_t> sums;  // [count, groups, limbs]

  const uint8_t* token(int64_t t) const { return values.data() + t * limbs * stride; }
};

PackedWeight::Tokens PackedWeight::to_limbs(const float* x, int64_t count, int limbs, int offset) const {
  const int64_t in = shape_[1], stride = int8_stride(slots());
  Tokens tokens{limbs, offset, count, stride, Buffer<uint8_t>(count * limbs * stride), {}, {}};
  tokens.units.resize(at(count));
  tokens.sums.resize(at(count * groups() * limbs));
  const bool gather = !order_.empty() || in < slots();
  parallel_for((count + 15) / 16, [&](int64_t item) {
    Tensor ordered = gather ? Tensor({slots()}) : Tensor{};
    for (int64_t t = item * 16; t < std::min(count, item * 16 + 16); ++t) {
      const float* from = x + t * in;
      for (int64_t i = 0; gather && i < slots(); ++i)
        if (column_of(i) >= 0) ordered[i] = from[column_of(i)];
      uint8_t* to = tokens.values.data() + t * limbs * stride;
      tokens.units[at(t)] = kernels().to_limbs(gather ? ordered.data : from, slots(), limbs, offset, to, stride);
      for (int64_t g = 0, begin = 0; g < groups(); begin = ends_[at(g++)] * 4)
        for (int p = 0; p < limbs; ++p)
          tokens.sums[at((t * groups() + g) * limbs + p)] =
              kernels().sum_limbs(to + p * stride + begin, ends_[at(g)] * 4 - begin, offset);
    }
  });
  return tokens;
}

// y[t, 0..out) for rows of blocks [begin, end) and all tokens.
void PackedWeight::multiply_each(const Tokens& tokens, int64_t begin, int64_t end, const float* bias, float* y) const {
  const int64_t out = shape_[0], whole = std::min(end, out / kRows), left = std::min(end * kRows, out) - whole * kRows;
  for (int64_t t = 0; t < tokens.count; ++t, y += out) {
    const PackedToken token{tokens.units[at(t)], tokens.token(t), tokens.stride,
                            tokens.sums.data() + t * groups() * kTokenLimbs};
    kernels().packed_product(rows(begin), whole - begin, token, y + begin * kRows);
    float last[kRows];
    if (left > 0) kernels().packed_product(rows(whole), 1, token, last);
    std::copy_n(last, left, y + whole * kRows);
    float* part = y + begin * kRows;
    if (bias) kernels().add(part, bias + begin * kRows, part, whole * kRows + left - begin * kRows);
  }
}

// The codes of a block, as a panel of signed bytes: less their zero points, which saves a term of every sum, or less
// half of their range, which keeps them small.
void PackedWeight::signed_panel(int64_t block, uint8_t* codes) const {
  const PackedRows packed = rows(block);
  kernels().packed_codes(packed, codes);
  for (int64_t g = 0, q = 0; g < groups(); ++g) {
    uint8_t from[4 * kRows];
    for (int64_t i = 0; i < 4 * kRows; ++i)
      from[i] = less_zeros_ ? packed.zero[g * kRows + i / 4] : static_cast<uint8_t>(1 << (bits_ - 1));
    for (; q < ends_[at(g)]; ++q, codes += 4 * kRows)
      for (int64_t i = 0; i < 4 * kRows; ++i) codes[i] = static_cast<uint8_t>(codes[i] - from[i]);
  }
}

// The same for tokens [t0, t1) and at most kInt8Columns rows.
void PackedWeight::multiply_tile(const Tokens& tokens, int64_t t0, int64_t t1, int64_t begin, int64_t end,
                                 const float* bias, float* y) const {
  constexpr int64_t kWidth = kInt8Columns;
  const int64_t out = shape_[0], n = std::min(end * kRows, out) - begin * kRows, panels = end - begin;
  const int limbs = tokens.limbs;
  const Buffer<uint8_t> codes(panels * panel_bytes());
  for (int64_t p = 0; p < panels; ++p) signed_panel(begin + p, codes.data() + p * panel_bytes());
  const auto panel = [&](int64_t p, int64_t quad) {
    return reinterpret_cast<const int8_t*>(codes.data() + p * panel_bytes() + quad * 4 * kRows);
  };

  const Buffer<int32_t> starts(groups() * kWidth);  // -128 times the sum of a group's signed codes
  const std::vector<uint8_t> middles(at(slots()), 128);
  for (int64_t g = 0, q = 0; g < groups(); q = ends_[at(g++)])
    for (int64_t p = 0; p < panels; ++p) {
      int32_t* const start = starts.data() + g * kWidth + p * kRows;
      kernels().int8_tile({1, middles.data(), 0, panel(p, q), ends_[at(g)] - q, nullptr, start, 0, most_});
      for (int64_t i = 0; i < kRows; ++i) start[i] = -start[i];
    }

  const int most = kernels().int8_rows;
  const Buffer<int32_t> sums(most * kWidth);
  const Buffer<float> totals(most / limbs * kWidth);
  for_parts(t1 - t0, most / limbs, [&](int64_t first, int64_t stop) {
    const int64_t t = t0 + first, some = stop - first;
    std::fill_n(totals.data(), some * kWidth, 0.f);
    for (int64_t g = 0, q = 0; g < groups(); q = ends_[at(g++)]) {
      kernels().int8_tile({.rows = static_cast<int>(some) * limbs,
                           .a = tokens.token(t) + q * 4,
                           .a_stride = tokens.stride,
                           .panel = panel(0, q),
                           .groups = ends_[at(g)] - q,
                           .start = starts.data() + g * kWidth,
                           .c = sums.data(),
                           .c_stride = kWidth,
                           .most = most_,
                           .panels = panels,
                           .panel_stride = panel_bytes()});
      kernels().packed_sums(rows(begin),
                            {.blocks = panels,
                             .group = g,
                             .tokens = some,
                             .limbs = limbs,
                             .sums = sums.data(),
                             .limb_sums = less_zeros_ ? nullptr : tokens.sums.data() + (t * groups() + g) * limbs,
                             .y = totals.data(),
                             .stride = kWidth});
    }
    for (int64_t i = 0; i < some; ++i) {
      float *const total = totals.data() + i * kWidth, *const to = y + (t + i) * out + begin * kRows;
      kernels().scale(total, tokens.units[at(t + i)], bias ? total : to, n);
      if (bias) kernels().add(total, bias + begin * kRows, to, n);
    }
  });
}

void PackedWeight::multiply(const float* x, int64_t count, const float* bias, float* y, int window_bits) const {
  require_usage(window_bits == 16 || window_bits == 24, "activations of windows are rounded to 24 or 16 bits, not %d",
                window_bits);
  const int64_t in = shape_[1], out = shape_[0];
  if (count <= kFewTokens) {  // each thread makes limbs of its own, which to fetch from another costs more
    const int64_t items = std::min<int64_t>(blocks(), threads());
    return parallel_for(items, count * in * out, [&](int64_t i) {
      multiply_each(to_limbs(x, count, kTokenLimbs, 0), blocks() * i / items, blocks() * (i + 1) / items, bias, y);
    });
  }
  constexpr int64_t kBlocks = kInt8Columns / kRows;
  for (int64_t first = 0; first < count; first += kManyTokens) {
    const int64_t some = std::min(kManyTokens, count - first), down = (some + kTileTokens - 1) / kTileTokens;
    const Tokens tokens = to_limbs(x + first * in, some, window_bits / 8, 128);
    parallel_for(down * ((blocks() + kBlocks - 1) / kBlocks), [&](int64_t item) {
      const int64_t i = item % down, begin = item / down * kBlocks;
      multiply_tile(tokens, some * i / down, some * (i + 1) / down, begin, std::min(blocks(), begin + kBlocks), bias,
                    y + first * out);
    });
  }
}

}  // namespace bcq
