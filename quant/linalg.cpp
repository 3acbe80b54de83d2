#include "quant/linalg.h"

#include <cblas.h>

#include <algorithm>
#include <cstddef>
#include <limits>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/tensor.h"

// Fortran: matrices are column-major, every argument is a pointer, and the length of each
// string follows the other arguments.
extern "C" {
void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* info, size_t);
void dpotrs_(const char* uplo, const int* n, const int* nrhs, const double* a, const int* lda, double* b,
             const int* ldb, int* info, size_t);
void dtrtri_(const char* uplo, const char* diag, const int* n, double* a, const int* lda, int* info, size_t, size_t);
}

namespace bcq {

// With J the reversal of indices and J h J = L Lᵀ, U = J L⁻¹ J is upper triangular and
//   UᵀU = J L⁻ᵀ L⁻¹ J = J (J h J)⁻¹ J = h⁻¹,
// one factorisation instead of the three of chol -> inverse -> chol, and no squared condition number.
// J a J is the memory of `a` read backwards, and row-major lower is LAPACK's column-major "U".
bool factor_inverse(std::vector<double>& h, int64_t n) {
  const size_t size = static_cast<size_t>(n);
  require(n >= 0 && h.size() == size * size, "factor_inverse: %d values are not %d squared", h.size(), n);
  if (n == 0) return true;
  const OneBlasThread one;
  std::reverse(h.begin(), h.end());

  std::vector<double> diagonal(size);
  for (size_t i = 0; i < size; ++i) diagonal[i] = h[i * size + i];
  const int order = static_cast<int>(n);
  int info = 0;
  dpotrf_("U", &order, h.data(), &order, &info, 1);
  if (info != 0) return false;
  // A pivot is what remains of its diagonal entry; below the rounding error of the subtractions
  // that led to it, its sign says nothing.
  const double noise = static_cast<double>(n) * std::numeric_limits<double>::epsilon();
  for (size_t i = 0; i < size; ++i) {
    const double pivot = h[i * size + i] * h[i * size + i];
    if (!(pivot > noise * diagonal[i])) return false;
  }
  dtrtri_("U", "N", &order, h.data(), &order, &info, 1, 1);
  if (info != 0) return false;

  for (size_t i = 0; i < size; ++i) std::fill(&h[i * size] + i + 1, &h[i * size] + size, 0.0);
  std::reverse(h.begin(), h.end());
  return true;
}

// A row is a right-hand side of h z = row, which column-major memory has as a column.
bool solve_rows(std::vector<double>& h, int64_t n, double ridge, std::vector<double>& rows) {
  const size_t size = static_cast<size_t>(n);
  require(n > 0 && h.size() == size * size && rows.size() % size == 0, "solve_rows: %d and %d values for order %d",
          h.size(), rows.size(), n);
  const OneBlasThread one;
  for (size_t i = 0; i < size; ++i) h[i * size + i] += ridge;
  const int order = static_cast<int>(n), count = static_cast<int>(rows.size() / size);
  int info = 0;
  dpotrf_("U", &order, h.data(), &order, &info, 1);
  if (info == 0) dpotrs_("U", &order, &count, h.data(), &order, rows.data(), &order, &info, 1);
  return info == 0;
}

std::vector<double> times(const std::vector<double>& a, const std::vector<double>& b, int64_t k, int64_t n) {
  const int64_t rows = static_cast<int64_t>(a.size()) / k;
  std::vector<double> c(static_cast<size_t>(rows * n));
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(rows), static_cast<int>(n),
              static_cast<int>(k), 1, a.data(), static_cast<int>(k), b.data(), static_cast<int>(n), 0, c.data(),
              static_cast<int>(n));
  return c;
}

std::vector<double> block(const std::vector<double>& m, int64_t n, int64_t row, int64_t rows, int64_t column,
                          int64_t columns) {
  std::vector<double> part;
  for (int64_t r = row; r < row + rows; ++r)
    part.insert(part.end(), m.begin() + r * n + column, m.begin() + r * n + column + columns);
  return part;
}

void fill_lower(std::vector<double>& c, int64_t n) {
  const size_t size = static_cast<size_t>(n);
  for (size_t i = 0; i < size; ++i)
    for (size_t j = 0; j < i; ++j) c[i * size + j] = c[j * size + i];
}

namespace {

constexpr double kPercdamp = 0.01;  // where none was asked for

// u = the factor of h with its diagonal lifted to `floor` and damped by a share of its mean.
bool factor_damped(const std::vector<double>& h, int64_t n, double floor, double damp, std::vector<double>& u) {
  u = h;
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) {
    double& d = u[at(i * n + i)];
    d = std::max(d, floor);
    mean += d / static_cast<double>(n);
  }
  for (int64_t i = 0; i < n; ++i) u[at(i * n + i)] += damp * mean;
  return factor_inverse(u, n);
}

}  // namespace

std::vector<float> factor_hessian(const std::vector<double>& h, int64_t n, double percdamp, const std::string& name,
                                  const Warn& warn, double* damp) {
  constexpr double kNoFloor = -std::numeric_limits<double>::infinity();
  std::vector<double> u;
  double share = percdamp, floor = kNoFloor;
  bool ok = factor_damped(h, n, floor, share, u);
  while (!ok && share < 1) {
    share = std::min(1.0, share > 0 ? 10 * share : kPercdamp);
    ok = factor_damped(h, n, floor, share, u);
  }
  double max = 0;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, h[at(i * n + i)]);
  for (double relative = 1e-6; !ok && relative < 0.5; relative *= 10) {
    floor = relative * max;
    ok = factor_damped(h, n, floor, share, u);
  }
  *damp = share;
  if (!ok) return {};
  if (share != percdamp || floor != kNoFloor)
    warn(format("%s: its Hessian is not positive definite with damping %g: damping %g%s was used", name, percdamp,
                share, floor != kNoFloor ? " and a floor under its diagonal" : ""));
  return std::vector<float>(u.begin(), u.end());
}

}  // namespace bcq
