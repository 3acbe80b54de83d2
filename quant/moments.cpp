#include "quant/moments.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/ranks.h"
#include "engine/gemm/gemm_float.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

constexpr int64_t kTile = 4 * kFloatPanel;  // columns of a tile: its panels of a run and its sums stay in cache

int64_t parts_of(int64_t n, int64_t part) { return (n + part - 1) / part; }

}  // namespace

// The tokens of one window in panels, as many at a time as are summed in one run: both operands of its products are
// read from them.
class Moments::Panels {
 public:
  Panels(const Tensor& x, int64_t window)
      : tokens_(x.rows() / x.dim(0)), columns_(x.dim(-1)), across_(parts_of(columns_, kFloatPanel)) {
    const Matrix rows = row_major(x.data + window * tokens_ * columns_, columns_);
    panels_.resize(at(runs() * across_));
    parallel_for(runs() * across_, [&](int64_t i) {
      const int64_t run = i / across_, panel = i % across_;
      panels_[at(i)] = FloatPanels(rows.at(run * kFloatRun, panel * kFloatPanel), depth(run), width(panel));
    });
  }
  int64_t runs() const { return parts_of(tokens_, kFloatRun); }
  int64_t depth(int64_t run) const { return std::min(kFloatRun, tokens_ - run * kFloatRun); }
  int64_t width(int64_t panel) const { return std::min(kFloatPanel, columns_ - panel * kFloatPanel); }
  FloatPanelsView at_run(int64_t run, int64_t panel) const { return panels_[at(run * across_ + panel)].view(); }

 private:
  int64_t tokens_, columns_, across_;
  std::vector<FloatPanels> panels_;
};

Moments::Moments(int64_t columns, int rank, int ranks)
    : n_(columns),
      rank_(rank),
      ranks_(ranks),
      least_(at(columns), std::numeric_limits<float>::infinity()),
      largest_(at(columns), -std::numeric_limits<float>::infinity()),
      second_(at(columns * columns), 0.0),
      sum_(at(columns), 0.0),
      abs_sum_(at(columns), 0.0) {
  require(columns > 0, "moments of %d columns", columns);
  for (int64_t i = 0; i < n_; i += kTile)
    for (int64_t j = 0; j < n_; j += kTile) {
      all_.push_back({i, j});
      if (i < j) upper_.push_back({i, j});
    }
  for (int64_t i = 0; i < n_; i += kTile) upper_.push_back({i, i});  // half the work, so they come last
}

void Moments::add(const Tensor& x, const Tensor& other) {
  require(x.rank() >= 2 && x.dim(-1) == n_, "moments of %d columns: an input of shape %s", n_, to_string(x.shape));
  require(samples_ == 0 || other.empty() == cross_.empty(), "moments: the other stream is missing in some inputs");
  require(other.empty() || other.shape == x.shape, "moments: streams of shapes %s and %s", to_string(x.shape),
          to_string(other.shape));
  add_rows(x, sum_);
  if (!other.empty()) {
    cross_.resize(second_.size());
    other_sum_.resize(sum_.size());
    add_rows(other, other_sum_);
  }
  for (int64_t window = 0; window < x.dim(0); ++window) {
    const Panels panels(x, window);
    add_products(panels, panels, second_);
    if (!other.empty()) add_products(Panels(other, window), panels, cross_);
  }
  samples_ += x.dim(0);
  tokens_ += x.rows();
  add_ranges(x);
}

void Moments::gather() {
  if (ranks_ == 1) return;
  std::vector<Tile> columns;
  for (int64_t c = 0; c < n_; c += kTile) columns.push_back({0, c});
  gather(upper_, kTile, second_);
  gather(columns, 1, sum_);
  gather(columns, 1, abs_sum_);
  gather(columns, 1, least_);
  gather(columns, 1, largest_);
  if (!cross_.empty()) {
    gather(all_, kTile, cross_);
    gather(columns, 1, other_sum_);
  }
  ranks_ = 1;
}

// Each rank's tiles [height, kTile] in turn, to all.
template <class T>
void Moments::gather(const std::vector<Tile>& tiles, int64_t height, std::vector<T>& values) const {
  const auto for_rows_of = [&](int rank, auto row) {  // row(where it begins, number of values)
    for (size_t i = static_cast<size_t>(rank); i < tiles.size(); i += at(ranks_))
      for (int64_t r = tiles[i].row; r < std::min(n_, tiles[i].row + height); ++r)
        row(values.begin() + r * n_ + tiles[i].column, std::min(kTile, n_ - tiles[i].column));
  };
  for (int rank = 0; rank < ranks_; ++rank) {
    std::vector<T> sent;
    if (rank == rank_) for_rows_of(rank, [&](auto from, int64_t n) { sent.insert(sent.end(), from, from + n); });
    share(sent, rank);
    auto next = sent.begin();
    for_rows_of(rank, [&](auto to, int64_t n) {
      std::copy(next, next + n, to);
      next += n;
    });
  }
}

void Moments::add(const Moments& more) {
  require(more.n_ == n_ && more.cross_.size() == cross_.size(), "moments of other columns or streams");
  const auto sum = [](std::vector<double>& into, const std::vector<double>& x) {
    for (size_t i = 0; i < into.size(); ++i) into[i] += x[i];
  };
  sum(second_, more.second_);
  sum(sum_, more.sum_);
  sum(abs_sum_, more.abs_sum_);
  sum(cross_, more.cross_);
  sum(other_sum_, more.other_sum_);
  for (size_t c = 0; c < least_.size(); ++c) {
    least_[c] = std::min(least_[c], more.least_[c]);
    largest_[c] = std::max(largest_[c], more.largest_[c]);
  }
  samples_ += more.samples_;
  tokens_ += more.tokens_;
}

// into += Σ left rightᵀ, tile by tile; of one's product with itself the upper triangle.
void Moments::add_products(const Panels& left, const Panels& right, std::vector<double>& into) const {
  const bool symmetric = &left == &right;
  const std::vector<Tile>& tiles = symmetric ? upper_ : all_;
  parallel_for(static_cast<int64_t>(tiles.size()), [&](int64_t item) {
    if (!is_own(at(item))) return;
    const Tile t = tiles[at(item)];
    const int64_t height = std::min(kTile, n_ - t.row), width = std::min(kTile, n_ - t.column);
    const bool upper = symmetric && t.row == t.column;
    const Buffer<float> tile(height * width);
    for (int64_t run = 0; run < right.runs(); ++run)
      for (int64_t i = 0; i < height; i += kFloatPanel)
        for (int64_t j = upper ? i : 0; j < width; j += kFloatPanel) {
          const int64_t p = (t.row + i) / kFloatPanel, q = (t.column + j) / kFloatPanel;
          float* c = tile.data() + i * width + j;
          gemm_float({.a = {left.at_run(run, p).data, 1, kFloatPanel},
                      .rows = left.width(p),
                      .b = right.at_run(run, q),
                      .depth = right.depth(run),
                      .columns = right.width(q),
                      .c = c,
                      .c_stride = width,
                      .start = run > 0 ? c : nullptr,
                      .start_stride = width});
        }
    for (int64_t i = 0; i < height; ++i) {
      const int64_t j = upper ? i : 0;
      kernels().accumulate(tile.data() + i * width + j, nullptr, &into[at((t.row + i) * n_ + t.column + j)], width - j);
    }
  });
}

void Moments::add_rows(const Tensor& x, std::vector<double>& into) const {
  parallel_for(parts_of(n_, kTile), [&](int64_t part) {
    if (!is_own(at(part))) return;
    const int64_t begin = part * kTile, end = std::min(n_, begin + kTile);
    for (int64_t r = 0; r < x.rows(); ++r)
      kernels().accumulate(x.data + r * n_ + begin, nullptr, &into[at(begin)], end - begin);
  });
}

void Moments::add_ranges(const Tensor& x) {
  parallel_for(parts_of(n_, kTile), [&](int64_t part) {
    if (!is_own(at(part))) return;
    const int64_t begin = part * kTile, end = std::min(n_, begin + kTile);
    for (int64_t r = 0; r < x.rows(); ++r)
      for (int64_t c = begin; c < end; ++c) {
        const float v = x[r * n_ + c];
        least_[at(c)] = std::min(least_[at(c)], v);
        largest_[at(c)] = std::max(largest_[at(c)], v);
        abs_sum_[at(c)] += std::abs(v);
      }
  });
}

float Moments::least() const { return std::min(0.f, *std::min_element(least_.begin(), least_.end())); }
float Moments::largest() const { return std::max(0.f, *std::max_element(largest_.begin(), largest_.end())); }

// 2 / samples (product - row_sum sum_ᵀ / tokens), the last term when centred.
std::vector<double> Moments::scaled(const std::vector<double>& product, const std::vector<double>& row_sum, bool upper,
                                    bool centred) const {
  require(samples_ > 0 && !product.empty(), "moments of a stream that was never added");
  std::vector<double> result(product.size(), 0.0);
  for (int64_t i = 0; i < n_; ++i)
    for (int64_t j = upper ? i : 0; j < n_; ++j) {
      const double centre = centred ? row_sum[at(i)] * (sum_[at(j)] / static_cast<double>(tokens_)) : 0;
      result[at(i * n_ + j)] = 2 / static_cast<double>(samples_) * (product[at(i * n_ + j)] - centre);
    }
  return result;
}

std::vector<double> Moments::per_token(std::vector<double> sum) const {
  require(tokens_ > 0, "the mean of a stream that was never added");
  for (double& m : sum) m /= static_cast<double>(tokens_);
  return sum;
}

std::vector<double> Moments::second(bool centred) const { return scaled(second_, sum_, true, centred); }
std::vector<double> Moments::cross(bool centred) const { return scaled(cross_, other_sum_, false, centred); }

}  // namespace bcq
