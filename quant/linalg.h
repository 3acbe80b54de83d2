// The dense algebra weight solvers need, in double, by OpenBLAS's LAPACK. It runs on one
// thread here (OneBlasThread), so results do not depend on threads.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/core/progress.h"

namespace bcq {

// The upper Cholesky factor of an inverse: h [n, n], symmetric and row-major, becomes U [n, n] with
// UᵀU = h⁻¹ and zeros below the diagonal. Only the upper triangle of h is read.
// Returns false when h is not positive definite to working precision; h is undefined then.
// Throws Error when h has another size.
bool factor_inverse(std::vector<double>& h, int64_t n);

// rows [m, n] <- rows (h + ridge)⁻¹, for h [n, n] symmetric and row-major, whose lower triangle is read and which is
// used up. Returns false when that is not positive definite; rows are as they were then.
bool solve_rows(std::vector<double>& h, int64_t n, double ridge, std::vector<double>& rows);

// a [rows, k] x b [k, n], row-major.
std::vector<double> times(const std::vector<double>& a, const std::vector<double>& b, int64_t k, int64_t n);

// Columns [column, column + columns) of rows [row, row + rows) of m [., n].
std::vector<double> block(const std::vector<double>& m, int64_t n, int64_t row, int64_t rows, int64_t column,
                          int64_t columns);

// c [n, n], row-major: the lower triangle becomes the mirror image of the upper one.
void fill_lower(std::vector<double>& c, int64_t n);

// U with UᵀU the inverse of h [n, n] damped by this share of its mean diagonal, as floats; empty when no damping makes
// it positive definite. Raises the share tenfold up to 1, then lifts the diagonal to a floor, and warns, naming `name`;
// *damp gets the share that was needed. The official code of GPTQ knows the first rung only and fails there.
std::vector<float> factor_hessian(const std::vector<double>& h, int64_t n, double percdamp, const std::string& name,
                                  const Warn& warn, double* damp);

}  // namespace bcq
