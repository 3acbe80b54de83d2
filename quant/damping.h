// The factor of a Hessian that weight solvers carry errors on with, damped as far as it needs to be.
#pragma once
#include <string>
#include <vector>

#include "engine/core/progress.h"

namespace bcq {

// U with UᵀU the inverse of h [n, n] damped by this share of its mean diagonal, as floats; empty when no damping makes
// it positive definite. Raises the share tenfold up to 1, then lifts the diagonal to a floor, and warns, naming `name`;
// *damp gets the share that was needed. The official code of GPTQ knows the first rung only and fails there.
std::vector<float> factor_hessian(const std::vector<double>& h, int64_t n, double percdamp, const std::string& name,
                                  const Warn& warn, double* damp);

}  // namespace bcq
