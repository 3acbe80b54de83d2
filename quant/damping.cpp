#include "quant/damping.h"

#include <algorithm>
#include <limits>

#include "engine/core/check.h"
#include "engine/core/tensor.h"
#include "quant/linalg.h"

namespace bcq {
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
