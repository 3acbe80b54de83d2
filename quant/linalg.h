// The dense algebra GPTQ needs, in double, by OpenBLAS's LAPACK. It runs on one
// thread here (OneBlasThread), so results do not depend on threads.
#pragma once
#include <cstdint>
#include <vector>

namespace bcq {

// The upper Cholesky factor of an inverse: h [n, n], symmetric and row-major, becomes U [n, n] with
// UᵀU = h⁻¹ and zeros below the diagonal. Only the upper triangle of h is read.
// Returns false when h is not positive definite to working precision; h is undefined then.
// Throws Error when h has another size.
bool factor_inverse(std::vector<double>& h, int64_t n);

// rows [m, n] <- rows h⁻¹, for h [n, n] symmetric and row-major, whose lower triangle is read and which is used up.
// Returns false when h is not positive definite; rows are as they were then.
bool solve_rows(std::vector<double>& h, int64_t n, std::vector<double>& rows);

// a [rows, k] x b [k, n], row-major.
std::vector<double> times(const std::vector<double>& a, const std::vector<double>& b, int64_t k, int64_t n);

// c [n, n], row-major: the lower triangle becomes the mirror image of the upper one.
void fill_lower(std::vector<double>& c, int64_t n);

}  // namespace bcq
