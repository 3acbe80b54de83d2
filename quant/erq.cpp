#include "quant/erq.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "quant/linalg.h"

namespace bcq {
namespace {

using Doubles = std::vector<double>;  // row-major

constexpr int kTurns = 100;
constexpr double kHeadRidge = 0.1;
constexpr double kWeightShares[] = {0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1};

// rows (h + ridge)⁻¹ for h [n, n].
Doubles ridge_solve(Doubles h, int64_t n, double ridge, Doubles rows) {
  require(solve_rows(h, n, ridge, rows), "ERQ: a ridge of %g is too small for its inputs", ridge);
  return rows;
}

// x [..., n] with a column more.  [samples, tokens, n + 1]
Tensor with_column(const Tensor& x, float value) {
  const int64_t n = x.dim(-1), samples = x.dim(0), rows = x.rows();
  Tensor y = Tensor::uninitialized({samples, rows / samples, n + 1});
  for (int64_t r = 0; r < rows; ++r) *std::copy_n(x.data + r * n, n, y.data + r * (n + 1)) = value;
  return y;
}

// What rounding makes of x: to nearest, down or up.
template <class Round>
double on_grid(double x, const Asymmetric& grid, int64_t row, Round round) {
  const double scale = grid.scale[at(row)], zero = grid.zero[at(row)];
  return scale * (std::clamp(round(x / scale) + zero, 0.0, std::ldexp(1.0, grid.bits) - 1) - zero);
}

// Turns roundings of w [n], errors δ [n] whose gradient is half of g = δ C, downhill on δ C δᵀ.
void turn_roundings(const double* w, double* delta, double* g, const Doubles& c, int64_t n, const Asymmetric& grid,
                    int64_t row) {
  for (int turn = 0; turn < kTurns; ++turn) {
    int64_t best = -1;
    for (int64_t j = 0; j < n; ++j)
      if (delta[j] * g[j] > 0 && (best < 0 || std::abs(g[j]) > std::abs(g[best]))) best = j;
    if (best < 0) return;
    const double aim = delta[best] - 2 * g[best];
    const double low = on_grid(w[best], grid, row, [](double x) { return std::floor(x); }) - w[best];
    const double high = on_grid(w[best], grid, row, [](double x) { return std::ceil(x); }) - w[best];
    const double change = (std::abs(aim - high) <= std::abs(aim - low) ? high : low) - delta[best];
    if (change == 0 || 2 * change * g[best] + change * change * c[at(best * (n + 1))] > 0) return;
    delta[best] += change;
    for (int64_t j = 0; j < n; ++j) g[j] += change * c[at(best * n + j)];
  }
}

}  // namespace

ErqWeight erq(const Tensor& w, const Tensor& x, const Tensor& rounded, int bits, double ridge, double rounding_ridge) {
  const OneBlasThread one;
  const int64_t out = w.dim(0), in = w.dim(1), n = in + 1;
  Tensor lost = x.clone();
  for (int64_t i = 0; i < x.size(); ++i) lost[i] -= rounded[i];
  Moments moments(n);
  moments.add(with_column(rounded, 1), with_column(lost, 0));
  const double half_samples = static_cast<double>(moments.samples()) / 2;
  Doubles a = moments.second(), drift = moments.cross();  // sums over tokens: AᵀA; (x - x̂) A
  for (Doubles* m : {&a, &drift})
    for (double& v : *m) v *= half_samples;
  fill_lower(a, n);

  Doubles v(w.data, w.data + w.size());
  v = ridge_solve(a, n, ridge, times(v, block(drift, n, 0, in, 0, n), in, n));  // [W b] as it is refitted, [out, n]
  Tensor values(w.shape), bias({out});
  for (int64_t i = 0; i < w.size(); ++i)
    values[i] = static_cast<float>(v[at(i / in * n + i % in)] += static_cast<double>(w[i]));
  const Asymmetric grid = percentile_grid(values, bits, kWeightShares);

  const auto tokens = static_cast<double>(moments.tokens());
  const Doubles mean = moments.mean();
  for (int64_t begin = 0, count; begin < in; begin += count) {
    count = (n - begin) / 2;
    const int64_t rest = n - begin - count;
    Doubles c = block(a, n, begin, count, begin, count);  // mean meanᵀ + the unbiased covariance
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < count; ++j)
        c[at(i * count + j)] =
            (c[at(i * count + j)] - mean[at(begin + i)] * mean[at(begin + j)]) / std::max(1.0, tokens - 1);
    Doubles delta(at(out * count));
    for (int64_t i = 0; i < out * count; ++i) {
      const double now = v[at(i / count * n + begin + i % count)];
      delta[at(i)] = on_grid(now, grid, i / count, [](double y) { return std::nearbyint(y); }) - now;
    }
    Doubles gradient = times(delta, c, count, count);
    parallel_for(out, [&](int64_t r) {
      turn_roundings(&v[at(r * n + begin)], &delta[at(r * count)], &gradient[at(r * count)], c, count, grid, r);
    });
    const Doubles moved = ridge_solve(block(a, n, begin + count, rest, begin + count, rest), rest, rounding_ridge,
                                      times(delta, block(a, n, begin, count, begin + count, rest), count, rest));
    for (int64_t r = 0; r < out; ++r) {
      for (int64_t j = 0; j < count; ++j)
        values[r * in + begin + j] = static_cast<float>(v[at(r * n + begin + j)] + delta[at(r * count + j)]);
      for (int64_t j = 0; j < rest; ++j) v[at(r * n + begin + count + j)] -= moved[at(r * rest + j)];
    }
  }
  for (int64_t r = 0; r < out; ++r) bias[r] = static_cast<float>(v[at(r * n + in)]);
  return {fake_quantize(grid, values), grid, bias};
}

Needs Erq::needs() const {
  Needs needs = RepqVit::needs();
  needs.cross = true;
  return needs;
}

void Erq::round_weight(Layer& layer, const Grid& left, const Operands& x, PartRecord& record) const {
  if (layer.role == Role::Patch)
    return layer.quantize({}, percentile_grid(layer.weight.values(), wbits_, kWeightShares));
  const double ridge = coe_ / 10;
  ErqWeight q =
      erq(layer.weight.values(), x.f, fake_quantize(left, x.f), wbits_, x.f.rank() == 2 ? kHeadRidge : ridge, ridge);
  layer.quantize({left, q.grid, std::move(q.values), nullptr, nullptr});
  Model::point_of(layer).add(q.bias);
  record.fitted += q.bias.size();
}

}  // namespace bcq
