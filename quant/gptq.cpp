// Round to nearest and GPTQ. The column loop computes in float in the order of the official code, so that
// integer codes agree with it; Hessians are factored in double.
//
// Everything after the factorisation is independent for each output row, so rows go to
// threads in chunks and one chunk is taken through all columns.
#include "quant/gptq.h"

#include <cblas.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/half.h"
#include "engine/core/parallel.h"
#include "engine/grid/affine.h"
#include "engine/kernels/kernels.h"
#include "quant/linalg.h"

namespace bcq {
namespace {

constexpr int64_t kRows = 64;  // rows of one item: they and their errors stay in cache

// ---- Grids --------------------------------------------------------------------------------------

struct Step {
  float scale, zero;
};

float top_code(int bits) { return std::ldexp(1.f, bits) - 1; }

// The code of x: rounded before the zero point is added, as in the official code; NaN gives 0.
float encode(float x, Step step, float top) {
  const float q = std::nearbyint(x / step.scale) + step.zero;
  return q > 0 ? std::min(q, top) : 0.f;
}

float decode(float code, Step step) { return step.scale * (code - step.zero); }

// What a clipping error costs: |error|^mse, or with weights [n] its square times that of its column.
double cost(float error, float mse, const double* weight) {
  return weight ? *weight * error * error : std::pow(std::abs(error), mse);
}

Step find_step(const float* x, int64_t n, const WeightGrid& grid, const double* weights = nullptr) {
  const float top = top_code(grid.bits);
  float lo = 0, hi = 0;  // zero is always on the grid
  for (int64_t i = 0; i < n; ++i) {
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
  }
  if (grid.sym) {
    hi = std::max(-lo, hi);
    if (lo < 0) lo = -hi;
  }
  // Nothing to represent. The official test is lo == hi == 0; a range below float's normal numbers
  // would give it a step of 0, or one too coarse for its zero point to be a code.
  if (stored((hi - lo) / top, grid) < FLT_MIN) lo = -1, hi = 1;
  const auto shrunk = [&](float p) -> Step {
    const float scale = stored((p * hi - p * lo) / top, grid);
    return {scale, grid.sym ? (top + 1) / 2 : std::min(top, std::nearbyint(-(p * lo) / scale))};
  };
  Step best = shrunk(1);
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; (grid.mse > 0 || weights) && i < 80; ++i) {
    const Step step = shrunk(static_cast<float>(1 - i / 100.0));
    double error = 0;
    for (int64_t c = 0; c < n; ++c)
      error += cost(decode(encode(x[c], step, top), step) - x[c], static_cast<float>(grid.mse),
                    weights ? weights + c : nullptr);
    if (error < least) {
      least = error;
      best = step;
    }
  }
  return best;
}

void require_grid(const WeightGrid& g) {
  require_usage(g.bits >= 2 && g.bits <= 8, "weights are quantized to 2..8 bits, not %d", g.bits);
  require_usage(g.groupsize == -1 || g.groupsize >= 1, "the group size is a number of columns or -1, not %d",
                g.groupsize);
  require_usage(g.mse >= 0 && std::isfinite(g.mse), "the norm of a clipping error is a number > 0, not %g", g.mse);
}

// A quantized weight whose codes, values, scales and zero points are still to be found: [out, in], one group
// of `groupsize` columns after the other, the last one possibly shorter.
QuantizedWeight unfilled(const Tensor& w, const WeightGrid& grid) {
  require(w.rank() == 2 && w.dim(1) > 0, "a weight to quantize has shape %s, not [out, in]", to_string(w.shape));
  QuantizedWeight q;
  q.grid.bits = grid.bits;
  q.grid.group = grid.groupsize < 0 ? w.dim(1) : grid.groupsize;
  const int64_t groups = (w.dim(1) + q.grid.group - 1) / q.grid.group;
  q.grid.scale = Tensor::uninitialized({w.dim(0), groups});
  q.grid.zero = Tensor::uninitialized({w.dim(0), groups});
  q.codes.resize(at(w.size()));
  q.values = Tensor::uninitialized(w.shape);
  return q;
}

// f(first row, number of rows) for chunks of rows.
template <class F>
void for_row_chunks(int64_t rows, F f) {
  parallel_for((rows + kRows - 1) / kRows, [&](int64_t i) { f(i * kRows, std::min(kRows, rows - i * kRows)); });
}

// Scales and zero points of all groups of w; weights [in], or empty.
void find_steps(const Tensor& w, const WeightGrid& grid, Affine& found, const std::vector<double>& weights = {}) {
  const int64_t in = w.dim(1), groups = found.scale.dim(1);
  for_row_chunks(w.dim(0), [&](int64_t r0, int64_t rows) {
    for (int64_t i = r0 * groups; i < (r0 + rows) * groups; ++i) {
      const int64_t begin = i % groups * found.group;
      const Step step = find_step(w.data + i / groups * in + begin, std::min(found.group, in - begin), grid,
                                  weights.empty() ? nullptr : &weights[at(begin)]);
      found.scale[i] = step.scale;
      found.zero[i] = step.zero;
    }
  });
}

// ---- GPTQ: the solver ---------------------------------------------------------------------------

bool all_finite(const std::vector<double>& x) {
  return std::all_of(x.begin(), x.end(), [](double v) { return std::isfinite(v); });
}

// Columns of w [rows, n], and rows and columns of h [n, n], of which the upper triangle is read and written,
// into another order.
void permute(const std::vector<int64_t>& order, Tensor& w, std::vector<double>& h) {
  const int64_t n = w.dim(1);
  const Tensor w0 = w.clone();
  const std::vector<double> h0 = h;
  for (int64_t i = 0; i < w.size(); ++i) w[i] = w0[i / n * n + order[at(i % n)]];
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) {
      const int64_t a = order[at(i)], b = order[at(j)];
      h[at(i * n + j)] = h0[at(std::min(a, b) * n + std::max(a, b))];
    }
}

// GPTAQ's P [n, n] of a drift [n, n] and the factor u [n, n], above the diagonal.
std::vector<float> drift_steps(const std::vector<double>& drift, const std::vector<float>& u, int64_t n, double share) {
  const std::vector<double> factor(u.begin(), u.end());
  std::vector<double> p = drift;
  const int size = static_cast<int>(n);
  cblas_dtrmm(CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, size, size, share, factor.data(), size,
              p.data(), size);
  for (int64_t i = 0; i < n; ++i) std::fill_n(&p[at(i * n)], i + 1, 0.0);
  cblas_dtrmm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, size, size, 1, factor.data(), size,
              p.data(), size);
  return {p.begin(), p.end()};
}

struct Solver {
  const std::vector<float>& u;         // [n, n]
  const std::vector<float>& p;         // [n, n] of drift_steps(); empty without a drift
  const std::vector<double>& weights;  // [n] of the columns' errors in that order; empty: ranges are not weighted
  int64_t n;
  const std::vector<int64_t>& order;  // the column of the weight that is rounded as the c-th
  bool fresh_groups;                  // a group's grid is made when its first column's turn comes
  const GptqOptions& options;
  const std::string& name;
  QuantizedWeight& q;  // has the grids that are not fresh; they, codes and values are filled in

  // Rows [r0, r0 + rows), whose weights are w [rows, n], columns in that order; w is used up.
  void solve(int64_t r0, int64_t rows, float* w) const {
    const int64_t widest = std::min(options.blocksize, n);
    std::vector<float> errors(at(rows * widest)), block(at(widest));
    std::vector<float> weights_then(p.empty() ? 0 : errors.size());  // of the columns when they were rounded
    for (int64_t i1 = 0; i1 < n; i1 += options.blocksize) {
      const int64_t i2 = std::min(i1 + options.blocksize, n), count = i2 - i1;
      for (int64_t r = 0; r < rows; ++r)
        solve_block(r0 + r, w + r * n, i1, i2, block.data(), &errors[at(r * count)],
                    p.empty() ? nullptr : &weights_then[at(r * count)]);
      require(kernels().all_finite(errors.data(), rows * count), "%s: GPTQ met a number that is not finite", name);
      if (i2 == n) break;
      // The lazy update of all columns still to come.
      const auto update = [&](const std::vector<float>& by, const std::vector<float>& steps, float sign) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(rows), static_cast<int>(n - i2),
                    static_cast<int>(count), sign, by.data(), static_cast<int>(count), &steps[at(i1 * n + i2)],
                    static_cast<int>(n), 1.f, w + i2, static_cast<int>(n));
      };
      update(errors, u, -1);
      if (!p.empty()) update(weights_then, p, 1);
    }
  }

  // Columns i1 to i2 of the order, of row r: rounded one after the other, each error carried to the columns after it.
  // The work is done on a copy (`block`): a group's grid is made from w, which knows the corrections of
  // the blocks before this one, not those of this block. With groups shorter than a block that is an
  // accident of the official code, and changes the numbers.
  void solve_block(int64_t r, const float* w, int64_t i1, int64_t i2, float* block, float* errors,
                   float* weights_then) const {
    const float top = top_code(options.bits);
    const int64_t group = q.grid.group, groups = q.grid.scale.dim(1);
    float *scales = q.grid.scale.data + r * groups, *zeros = q.grid.zero.data + r * groups;
    std::copy(w + i1, w + i2, block);
    for (int64_t c = i1; c < i2; ++c) {
      const int64_t column = order[at(c)], g = q.grid.group_of(column);
      if (fresh_groups && c % group == 0) {
        const Step found =
            find_step(w + c, std::min(group, n - c), options, weights.empty() ? nullptr : &weights[at(c)]);
        scales[g] = found.scale;
        zeros[g] = found.zero;
      }
      const Step step{scales[g], zeros[g]};
      const float x = block[c - i1], code = encode(x, step, top), value = decode(code, step);
      q.codes[at(r * n + column)] = static_cast<uint8_t>(code);
      q.values[r * n + column] = value;
      const float* u_row = &u[at(c * n)];
      const float error = (x - value) / u_row[c];
      errors[c - i1] = error;
      for (int64_t j = c; j < i2; ++j) block[j - i1] -= error * u_row[j];
      if (!weights_then) continue;
      weights_then[c - i1] = x;
      for (int64_t j = c + 1; j < i2; ++j) block[j - i1] += x * p[at(c * n + j)];
    }
  }
};

}  // namespace

float stored(float scale, const WeightGrid& grid) {
  if (!grid.half) return scale;
  const uint16_t half = to_f16(scale);
  kernels().from_f16(&half, &scale, 1);
  return scale;
}

void require_options(const GptqOptions& o) {
  require_grid(o);
  require_usage(o.percdamp >= 0 && std::isfinite(o.percdamp), "the damping is a share >= 0, not %g", o.percdamp);
  require_usage(!o.weighted || o.mse == 0,
                "ranges weighted by their inputs have a norm of their own: no mse with them");
  require_usage(o.drift_share > 0 && o.drift_share <= 1,
                "GPTAQ carries on a share of the drift above 0 and up to 1, not %g", o.drift_share);
  require_usage(o.blocksize >= 1, "the block size is a number of columns, not %d", o.blocksize);
}

QuantizedWeight round_to_nearest(const Tensor& w, const WeightGrid& grid) {
  require_grid(grid);
  QuantizedWeight q = unfilled(w, grid);
  find_steps(w, grid, q.grid);
  const int64_t in = w.dim(1), groups = q.grid.scale.dim(1);
  const float top = top_code(grid.bits);
  for_row_chunks(w.dim(0), [&](int64_t r0, int64_t rows) {
    for (int64_t i = r0 * in; i < (r0 + rows) * in; ++i) {
      const int64_t g = i / in * groups + q.grid.group_of(i % in);
      const Step step{q.grid.scale[g], q.grid.zero[g]};
      const float code = encode(w[i], step, top);
      q.codes[at(i)] = static_cast<uint8_t>(code);
      q.values[i] = decode(code, step);
    }
  });
  return q;
}

QuantizedWeight gptq(const Tensor& w, std::vector<double> hessian, const GptqOptions& options, const std::string& name,
                     const Warn& warn, std::vector<double> drift) {
  const OneBlasThread one;
  require_options(options);
  QuantizedWeight q = unfilled(w, options);
  const int64_t n = w.dim(1), group = q.grid.group;
  require(hessian.size() == at(n * n), "%s: a Hessian of %d values for %d columns", name, hessian.size(), n);
  require(kernels().all_finite(w.data, w.size()), "%s: its weight is not finite (NaN or infinity)", name);
  require(drift.empty() || drift.size() == hessian.size(), "%s: a drift of %d values for %d columns", name,
          drift.size(), n);
  require(all_finite(hessian), "%s: its Hessian is not finite (NaN or infinity)", name);
  require(all_finite(drift), "%s: its drift is not finite (NaN or infinity)", name);

  const bool grouped = options.groupsize > 0, fresh_groups = grouped && !options.static_groups;
  std::vector<double> weights;  // of the columns' errors
  for (int64_t c = 0; options.weighted && c < n; ++c) weights.push_back(hessian[at(c * n + c)]);
  if (!grouped) find_steps(w, options, q.grid, weights);  // from the whole row, before dead columns are emptied
  Tensor rest = w.clone();
  for (int64_t c = 0; c < n; ++c) {
    double& d = hessian[at(c * n + c)];
    if (d != 0) continue;
    d = 1;  // an input that is always zero: its weights may be zero too
    for (int64_t r = 0; r < w.dim(0); ++r) rest[r * n + c] = 0;
  }
  if (grouped && options.static_groups) find_steps(rest, options, q.grid, weights);

  std::vector<int64_t> order(at(n));
  std::iota(order.begin(), order.end(), 0);
  if (options.act_order) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return hessian[at(a * n + a)] > hessian[at(b * n + b)]; });
    permute(order, rest, hessian);
    for (size_t c = 0; c < weights.size(); ++c) weights[c] = hessian[c * at(n) + c];
    if (!drift.empty()) {
      const std::vector<double> d0 = drift;
      for (int64_t i = 0; i < n * n; ++i) drift[at(i)] = d0[at(order[at(i / n)] * n + order[at(i % n)])];
    }
    if (fresh_groups) {
      q.grid.column_group.resize(at(n));
      for (int64_t c = 0; c < n; ++c) q.grid.column_group[at(order[at(c)])] = static_cast<int32_t>(c / group);
    }
  }
  const std::vector<float> u = factor_hessian(hessian, n, options.percdamp, name, warn, &q.damp);
  if (u.empty()) {
    warn(format("%s: its Hessian cannot be factored even with damping %g: rounded to nearest instead of GPTQ", name,
                q.damp));
    return round_to_nearest(w, options);
  }
  const std::vector<float> p = drift.empty() ? std::vector<float>() : drift_steps(drift, u, n, options.drift_share);
  const Solver solver{u, p, weights, n, order, fresh_groups, options, name, q};
  for_row_chunks(w.dim(0), [&](int64_t r0, int64_t rows) { solver.solve(r0, rows, rest.data + r0 * n); });
  return q;
}

}  // namespace bcq
