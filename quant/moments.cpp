#include "quant/moments.h"

#include <cblas.h>

#include <algorithm>

#include "engine/check.h"
#include "engine/kernels.h"
#include "engine/parallel.h"

namespace bcq {
namespace {

// Columns of a tile. With it OpenBLAS comes to 0.95 of its speed on large matrices, with 256 to 0.8; two tiles
// a side are the fewest that give two threads equal work.
constexpr int64_t kTile = 768;

size_t at(int64_t i) { return static_cast<size_t>(i); }

}  // namespace

Moments::Moments(int64_t columns) : n_(columns), second_(at(columns * columns), 0.0), sum_(at(columns), 0.0) {
  require(columns > 0, "moments of %lld columns", static_cast<long long>(columns));
  const int64_t parts = std::max<int64_t>(2, (n_ + kTile - 1) / kTile);
  side_ = (n_ + parts - 1) / parts;
  for (int64_t i = 0; i < n_; i += side_)
    for (int64_t j = 0; j < n_; j += side_) {
      all_.push_back({i, j});
      if (i < j) upper_.push_back({i, j});
    }
  for (int64_t i = 0; i < n_; i += side_) upper_.push_back({i, i});  // half the work, so they come last
}

void Moments::add(const Tensor& x, const Tensor& other) {
  require(x.rank() >= 2 && x.dim(-1) == n_, "moments of %lld columns: an input of shape %s", static_cast<long long>(n_),
          to_string(x.shape).c_str());
  require(samples_ == 0 || other.empty() == cross_.empty(), "moments: the other stream is missing in some inputs");
  require(other.empty() || other.shape == x.shape, "moments: streams of shapes %s and %s", to_string(x.shape).c_str(),
          to_string(other.shape).c_str());
  add_products(x, x, upper_, second_);
  add_rows(x, sum_);
  if (!other.empty()) {
    cross_.resize(second_.size());
    other_sum_.resize(sum_.size());
    add_products(other, x, all_, cross_);
    add_rows(other, other_sum_);
  }
  samples_ += x.dim(0);
  tokens_ += x.rows();
}

void Moments::add(const Moments& more) {
  require(more.n_ == n_ && more.cross_.size() == cross_.size(), "moments of other columns or streams");
  const auto sum = [](std::vector<double>& into, const std::vector<double>& x) {
    for (size_t i = 0; i < into.size(); ++i) into[i] += x[i];
  };
  sum(second_, more.second_);
  sum(sum_, more.sum_);
  sum(cross_, more.cross_);
  sum(other_sum_, more.other_sum_);
  samples_ += more.samples_;
  tokens_ += more.tokens_;
}

// into += Σ a bᵀ, tile by tile and window by window; of the upper tiles the diagonal ones are symmetric, and
// get their upper triangle only.
void Moments::add_products(const Tensor& a, const Tensor& b, const std::vector<Tile>& tiles,
                           std::vector<double>& into) const {
  const bool symmetric = &tiles == &upper_;
  const int64_t rows = a.rows() / a.dim(0);
  parallel_for(static_cast<int64_t>(tiles.size()), [&](int64_t item) {
    const Tile t = tiles[at(item)];
    const int64_t height = std::min(side_, n_ - t.row), width = std::min(side_, n_ - t.column);
    const int m = static_cast<int>(height), w = static_cast<int>(width), k = static_cast<int>(rows);
    const int ld = static_cast<int>(n_);
    std::vector<float> tile(at(height * width));
    for (int64_t window = 0; window < a.dim(0); ++window) {
      const float *from_a = a.data + window * rows * n_ + t.row, *from_b = b.data + window * rows * n_ + t.column;
      if (symmetric && t.row == t.column)
        cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, m, k, 1.f, from_a, ld, 0.f, tile.data(), w);
      else
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, w, k, 1.f, from_a, ld, from_b, ld, 0.f, tile.data(), w);
      for (int64_t i = 0; i < height; ++i)
        kernels().accumulate(&tile[at(i * width)], nullptr, &into[at((t.row + i) * n_ + t.column)], width);
    }
  });
}

void Moments::add_rows(const Tensor& x, std::vector<double>& into) const {
  parallel_for((n_ + side_ - 1) / side_, [&](int64_t part) {
    const int64_t begin = part * side_, end = std::min(n_, begin + side_);
    for (int64_t r = 0; r < x.rows(); ++r)
      kernels().accumulate(x.data + r * n_ + begin, nullptr, &into[at(begin)], end - begin);
  });
}

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

std::vector<double> Moments::mean() const {
  require(tokens_ > 0, "the mean of a stream that was never added");
  std::vector<double> mean = sum_;
  for (double& m : mean) m /= static_cast<double>(tokens_);
  return mean;
}

std::vector<double> Moments::second(bool centred) const { return scaled(second_, sum_, true, centred); }
std::vector<double> Moments::cross(bool centred) const { return scaled(cross_, other_sum_, false, centred); }

}  // namespace bcq
