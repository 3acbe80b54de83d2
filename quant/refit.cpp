#include "quant/refit.h"

#include <cblas.h>

#include <algorithm>
#include <limits>
#include <map>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "quant/linalg.h"

namespace bcq {
namespace {

constexpr double kRidges[] = {0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10};
constexpr int64_t kTrialRows = 256;  // outputs the ridge is chosen by

using Matrix = std::vector<double>;  // row-major

// Products of one set of windows, and what they would have W gain: W (E x x~ᵀ - C).
struct Half {
  Matrix c, gain;  // [n, n], both triangles; [out, n]
  double diagonal = 0;

  Half(const Matrix& w, int64_t n, const Moments& moments, bool centred) : c(moments.second(centred)) {
    for (int64_t i = 0; i < n; ++i) diagonal += c[at(i * n + i)] / static_cast<double>(n);
    fill_lower(c, n);
    Matrix drift = moments.cross(centred);
    for (size_t i = 0; i < drift.size(); ++i) drift[i] -= c[i];
    gain = times(w, drift, n, n);
  }

  // V - W; empty when C + λ cannot be factored.
  Matrix change(int64_t n, double ridge) const {
    Matrix damped = c, d = gain;
    for (int64_t i = 0; i < n; ++i) damped[at(i * n + i)] += ridge * diagonal;
    if (!solve_rows(damped, n, d)) d.clear();
    return d;
  }
  // What a change d of W adds to E || W x - V x~ ||² here.
  double cost(const Matrix& d, int64_t n) const {
    const int size = static_cast<int>(d.size());
    return cblas_ddot(size, times(d, c, n, n).data(), 1, d.data(), 1) -
           2 * cblas_ddot(size, gain.data(), 1, d.data(), 1);
  }
};

}  // namespace

Refit refit(const std::vector<Tensor>& weights, Moments& a, const Moments& b, bool centred) {
  const OneBlasThread one;
  const int64_t n = a.columns();
  Matrix w;
  for (const Tensor& weight : weights) w.insert(w.end(), weight.data, weight.data + weight.size());

  // Every so many-th output.
  const int64_t out = static_cast<int64_t>(w.size()) / n, step_rows = (out + kTrialRows - 1) / kTrialRows;
  Matrix some;
  for (int64_t r = 0; r < out; r += step_rows) some.insert(some.end(), &w[at(r * n)], &w[at(r * n)] + n);

  double best = 0;
  Refit result{weights, std::numeric_limits<double>::infinity()};
  {
    const Half halves[] = {{some, n, a, centred}, {some, n, b, centred}};
    // Costs fall and rise again: downhill from a ridge that is often the best or its neighbour. Beyond the ends: no
    // refit.
    constexpr int kCount = std::size(kRidges);
    std::map<int, double> known;
    const auto cost = [&](int i) {
      if (i < 0 || i >= kCount) return 0.0;
      if (const auto found = known.find(i); found != known.end()) return found->second;
      double of_half[2];
      parallel_for(2, [&](int64_t half) {
        const Matrix d = halves[half].change(n, kRidges[i]);
        of_half[half] = d.empty() ? 0 : halves[1 - half].cost(d, n);
      });
      return known[i] = of_half[0] + of_half[1];
    };
    int i = 2;
    const int step = cost(i + 1) < cost(i) ? 1 : -1;
    while (cost(i + step) < cost(i)) i += step;
    best = std::min(0.0, cost(i));
    if (best < 0) result.ridge = kRidges[i];
  }
  a.add(b);
  if (best == 0) return result;
  const Matrix d = Half(w, n, a, centred).change(n, result.ridge);
  size_t i = 0;
  for (Tensor& v : result.weights) {
    v = v.clone();
    for (int64_t k = 0; k < v.size(); ++k, ++i) v[k] = static_cast<float>(v[k] + (d.empty() ? 0 : d[i]));
  }
  return result;
}

}  // namespace bcq
