#include "quant/search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/check.h"
#include "engine/kernels.h"
#include "engine/ops.h"
#include "engine/parallel.h"

namespace bcq {
namespace {

constexpr int64_t kSlices = 4;       // parts of the samples that a candidate is cut into: work for many cores
constexpr int64_t kChunk = 1 << 19;  // output values that are computed before they are scored
// Scores that differ by less, relative to their size, tie. The cosine does not see the scale of an
// operand, so neighbouring steps that give the same codes are equally good; rounding must not choose.
constexpr double kTie = 1e-9;
constexpr double kCosineEps = 1e-8;  // torch's: norms below count as this

// The output as the units see it.
struct Layout {
  int64_t samples = 1, heads = 1, rows = 1, columns = 1;
  int64_t parts = 1;  // ranges of columns; more than one: these are the units
  int64_t units = 1;
  // One unit a column: [rows, columns] is turned into [columns, rows], each channel a head of one row.
  bool transposed = false;

  int64_t sample_size() const { return heads * rows * columns; }
};

Layout layout_of(const Site& site, const Tensor& y, int64_t units) {
  Layout l;
  l.samples = y.dim(0);
  l.units = units;
  require(l.samples >= 1 && y.size() > 0, "%s: no outputs to compare", site.name.c_str());
  if (!site.is_linear()) {
    l.heads = y.dim(1), l.rows = y.dim(2), l.columns = y.dim(3);
    require(units == 1 || units == l.heads, "%s: %lld units for %lld heads", site.name.c_str(),
            static_cast<long long>(units), static_cast<long long>(l.heads));
    return l;
  }
  l.columns = y.dim(-1);
  l.rows = y.rows() / l.samples;
  require(l.columns % units == 0, "%s: %lld units for %lld columns", site.name.c_str(), static_cast<long long>(units),
          static_cast<long long>(l.columns));
  l.parts = units;
  if (units > 1 && units == l.columns) {
    l.transposed = true;
    l.heads = units, l.columns = l.rows, l.rows = l.parts = 1;
  }
  return l;
}

// f(unit, begin, n) for each run of consecutive values of a sample that belong to one unit.
// by_row: a run is a vector of features; otherwise runs are as long as possible.
template <class F>
void for_runs(const Layout& l, bool by_row, F f) {
  const bool whole_heads = !by_row && l.parts == 1;
  const int64_t n = whole_heads ? l.rows * l.columns : l.columns / l.parts;
  const int64_t runs = l.sample_size() / n, runs_of_head = runs / l.heads;
  for (int64_t i = 0; i < runs; ++i) f(l.units == 1 ? 0 : l.parts > 1 ? i % l.parts : i / runs_of_head, i * n, n);
}

// [S, R, C] -> [S, C, R], when the layout asks for it.
Tensor arrange(const Layout& l, const Tensor& y) {
  if (!l.transposed || y.empty()) return y;
  const int64_t C = l.heads, R = l.columns;
  Tensor t = Tensor::uninitialized(y.shape);
  for (int64_t s = 0; s < y.dim(0); ++s)
    for (int64_t r = 0; r < R; ++r)
      for (int64_t c = 0; c < C; ++c) t[(s * C + c) * R + r] = y[(s * R + r) * C + c];
  return t;
}

// g2 with 1s where a unit's weights would leave all candidates alike or undefined. (Gradients may
// vanish: then every candidate scores 0, and the first one, a hundredth of a sensible step, would win.)
Tensor usable_weights(const Layout& l, const Tensor& g2) {
  if (g2.empty()) return g2;
  std::vector<double> sums(static_cast<size_t>(l.units), 0.0);
  for (int64_t s = 0; s < l.samples; ++s)
    for_runs(l, false, [&](int64_t unit, int64_t begin, int64_t n) {
      const float* w = g2.data + s * l.sample_size() + begin;
      for (int64_t i = 0; i < n; ++i) sums[static_cast<size_t>(unit)] += w[i];
    });
  const auto usable = [&](int64_t unit) {
    const double sum = sums[static_cast<size_t>(unit)];
    return sum > 0 && std::isfinite(sum);
  };
  bool all = true;
  for (int64_t unit = 0; unit < l.units; ++unit) all = all && usable(unit);
  if (all) return g2;
  Tensor w = g2.clone();
  for (int64_t s = 0; s < l.samples; ++s)
    for_runs(l, false, [&](int64_t unit, int64_t begin, int64_t n) {
      if (!usable(unit)) std::fill_n(w.data + s * l.sample_size() + begin, n, 1.f);
    });
  return w;
}

// Scores quantized outputs against the float ones.
struct Scorer {
  Layout layout;
  Metric metric;
  Tensor y, w;  // arranged as the layout says; w empty: 1s

  // Add the similarity of out = samples [first, first + out.dim(0)) to sums[unit].
  void add(const Tensor& out, int64_t first, double* sums) const {
    const Kernels& k = kernels();
    const Tensor q_all = arrange(layout, out);
    const int64_t size = layout.sample_size();
    for (int64_t s = 0; s < out.dim(0); ++s) {
      const float *f = y.data + (first + s) * size, *q = q_all.data + s * size;
      const float* weights = w.empty() ? nullptr : w.data + (first + s) * size;
      for_runs(layout, metric == Metric::Cosine, [&](int64_t unit, int64_t at, int64_t n) {
        if (metric == Metric::Cosine) {
          const double f_norm = std::sqrt(k.dot(f + at, f + at, n)), q_norm = std::sqrt(k.dot(q + at, q + at, n));
          sums[unit] += k.dot(f + at, q + at, n) / (std::max(f_norm, kCosineEps) * std::max(q_norm, kCosineEps));
        } else {
          sums[unit] -= k.weighted_squared_error(f + at, q + at, weights ? weights + at : nullptr, n);
        }
      });
    }
  }
};

// The rows of the output that any weight reaches; the last block of a ViT hands only its class token on.
std::vector<int64_t> weighted_rows(const Layout& l, const Tensor& w) {
  std::vector<int64_t> rows;
  for (int64_t r = 0; r < l.rows; ++r) {
    bool reached = false;
    for (int64_t i = 0; i < l.samples * l.heads && !reached; ++i)
      reached = kernels().max_abs(w.data + (i * l.rows + r) * l.columns, l.columns) > 0;
    if (reached) rows.push_back(r);
  }
  return rows;
}

// x [..., R, C] -> [..., rows.size(), C]
Tensor take_rows(const Tensor& x, const std::vector<int64_t>& rows) {
  const int64_t R = x.dim(-2), C = x.dim(-1), kept = static_cast<int64_t>(rows.size());
  Shape shape = x.shape;
  shape[shape.size() - 2] = kept;
  Tensor y = Tensor::uninitialized(shape);
  for (int64_t i = 0; i < y.rows(); ++i)
    std::memcpy(y.data + i * C, x.data + (i / kept * R + rows[static_cast<size_t>(i % kept)]) * C,
                static_cast<size_t>(C) * sizeof(float));
  return y;
}

// The operands of a search and what their products are compared with.
struct Problem {
  const Site& site;
  Side side;
  Tensor left, right;  // the searched one as it is in float, the other one as given
  Scorer scorer;

  // Sums of similarities of samples [first, last) with this grid for the searched operand.
  void score(const Grid& grid, int64_t first, int64_t last, double* sums) const {
    const bool linear_site = site.is_linear();
    const Tensor weight = linear_site && side == Side::Right ? fake_quantize(grid, right) : right;
    const int64_t chunk = std::max<int64_t>(1, kChunk / scorer.layout.sample_size());
    for (int64_t s = first; s < last; s += chunk) {
      const int64_t end = std::min(last, s + chunk);
      Tensor a = left.slice(s, end), b = linear_site ? weight : right.slice(s, end);
      if (side == Side::Left)
        a = fake_quantize(grid, a);
      else if (!linear_site)
        b = fake_quantize(grid, b);
      scorer.add(linear_site ? linear(nullptr, a, b, site.bias) : matmul(nullptr, a, b, site.role == Role::QK), s,
                 sums);
    }
  }
};

Problem make_problem(const Site& site, const SiteData& data, Metric metric, Side side, const Tensor& other,
                     int64_t units) {
  const Tensor& right = site.is_linear() ? site.weight : data.b;
  Layout layout = layout_of(site, data.y, units);
  Problem p{site, side, side == Side::Left ? data.a : other, side == Side::Left ? other : right, {}};
  Tensor y = arrange(layout, data.y), w;
  if (metric == Metric::Hessian) w = usable_weights(layout, arrange(layout, data.g2));
  if (!w.empty() && !layout.transposed && layout.rows > 1) {
    const std::vector<int64_t> rows = weighted_rows(layout, w);
    if (static_cast<int64_t>(rows.size()) < layout.rows) {
      const Shape seen = {layout.samples, layout.heads, layout.rows, layout.columns};
      y = take_rows(y.reshaped(seen), rows), w = take_rows(w.reshaped(seen), rows);
      p.left = take_rows(p.left.reshaped({layout.samples, layout.heads, layout.rows, p.left.dim(-1)}), rows);
      layout.rows = static_cast<int64_t>(rows.size());
    }
  }
  p.scorer = {layout, metric, y, w};
  return p;
}

// The first of the highest scores; when all are alike, the multiplier closest to 1.
int best_candidate(const std::vector<double>& scores, const std::vector<float>& multipliers) {
  const double top = *std::max_element(scores.begin(), scores.end());
  const double tied = top - kTie * std::fabs(top);
  size_t first = scores.size(), nearest = 0;
  bool all = true;
  for (size_t i = 0; i < scores.size(); ++i) {
    const bool ties = scores[i] >= tied || scores[i] == top;  // top may be infinite
    all = all && ties;
    if (ties && first == scores.size()) first = i;
    if (std::fabs(multipliers[i] - 1) < std::fabs(multipliers[nearest] - 1)) nearest = i;
  }
  return static_cast<int>(all ? nearest : first);
}

}  // namespace

std::vector<int> search(const Site& site, const SiteData& data, Metric metric, Side side, const Tensor& other,
                        const Candidates& candidates) {
  require(!candidates.multipliers.empty() && candidates.units >= 1, "%s: nothing to search", site.name.c_str());
  const Problem problem = make_problem(site, data, metric, side, other, candidates.units);
  const int64_t n = static_cast<int64_t>(candidates.multipliers.size()), units = candidates.units;
  const int64_t samples = problem.scorer.layout.samples, slices = std::min(kSlices, samples);

  std::vector<double> sums(static_cast<size_t>(n * slices * units), 0.0);
  parallel_for(n * slices, [&](int64_t item) {
    const int64_t slice = item % slices;
    const std::vector<float> same(static_cast<size_t>(units),
                                  candidates.multipliers[static_cast<size_t>(item / slices)]);
    problem.score(candidates.grid(same), samples * slice / slices, samples * (slice + 1) / slices,
                  &sums[static_cast<size_t>(item * units)]);
  });

  std::vector<int> best;
  for (int64_t unit = 0; unit < units; ++unit) {
    std::vector<double> scores(static_cast<size_t>(n), 0.0);
    for (int64_t item = 0; item < n * slices; ++item)
      scores[static_cast<size_t>(item / slices)] += sums[static_cast<size_t>(item * units + unit)];
    for (double& score : scores)  // an output that overflowed is the worst there is
      if (std::isnan(score)) score = -std::numeric_limits<double>::infinity();
    best.push_back(best_candidate(scores, candidates.multipliers));
  }
  return best;
}

}  // namespace bcq
