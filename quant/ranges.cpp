#include "quant/ranges.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"

namespace bcq {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Quantile p of values, interpolated at rank p (n - 1); they are reordered.
float quantile(std::vector<float>& x, double p) {
  const double rank = p * static_cast<double>(x.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(rank);
  std::nth_element(x.begin(), x.begin() + below, x.end());
  const double low = x[at(below)];
  if (below + 1 == static_cast<std::ptrdiff_t>(x.size())) return static_cast<float>(low);
  const double high = *std::min_element(x.begin() + below + 1, x.end());
  return static_cast<float>(low + (high - low) * (rank - static_cast<double>(below)));
}

double on_grid(double x, const ScaleZero& range, int codes) {
  const double code = std::clamp(std::nearbyint(x / range.scale) + range.zero, 0.0, codes - 1.0);
  return range.scale * (code - range.zero);
}

// The range from lo to hi, which hold 0 between them.
ScaleZero between(double lo, double hi, int codes) {
  const float scale = static_cast<float>(std::max((hi - lo) / (codes - 1), static_cast<double>(FLT_MIN)));
  return {scale, static_cast<int32_t>(std::nearbyint(-lo / scale))};
}

}  // namespace

ScaleZero percentile_range(const float* x, int64_t n, int64_t stride, int bits, std::span<const double> shares) {
  const int codes = 1 << bits;
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[at(i)] = x[i * stride];
  ScaleZero best{0, 0};
  double least = kInfinity;
  for (const double p : shares) {
    const float hi = quantile(values, p), lo = quantile(values, 1 - p);
    const float scale = (hi - lo) / static_cast<float>(codes - 1);
    if (!(scale >= FLT_MIN)) continue;
    const ScaleZero range{scale, static_cast<int32_t>(std::nearbyint(-lo / scale))};
    double error = 0;
    for (const float v : values) error += (on_grid(v, range, codes) - v) * (on_grid(v, range, codes) - v);
    if (error < least) least = error, best = range;
  }
  return best;
}

Histogram::Histogram(const Tensor& x, const std::vector<float>& of_rows, const std::vector<float>& of_columns)
    : bins_(kBins, 0.0) {
  const int64_t n = x.dim(-1), rows = x.rows();
  require(x.size() > 0 && (of_rows.empty() || static_cast<int64_t>(of_rows.size()) == rows) &&
              (of_columns.empty() || static_cast<int64_t>(of_columns.size()) == n),
          "a histogram of %s with weights of %d rows and %d columns", to_string(x.shape), of_rows.size(),
          of_columns.size());
  const auto [lo, hi] = std::minmax_element(x.data, x.data + x.size());
  lo_ = *lo;
  hi_ = *hi;
  const double per_bin = hi_ > lo_ ? kBins / (static_cast<double>(hi_) - lo_) : 0;
  for (int64_t r = 0; r < rows; ++r) {
    const double row = of_rows.empty() ? 1 : of_rows[at(r)];
    for (int64_t c = 0; c < n; ++c) {
      const int bin = std::min(kBins - 1, static_cast<int>((static_cast<double>(x[r * n + c]) - lo_) * per_bin));
      bins_[at(bin)] += row * (of_columns.empty() ? 1 : of_columns[at(c)]);
    }
  }
}

float Histogram::quantile(double share) const {
  double all = 0, sum = 0;
  for (const double weight : bins_) all += weight;
  for (int b = 0; b < kBins; ++b)
    if ((sum += bins_[at(b)]) >= share * all) return value(b);
  return hi_;
}

float Histogram::value(int bin) const {
  return static_cast<float>(lo_ + (static_cast<double>(hi_) - lo_) * (bin + 0.5) / kBins);
}

double Histogram::error(const ScaleZero& range, int codes) const {
  double sum = 0;
  for (int b = 0; b < kBins; ++b) {
    const double v = value(b), d = on_grid(v, range, codes) - v;
    sum += bins_[at(b)] * d * d;
  }
  return sum;
}

double Histogram::error(const Grid& grid) const {
  Tensor all({kBins});
  for (int b = 0; b < kBins; ++b) all[b] = value(b);
  const Tensor rounded = fake_quantize(grid, all);
  double sum = 0;
  for (int b = 0; b < kBins; ++b) {
    const double d = static_cast<double>(rounded[b]) - all[b];
    sum += bins_[at(b)] * d * d;
  }
  return sum;
}

std::vector<double> Histogram::codes(const ScaleZero& range) const {
  std::vector<double> sums(256, 0.0);
  for (int b = 0; b < kBins; ++b) {
    const double code =
        std::clamp(std::nearbyint(static_cast<double>(value(b)) / range.scale) + range.zero, 0.0, 255.0);
    sums[at(code)] += bins_[at(b)];
  }
  return sums;
}

namespace {

// Moments of the histogram up to each bin: those of an interval are differences.
struct Intervals {
  std::vector<double> sum0{0}, sum1{0}, sum2{0};

  explicit Intervals(const std::vector<double>& histogram) {
    for (size_t u = 0; u < histogram.size(); ++u) {
      const double c = static_cast<double>(u);
      sum0.push_back(sum0.back() + histogram[u]);
      sum1.push_back(sum1.back() + histogram[u] * c);
      sum2.push_back(sum2.back() + histogram[u] * c * c);
    }
  }
  // The best level of bins [begin, end): their mean, rounded.
  double level(size_t begin, size_t end) const {
    const double n = sum0[end] - sum0[begin];
    return n > 0 ? std::nearbyint((sum1[end] - sum1[begin]) / n) : static_cast<double>(begin);
  }
  double error(size_t begin, size_t end) const {
    const double l = level(begin, end);
    return sum2[end] - sum2[begin] - 2 * l * (sum1[end] - sum1[begin]) + l * l * (sum0[end] - sum0[begin]);
  }
};

}  // namespace

std::vector<uint8_t> best_levels(const std::vector<double>& histogram, int bits) {
  const size_t bins = histogram.size(), most = size_t{1} << bits;
  require(bits >= 1 && bits <= 8 && bins >= 1 && bins <= 256, "levels of %d bits for %d bins", bits, bins);
  require(std::all_of(histogram.begin(), histogram.end(), [](double w) { return w >= 0 && std::isfinite(w); }),
          "a histogram of weights that are negative or not finite");
  if (most >= bins) {
    std::vector<uint8_t> all(bins);
    std::iota(all.begin(), all.end(), uint8_t{0});
    return all;
  }
  const Intervals intervals(histogram);
  std::vector<double> cost((bins + 1) * (bins + 1), 0.0);  // [begin, end)
  for (size_t begin = 0; begin < bins; ++begin)
    for (size_t end = begin + 1; end <= bins; ++end) cost[end * (bins + 1) + begin] = intervals.error(begin, end);

  // best[e]: of bins [0, e) with the levels so far, the last of which begins at cut[level][e].
  std::vector<double> best(bins + 1), next(bins + 1);
  std::vector<std::vector<size_t>> cut(most, std::vector<size_t>(bins + 1, 0));
  for (size_t end = 0; end <= bins; ++end) best[end] = cost[end * (bins + 1)];
  for (size_t level = 1; level < most; ++level) {
    for (size_t end = 0; end <= bins; ++end) {
      next[end] = std::numeric_limits<double>::infinity();
      for (size_t begin = 0; begin <= end; ++begin) {
        const double total = best[begin] + cost[end * (bins + 1) + begin];
        if (total < next[end]) next[end] = total, cut[level][end] = begin;
      }
    }
    best.swap(next);
  }
  std::vector<uint8_t> levels;
  size_t end = bins;
  for (size_t level = most; level-- > 0 && end > 0;) {
    const size_t begin = cut[level][end];
    if (begin < end) levels.push_back(static_cast<uint8_t>(intervals.level(begin, end)));
    end = begin;
  }
  std::reverse(levels.begin(), levels.end());
  return levels;
}

double levels_error(const std::vector<double>& histogram, const std::vector<uint8_t>& levels) {
  double sum = 0;
  for (size_t u = 0; u < histogram.size(); ++u) {
    double least = std::numeric_limits<double>::infinity();
    for (const uint8_t level : levels) {
      const double d = static_cast<double>(u) - level;
      least = std::min(least, d * d);
    }
    if (histogram[u] > 0) sum += histogram[u] * least;
  }
  return sum;
}

namespace {

// try_one(lo, hi) for ranges that hold 0 and shrink from either end.
template <class F>
void shrinking(const Histogram& values, int steps, F try_one) {
  const double lo = std::min(values.lo(), 0.f), hi = std::max(values.hi(), 0.f);
  for (int i = 0; i < (lo < 0 ? steps : 1); ++i)
    for (int j = 0; j < (hi > 0 ? steps : 1); ++j) {
      const double shrink = 0.9 / steps;
      try_one(lo * (1 - i * shrink), hi * (1 - j * shrink));
    }
}

}  // namespace

Asymmetric fit_asymmetric(const Histogram& values, int bits) {
  const int codes = 1 << bits;
  ScaleZero best;
  double least = kInfinity;
  shrinking(values, bits > 6 ? 10 : 30, [&](double lo, double hi) {
    const ScaleZero range = between(lo, hi, codes);
    if (const double error = values.error(range, codes); error < least) least = error, best = range;
  });
  return {bits, best.scale, best.zero};
}

Table fit_table(const Histogram& values, int bits, bool is_signed) {
  double least = kInfinity;
  std::vector<Table> best;
  for (const double share : {1.0, 0.9999, 0.999}) {
    double lo = share < 1 ? values.quantile((1 - share) / 2) : values.lo();
    double hi = share < 1 ? values.quantile((1 + share) / 2) : values.hi();
    lo = std::min(lo, 0.0), hi = std::max(hi, 0.0);
    ScaleZero range = between(lo, hi, 256);
    if (is_signed) range = {static_cast<float>(std::max({-lo / 128, hi / 127, static_cast<double>(FLT_MIN)})), 128};
    const std::vector<double> histogram = values.codes(range);
    const std::vector<uint8_t> levels = best_levels(histogram, bits);
    const double error =
        values.error(range, 256) + static_cast<double>(range.scale) * range.scale * levels_error(histogram, levels);
    if (error < least) least = error, best = {Table(bits, range.scale, range.zero, levels)};
  }
  return best.at(0);
}

LogSqrt2 fit_log_sqrt2(const Tensor& x, int bits) {
  std::vector<float> values(x.data, x.data + x.size());
  LogSqrt2 best(bits, 1, true);
  double least = kInfinity;
  for (const double p : kPercentiles) {
    const LogSqrt2 grid(bits, quantile(values, p), true);
    const Tensor rounded = fake_quantize(grid, x);
    double error = 0;
    for (int64_t i = 0; i < x.size(); ++i) error += (rounded[i] - x[i]) * (rounded[i] - x[i]);
    if (error < least) least = error, best = grid;
  }
  return best;
}

AdaLog fit_adalog(const Histogram& values, int bits, float shift) {
  double least = kInfinity;
  std::vector<AdaLog> best;
  for (const double share : {1.0, 0.9999, 0.999, 0.99}) {
    const float top = (share < 1 ? values.quantile(share) : values.hi()) + shift;
    for (int base = 1; top > 0 && base <= AdaLog::kMostBase; ++base) {
      const AdaLog grid(bits, top, base, shift, true);
      if (grid.planes() == 0) break;  // those of larger bases have none either
      if (const double error = values.error(grid); error < least) least = error, best = {grid};
    }
  }
  return best.empty() ? AdaLog(bits, 1, 1, shift, true) : best[0];
}

}  // namespace bcq
