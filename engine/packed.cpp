#include "engine/packed.h"

#include <algorithm>

#include "engine/check.h"
#include "engine/half.h"
#include "engine/kernels.h"
#include "engine/parallel.h"

namespace bcq {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

}  // namespace

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
        require(static_cast<int64_t>(codes.size()) == numel(shape_), "%zu codes for a weight of shape %s", codes.size(),
                to_string(shape_).c_str());
        std::copy_n(codes.data() + r * shape_[1], shape_[1], row);
      }) {}

PackedWeight::PackedWeight(const Affine& grid, Shape s, const RowCodes& row_codes)
    : bits_(grid.bits), group_(grid.group), shape_(std::move(s)), scattered_(!grid.column_group.empty()) {
  require(shape_.size() == 2 && grid.scale.dim(0) == shape_[0] && grid.zero.shape == grid.scale.shape,
          "a grid of shape %s for a weight of shape %s", to_string(grid.scale.shape).c_str(),
          to_string(shape_).c_str());
  const int64_t out = shape_[0], in = shape_[1], groups = grid.scale.dim(1), blocks = (out + kRows - 1) / kRows;
  std::vector<std::vector<int32_t>> members(at(groups));
  for (int64_t c = 0; c < in; ++c) members[at(grid.group_of(c))].push_back(static_cast<int32_t>(c));
  for (std::vector<int32_t>& columns : members) {
    columns.resize((columns.size() + 3) / 4 * 4, -1);
    order_.insert(order_.end(), columns.begin(), columns.end());
    ends_.push_back(static_cast<int32_t>(order_.size() / 4));
  }
  const std::vector<int32_t> order = order_;
  bool in_order = true;
  for (int64_t i = 0; i < slots(); ++i) in_order &= order[at(i)] == (i < in ? i : -1);
  if (in_order) order_ = {};

  const bool half = scale_bits(grid) == 16;
  (half ? scale16_.resize(at(blocks * groups * kRows)) : scale_.resize(at(blocks * groups * kRows)));
  zero_.resize(at(blocks * groups * kRows));
  words_.resize(at(blocks * word_columns() * bits_ * kRows + 1));
  parallel_for(blocks, [&](int64_t block) {
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
        zero_[at(i)] = static_cast<uint8_t>(zero);
        require(static_cast<float>(zero_[at(i)]) == zero, "the zero point %g of row %lld is no code",
                static_cast<double>(zero), static_cast<long long>(r));
      }
      row_codes(r, codes.data());
      for (int64_t c = 0; c < word_columns(); ++c) {
        uint32_t words[8] = {};
        for (int64_t i = 0; i < std::min<int64_t>(32, slots() - c * 32); ++i) {
          const int32_t column = order[at(c * 32 + i)];
          const uint32_t code = column < 0 ? 0 : codes[at(column)];
          for (int b = 0; b < bits_; ++b) words[b] |= (code >> b & 1u) << i;
        }
        for (int b = 0; b < bits_; ++b)
          words_[at(((block * word_columns() + c) * bits_ + b) * kRows + lane)] = words[b];
      }
    }
  });
}

PackedRows PackedWeight::rows(int64_t block) const {
  const int64_t steps = block * groups() * kRows;
  return {bits_,
          word_columns(),
          words_.data() + block * word_columns() * bits_ * kRows,
          groups(),
          ends_.data(),
          scale_.empty() ? nullptr : scale_.data() + steps,
          scale_.empty() ? scale16_.data() + steps : nullptr,
          zero_.data() + steps};
}

Affine PackedWeight::grid() const {
  const int64_t out = shape_[0];
  Affine grid{bits_, group_, Tensor::uninitialized({out, groups()}), Tensor::uninitialized({out, groups()})};
  for (int64_t r = 0; r < out; ++r)
    for (int64_t g = 0; g < groups(); ++g) {
      const int64_t i = (r / kRows * groups() + g) * kRows + r % kRows, to = r * groups() + g;
      grid.zero[to] = zero_[at(i)];
      if (scale_.empty())
        kernels().from_f16(&scale16_[at(i)], &grid.scale[to], 1);
      else
        grid.scale[to] = scale_[at(i)];
    }
  if (!scattered_) return grid;
  grid.column_group.resize(at(shape_[1]));
  for (int64_t g = 0, i = 0; g < groups(); ++g)
    for (; i < ends_[at(g)] * 4; ++i) {
      const int64_t column = order_.empty() ? i : order_[at(i)];
      if (column >= 0 && column < shape_[1]) grid.column_group[at(column)] = static_cast<int32_t>(g);
    }
  return grid;
}

std::vector<uint8_t> PackedWeight::codes() const {
  std::vector<uint8_t> all(at(numel(shape_)));
  parallel_for(shape_[0], [&](int64_t r) {
    const uint32_t* words = rows(r / kRows).words + r % kRows;
    for (int64_t i = 0; i < slots(); ++i) {
      const int64_t column = order_.empty() ? i : order_[at(i)];
      if (column < 0 || column >= shape_[1]) continue;
      uint32_t code = 0;
      for (int b = 0; b < bits_; ++b) code |= (words[(i / 32 * bits_ + b) * kRows] >> i % 32 & 1u) << b;
      all[at(r * shape_[1] + column)] = static_cast<uint8_t>(code);
    }
  });
  return all;
}

void PackedWeight::decode(int64_t begin, int64_t end, float* y) const {
  const int64_t in = shape_[1];
  const bool direct = order_.empty() && in % 32 == 0;
  Tensor row = direct ? Tensor{} : Tensor::uninitialized({word_columns() * 32});
  for (int64_t r = begin; r < end; ++r, y += in) {
    kernels().packed_decode(rows(r / kRows), r % kRows, direct ? y : row.data);
    if (direct) continue;
    if (order_.empty())
      std::copy_n(row.data, in, y);
    else
      for (int64_t i = 0; i < slots(); ++i)
        if (order_[at(i)] >= 0) y[order_[at(i)]] = row[i];
  }
}

Tensor PackedWeight::prepare(const float* x) const {
  const int64_t in = shape_[1], quads = slots() / 4;
  Tensor prepared = Tensor::uninitialized({quads * 16 + groups() + 16}), ordered;  // 16 to read over
  if (!order_.empty() || in < slots()) {
    ordered = Tensor({slots()});
    for (int64_t i = 0; i < slots(); ++i) {
      const int64_t column = order_.empty() ? i : order_[at(i)];
      if (column >= 0 && column < in) ordered[i] = x[column];
    }
    x = ordered.data;
  }
  kernels().sign_tables(x, quads, prepared.data);
  for (int64_t g = 0, begin = 0; g < groups(); begin = ends_[at(g++)] * 4)
    prepared[quads * 16 + g] = static_cast<float>(kernels().sum(x + begin, ends_[at(g)] * 4 - begin));
  return prepared;
}

void PackedWeight::multiply(const Tensor& prepared, int64_t begin, int64_t end, float* y) const {
  require(begin % kRows == 0, "products begin at row %lld of a block", static_cast<long long>(begin % kRows));
  const float *tables = prepared.data, *sums = tables + slots() * 4;
  const int64_t whole = (end - begin) / kRows, left = (end - begin) % kRows;
  kernels().packed_product(rows(begin / kRows), whole, tables, sums, y);
  if (left == 0) return;
  float last[kRows];
  kernels().packed_product(rows(begin / kRows + whole), 1, tables, sums, last);
  std::copy_n(last, left, y + whole * kRows);
}

}  // namespace bcq
