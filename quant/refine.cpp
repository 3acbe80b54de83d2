#include "quant/refine.h"

#include <cblas.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "quant/linalg.h"

namespace bcq {
namespace {

constexpr int64_t kRows = 64;  // rows of one item, which share each row of c that is read

// f(first row, number of rows, their difference to v) for chunks of rows.
template <class F>
void for_row_chunks(const Tensor& q, const Tensor& v, const std::vector<double>& c, F f) {
  const int64_t n = q.dim(-1), rows = q.rows();
  require(c.size() == at(n * n) && (v.empty() || v.shape == q.shape),
          "weights of shapes %s and %s, products of %d values", to_string(q.shape), to_string(v.shape), c.size());
  parallel_for((rows + kRows - 1) / kRows, [&](int64_t item) {
    const int64_t r0 = item * kRows, count = std::min(kRows, rows - r0);
    std::vector<double> e(at(count * n));
    for (int64_t i = 0; i < count * n; ++i)
      e[at(i)] = static_cast<double>(q[r0 * n + i]) - (v.empty() ? 0.f : v[r0 * n + i]);
    f(r0, count, e);
  });
}

}  // namespace

// Both triangles of c give the same, so e c eᵀ = 2 e U eᵀ - e D eᵀ with its upper triangle U and diagonal D.
std::vector<double> row_errors(const Tensor& q, const Tensor& v, const std::vector<double>& c) {
  const OneBlasThread one;
  const int64_t n = q.dim(-1);
  std::vector<double> of_row(at(q.rows()));
  for_row_chunks(q, v, c, [&](int64_t r0, int64_t rows, const std::vector<double>& e) {
    std::vector<double> g = e;
    const int m = static_cast<int>(rows), k = static_cast<int>(n);
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, m, k, 1, c.data(), k, g.data(), k);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i)
        sum += e[at(r * n + i)] * (2 * g[at(r * n + i)] - e[at(r * n + i)] * c[at(i * n + i)]);
      of_row[at(r0 + r)] = sum;
    }
  });
  return of_row;
}

double quadratic_error(const Tensor& q, const Tensor& v, const std::vector<double>& c) {
  const std::vector<double> of_row = row_errors(q, v, c);
  return std::accumulate(of_row.begin(), of_row.end(), 0.0);
}

double squared_error(const Tensor& q, const Tensor& v, const std::vector<double>& x) {
  const int64_t n = q.dim(-1);
  require(x.size() == at(n) && v.shape == q.shape, "weights of shapes %s and %s, an input of %d values",
          to_string(q.shape), to_string(v.shape), x.size());
  double sum = 0;
  for (int64_t r = 0; r < q.rows(); ++r) {
    double error = 0;
    for (int64_t i = 0; i < n; ++i)
      error += (static_cast<double>(q[r * n + i]) - static_cast<double>(v[r * n + i])) * x[at(i)];
    sum += error * error;
  }
  return sum / static_cast<double>(q.rows());
}

void refine(QuantizedWeight& q, const Tensor& v, const std::vector<double>& upper, int sweeps) {
  const OneBlasThread one;
  const int64_t n = v.dim(1), groups = q.grid.scale.dim(1);
  std::vector<double> c = upper;
  fill_lower(c, n);  // its rows are what a change adds to the gradient
  const float top = std::ldexp(1.f, q.grid.bits) - 1;

  for_row_chunks(q.values, v, c, [&](int64_t r0, int64_t rows, const std::vector<double>& e) {
    std::vector<double> gradient(e.size());
    const int m = static_cast<int>(rows), k = static_cast<int>(n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, k, k, 1, e.data(), k, c.data(), k, 0, gradient.data(), k);
    bool changed = true;
    for (int sweep = 0; sweep < sweeps && changed; ++sweep) {
      changed = false;
      for (int64_t j = 0; j < n; ++j) {
        const double curvature = c[at(j * n + j)];
        if (!(curvature > 0)) continue;
        const int64_t group = q.grid.group_of(j);
        for (int64_t r = r0; r < r0 + rows; ++r) {
          double* g = &gradient[at((r - r0) * n)];
          const float scale = q.grid.scale[r * groups + group], zero = q.grid.zero[r * groups + group];
          float& value = q.values[r * n + j];
          const double best = value - g[j] / curvature;
          const float code = std::clamp(static_cast<float>(std::nearbyint(best / scale)) + zero, 0.f, top);
          const float to = scale * (code - zero);
          const double step = static_cast<double>(to) - value;
          if (!(step * (2 * g[j] + step * curvature) < 0)) continue;
          cblas_daxpy(static_cast<int>(n), step, &c[at(j * n)], 1, g, 1);
          value = to;
          q.codes[at(r * n + j)] = static_cast<uint8_t>(code);
          changed = true;
        }
      }
    }
  });
}

namespace {

// Columns by the groups they are in: those of group g are order[begin[g]] ... order[begin[g + 1] - 1].
struct Grouped {
  std::vector<int64_t> order, begin{0};

  Grouped(const Affine& grid, int64_t n) {
    for (int64_t g = 0; g < grid.scale.dim(1); ++g) {
      for (int64_t c = 0; c < n; ++c)
        if (grid.group_of(c) == g) order.push_back(c);
      begin.push_back(static_cast<int64_t>(order.size()));
    }
  }
  int64_t groups() const { return static_cast<int64_t>(begin.size()) - 1; }
};

// The quadratic form sᵀ a s - 2 b s of one row in the scales of its groups.
struct ScaleSystem {
  std::vector<double> a, b;  // [G, G], [G]

  double cost(const std::vector<double>& s) const {
    const size_t n = b.size();
    double sum = 0;
    for (size_t g = 0; g < n; ++g) {
      double row = -2 * b[g];
      for (size_t h = 0; h < n; ++h) row += a[g * n + h] * s[h];
      sum += s[g] * row;
    }
    return sum;
  }
  // The best scales; those as they are where a group has no positive one.
  std::vector<double> solve(const std::vector<double>& now) const {
    std::vector<double> used_up = a, s = b;
    const size_t n = b.size();
    double mean = 0;
    for (size_t g = 0; g < n; ++g) mean += a[g * n + g] / static_cast<double>(n);
    if (!(mean > 0) || !solve_rows(used_up, static_cast<int64_t>(n), 1e-9 * mean, s)) return now;
    for (size_t g = 0; g < n; ++g)
      if (!(s[g] > FLT_MIN && s[g] < FLT_MAX)) s[g] = now[g];
    return s;
  }
};

}  // namespace

void refit_scales(QuantizedWeight& q, const Tensor& v, const std::vector<double>& upper, const WeightGrid& grid) {
  const OneBlasThread one;
  const int64_t n = v.dim(1);
  const Grouped by(q.grid, n);
  const int64_t groups = by.groups();
  std::vector<double> c(upper.size());  // columns and rows in the order of the groups
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t a = by.order[at(i)], b = by.order[at(j)];
      c[at(i * n + j)] = upper[at(std::min(a, b) * n + std::max(a, b))];
    }
  parallel_for((v.dim(0) + kRows - 1) / kRows, [&](int64_t item) {
    const int64_t r0 = item * kRows, rows = std::min(kRows, v.dim(0) - r0);
    std::vector<double> p(at(rows * n)), w(at(rows * n)), pc(at(rows * n));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t column = by.order[at(i)], k = (r0 + r) * n + column;
        p[at(r * n + i)] = q.codes[at(k)] - q.grid.zero[(r0 + r) * groups + q.grid.group_of(column)];
        w[at(r * n + i)] = v[k];
      }
    std::vector<ScaleSystem> systems(at(rows),
                                     {std::vector<double>(at(groups * groups)), std::vector<double>(at(groups))});
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = by.begin[at(g)], count = by.begin[at(g + 1)] - begin;
      cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(rows), static_cast<int>(n),
                  static_cast<int>(count), 1, &p[at(begin)], static_cast<int>(n), &c[at(begin * n)],
                  static_cast<int>(n), 0, pc.data(), static_cast<int>(n));
      for (int64_t r = 0; r < rows; ++r) {
        const double* row = &pc[at(r * n)];
        systems[at(r)].b[at(g)] = cblas_ddot(static_cast<int>(n), row, 1, &w[at(r * n)], 1);
        for (int64_t h = 0; h < groups; ++h)
          systems[at(r)].a[at(g * groups + h)] =
              cblas_ddot(static_cast<int>(by.begin[at(h + 1)] - by.begin[at(h)]), row + by.begin[at(h)], 1,
                         &p[at(r * n + by.begin[at(h)])], 1);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* scales = q.grid.scale.data + (r0 + r) * groups;
      const std::vector<double> now(scales, scales + groups);
      std::vector<double> best = systems[at(r)].solve(now);
      for (double& s : best) s = stored(static_cast<float>(s), grid);
      if (!(systems[at(r)].cost(best) < systems[at(r)].cost(now))) continue;
      std::copy(best.begin(), best.end(), scales);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t k = (r0 + r) * n + by.order[at(i)];
        q.values[k] = scales[q.grid.group_of(by.order[at(i)])] * static_cast<float>(p[at(r * n + i)]);
      }
    }
  });
}

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
    Matrix used_up = c, d = gain;
    if (!solve_rows(used_up, n, ridge * diagonal, d)) d.clear();
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
