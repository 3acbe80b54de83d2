#include "quant/ranges.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "engine/core/check.h"
#include "quant/codebook.h"

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

float percentile_top(const Tensor& x, const std::function<double(float top)>& error) {
  std::vector<float> values(x.data, x.data + x.size());
  float best = 1;
  double least = kInfinity;
  for (const double p : kPercentiles) {
    const float top = quantile(values, p);
    if (const double e = error(top); e < least) least = e, best = top;
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

Table fit_table(const Histogram& values, int bits, double share, bool is_signed, double* error) {
  double lo = share < 1 ? values.quantile((1 - share) / 2) : values.lo();
  double hi = share < 1 ? values.quantile((1 + share) / 2) : values.hi();
  lo = std::min(lo, 0.0), hi = std::max(hi, 0.0);
  ScaleZero range = between(lo, hi, 256);
  if (is_signed) range = {static_cast<float>(std::max({-lo / 128, hi / 127, static_cast<double>(FLT_MIN)})), 128};
  const std::vector<double> histogram = values.codes(range);
  std::vector<uint8_t> levels = best_levels(histogram, bits);
  if (error)
    *error =
        values.error(range, 256) + static_cast<double>(range.scale) * range.scale * levels_error(histogram, levels);
  return {bits, range.scale, range.zero, levels};
}

Table fit_table(const Histogram& values, int bits, bool is_signed) {
  double least = kInfinity;
  std::vector<Table> best;
  for (const double share : {1.0, 0.9999, 0.999}) {
    double error = 0;
    const Table table = fit_table(values, bits, share, is_signed, &error);
    if (error < least) least = error, best = {table};
  }
  return best.at(0);
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
