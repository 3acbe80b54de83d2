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

namespace {

// Cuts the codes at[0..n) of a column so that those above 0 add up to 128 at most, and those below to -128: the largest
// first. cut(i, what was cut off code i).
template <class Cut>
void cut_to_fit(int8_t* const* at, int n, Cut cut) {
  for (const int sign : {1, -1}) {
    int excess = -128;
    for (int i = 0; i < n; ++i) excess += std::max(0, sign * *at[i]);
    while (excess > 0) {
      int largest = 0;
      for (int i = 1; i < n; ++i)
        if (sign * *at[i] > sign * *at[largest]) largest = i;
      const int off = std::min(excess, sign * *at[largest]);
      *at[largest] = static_cast<int8_t>(*at[largest] - sign * off);
      cut(largest, sign * off);
      excess -= off;
    }
  }
}

}  // namespace

void Int8Panels::cut_outliers() {
  if (most_ <= 32 || !outlier_starts_.empty()) return;
  constexpr int64_t kGroups = kInt8Run / 4;
  const int64_t runs = int8_runs(groups());
  Buffer<int8_t> codes(bytes());
  std::memcpy(codes.data(), codes_.data(), static_cast<size_t>(bytes()));
  std::vector<std::vector<Int8Outlier>> cut(static_cast<size_t>(panels()));
  std::vector<int32_t> starts(static_cast<size_t>(panels() * runs * kInt8Panel + 1));
  parallel_for(panels(), [&](int64_t p) {
    std::vector<Int8Outlier>& of_panel = cut[static_cast<size_t>(p)];
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t j = 0; j < kInt8Panel; ++j) {
        const size_t before = of_panel.size();
        for (int64_t g = run * kGroups; g < std::min(groups(), (run + 1) * kGroups); g += 2)
          for (const int64_t half : {0, 2}) {
            int8_t* const first = codes.data() + at(p * kInt8Panel + j, 4 * g + half);
            int8_t* const second = first + 4 * kInt8Panel;
            int8_t* const fours[] = {first, first + 1, second, second + 1};
            cut_to_fit(fours, g + 1 < groups() ? 4 : 2, [&](int i, int excess) {
              const int64_t depth = 4 * (g % kGroups) + half + 4 * (i / 2) + i % 2;
              of_panel.push_back({static_cast<uint16_t>(depth), static_cast<int16_t>(excess)});
            });
          }
        if ((of_panel.size() - before) % 2) of_panel.push_back({0, 0});
        starts[static_cast<size_t>((p * runs + run) * kInt8Panel + j + 1)] = static_cast<int32_t>(of_panel.size());
      }
  });
  std::vector<Int8Outlier> all;
  for (int64_t p = 0; p < panels(); ++p) {
    for (int64_t i = 1; i <= runs * kInt8Panel; ++i)
      starts[static_cast<size_t>(p * runs * kInt8Panel + i)] += static_cast<int32_t>(all.size());
    all.insert(all.end(), cut[static_cast<size_t>(p)].begin(), cut[static_cast<size_t>(p)].end());
    if (8 * static_cast<int64_t>(all.size()) > bytes()) return;
  }
  codes_ = std::move(codes);
  outlier_starts_ = std::move(starts);
  outliers_ = std::move(all);
  outliers_.shrink_to_fit();
}

void Int8Panels::column(int64_t c, int8_t* codes) const {
  for (int64_t k = 0; k < depth_; ++k) codes[k] = codes_.data()[at(c, k)];
  const int64_t runs = int8_runs(groups());
  for (int64_t run = 0; run < runs && !outlier_starts_.empty(); ++run) {
    const auto n = static_cast<size_t>((c / kInt8Panel * runs + run) * kInt8Panel + c % kInt8Panel);
    for (int32_t i = outlier_starts_[n]; i < outlier_starts_[n + 1]; ++i) {
      const Int8Outlier& of = outliers_[static_cast<size_t>(i)];
      int8_t& code = codes[run * kInt8Run + of.depth];
      code = static_cast<int8_t>(code + of.excess);
    }
  }
}

Int8Tile Int8Panels::tile(int64_t p0, int64_t p1) const {
  Int8Tile tile = {};
  tile.panel = panel(p0), tile.groups = groups(), tile.most = most_;
  tile.panels = p1 - p0, tile.panel_stride = panel_bytes();
  if (!outlier_starts_.empty()) {
    tile.outlier_starts = outlier_starts_.data() + p0 * int8_runs(groups()) * kInt8Panel;
    tile.outliers = outliers_.data();
  }
  return tile;
}

std::vector<int32_t> Int8Panels::sums(int32_t factor) const {
  const std::vector<uint8_t> ones(static_cast<size_t>(4 * groups()), 1);
  std::vector<int32_t> sums(static_cast<size_t>(panels() * kInt8Panel));
  for (int64_t p = 0; p < panels(); ++p) {
    Int8Tile of_panel = tile(p, p + 1);
    of_panel.rows = 1, of_panel.a = ones.data(), of_panel.c = sums.data() + p * kInt8Panel;
    kernels().int8_tile(of_panel);
  }
  for (int32_t& sum : sums) sum *= factor;
  return sums;
}

}  // namespace bcq
