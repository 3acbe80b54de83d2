#include "quant/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"

namespace bcq {
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

}  // namespace bcq
