// Where the grid of an operand lies: ranges of asymmetric and table grids, found from the values it will round.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/grid/log_grid.h"
#include "engine/grid/table.h"
#include "engine/grid/uniform.h"

namespace bcq {

// A scale and a zero point: codes round(x / scale) + zero.
struct ScaleZero {
  float scale = 1;
  int32_t zero = 0;
};

inline constexpr double kPercentiles[] = {0.999, 0.9999, 0.99999};  // RepQ-ViT's
// The range of n values `stride` apart: of the quantiles 1 - p to p, p one of `shares` (interpolated linearly), the one
// of least squared error. It need not hold 0, and its zero point need not be a code. Of values that are all equal: a
// scale of 0.
ScaleZero percentile_range(const float* x, int64_t n, int64_t stride, int bits,
                           std::span<const double> shares = kPercentiles);
// How often values occur: equal bins between the least and the largest, with the sum of the weights of their values.
class Histogram {
 public:
  static constexpr int kBins = 4096;
  // x [rows, n]; a value counts for the weight of its row [rows] times that of its column [n]; empty: 1.
  explicit Histogram(const Tensor& x, const std::vector<float>& of_rows = {},
                     const std::vector<float>& of_columns = {});

  float lo() const { return lo_; }
  float hi() const { return hi_; }
  // The value that this share of the weight is not above.
  float quantile(double share) const;
  // Sum of weights (x̂ - x)² over all values, where x̂ is x on the grid clamp(round(x / scale) + zero, 0, codes - 1).
  double error(const ScaleZero& range, int codes) const;
  // That of another grid.
  double error(const Grid& grid) const;
  // [256] sums of weights by the codes of an 8-bit grid.
  std::vector<double> codes(const ScaleZero& range) const;

 private:
  float lo_, hi_;
  std::vector<double> bins_;
  float value(int bin) const;
};

// The asymmetric grid of `bits` of least squared error, among ranges that shrink from either end. It holds 0.
Asymmetric fit_asymmetric(const Histogram& values, int bits);
// The best table of 2^bits levels (best_levels) behind the 8-bit grid that holds a share of the weight, cut evenly from
// both ends, or with `is_signed` behind one of s8 codes: of shares 1, 0.9999 and 0.999 the one for which the levels and
// the cut cost least, as Histogram::error().
Table fit_table(const Histogram& values, int bits, bool is_signed);
// Steps of sqrt 2 below that one of the upper three quantiles for which the squared error of x is least.
LogSqrt2 fit_log_sqrt2(const Tensor& x, int bits);

// The published AdaLog grid, its zero a code more, of least squared error over bases and scales, among those that have
// an integer form: of values >= -shift. (AdaLog, section 3.2)
AdaLog fit_adalog(const Histogram& values, int bits, float shift);

// ---- The levels of a table grid (engine/grid/table.h), chosen exactly ---------------------------------------------

// The at most 2^bits codes, rising, for which Σ_u histogram[u] (u - nearest level)² is least; 1 to 8 bits, up to 256
// bins of weights that are not negative. By dynamic programming over where the values of a level end: of all
// thresholds and integer levels the best there are. (Bruce, "Optimum quantization", 1965)
std::vector<uint8_t> best_levels(const std::vector<double>& histogram, int bits);

// That sum for any levels.
double levels_error(const std::vector<double>& histogram, const std::vector<uint8_t>& levels);

}  // namespace bcq
