#include "quant/refine.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/core/parallel.h"

namespace bcq {
namespace {

constexpr int64_t kRows = 64;  // rows of one item, which share each row of c that is read

size_t at(int64_t i) { return static_cast<size_t>(i); }

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
double quadratic_error(const Tensor& q, const Tensor& v, const std::vector<double>& c) {
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
  double sum = 0;
  for (const double row : of_row) sum += row;
  return sum;
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
  std::vector<double> c = upper;  // both triangles: its rows are what a change adds to the gradient
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) c[at(i * n + j)] = c[at(j * n + i)];
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

}  // namespace bcq
