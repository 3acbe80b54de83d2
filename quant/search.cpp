#include "quant/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/ops.h"

namespace bcq {
namespace {

constexpr int64_t kSlices = 16;      // parts of the samples after which hopeless candidates are given up
constexpr int64_t kChunk = 1 << 20;  // output values that are computed before they are scored
constexpr double kCosineEps = 1e-8;  // torch's: norms below count as this

// The output as a search sees it: of one unit, or of one unit a column.
struct Layout {
  int64_t samples = 1, heads = 1, rows = 1, columns = 1;
  // One unit a column: [rows, columns] is turned into [columns, rows], each channel a head of one row.
  bool transposed = false;

  int64_t sample_size() const { return heads * rows * columns; }
  int64_t units() const { return transposed ? heads : 1; }
};

Layout layout_of(const Layer& layer, const Tensor& y, int64_t units) {
  Layout l;
  l.samples = y.dim(0);
  require(l.samples >= 1 && y.size() > 0, "%s: no outputs to compare", layer.name);
  if (!layer.is_linear()) {
    l.heads = y.dim(1), l.rows = y.dim(2), l.columns = y.dim(3);
    return l;
  }
  l.columns = y.dim(-1);
  l.rows = y.rows() / l.samples;
  if (units > 1) {
    l.transposed = true;
    l.heads = units, l.columns = l.rows, l.rows = 1;
  }
  return l;
}

// f(unit, begin, n) for each run of consecutive values of a sample that belong to one unit.
// by_row: a run is a vector of features; otherwise runs are as long as possible.
template <class F>
void for_runs(const Layout& l, bool by_row, F f) {
  const int64_t n = by_row || l.transposed ? l.columns : l.sample_size();
  for (int64_t i = 0; i < l.sample_size() / n; ++i) f(l.transposed ? i : 0, i * n, n);
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
  std::vector<double> sums(static_cast<size_t>(l.units()), 0.0);
  for (int64_t s = 0; s < l.samples; ++s)
    for_runs(l, false, [&](int64_t unit, int64_t begin, int64_t n) {
      const float* w = g2.data + s * l.sample_size() + begin;
      for (int64_t i = 0; i < n; ++i) sums[at(unit)] += w[i];
    });
  const auto usable = [&](int64_t unit) {
    const double sum = sums[at(unit)];
    return sum > 0 && std::isfinite(sum);
  };
  bool all = true;
  for (int64_t unit = 0; unit < l.units(); ++unit) all = all && usable(unit);
  if (all) return g2;
  Tensor w = g2.clone();
  for (int64_t s = 0; s < l.samples; ++s)
    for_runs(l, false, [&](int64_t unit, int64_t begin, int64_t n) {
      if (!usable(unit)) std::fill_n(w.data + s * l.sample_size() + begin, n, 1.f);
    });
  return w;
}

// How far quantized outputs are from the float ones: minus the similarity, shifted for the cosine so
// that every sample adds something that is not negative.
struct Distance {
  Layout layout;
  Metric metric;
  Tensor y, w;                // arranged as the layout says; w empty: 1s
  std::vector<double> norms;  // of the runs of y, for the cosine

  Distance() = default;
  Distance(const Layout& l, Metric m, const Tensor& outputs, const Tensor& weights)
      : layout(l), metric(m), y(outputs), w(weights) {
    for (int64_t s = 0; s < l.samples && m == Metric::Cosine; ++s)
      for_runs(l, true,
               [&](int64_t, int64_t at, int64_t n) { norms.push_back(norm(y.data + s * l.sample_size() + at, n)); });
  }
  static double norm(const float* x, int64_t n) { return std::max(std::sqrt(kernels().dot(x, x, n)), kCosineEps); }

  // Add the error of out = samples [first, first + out.dim(0)) to errors[unit].
  void add(const Tensor& out, int64_t first, double* errors) const {
    const Kernels& k = kernels();
    const Tensor q_all = arrange(layout, out);
    const int64_t size = layout.sample_size();
    for (int64_t s = 0; s < out.dim(0); ++s) {
      const float *f = y.data + (first + s) * size, *q = q_all.data + s * size;
      const float* weights = w.empty() ? nullptr : w.data + (first + s) * size;
      const double* f_norm = norms.data() + (first + s) * static_cast<int64_t>(norms.size()) / layout.samples;
      for_runs(layout, metric == Metric::Cosine, [&](int64_t unit, int64_t at, int64_t n) {
        if (metric == Metric::Cosine) {
          errors[unit] += std::max(0.0, 1 - k.dot(f + at, q + at, n) / (*f_norm++ * norm(q + at, n)));
        } else {
          errors[unit] += k.weighted_squared_error(f + at, q + at, weights ? weights + at : nullptr, n);
        }
      });
    }
  }
};

// The parts of [S, ...] in the order of their weight, heaviest first, without those of none: candidates are given up
// by what they have lost so far, so what counts most is measured first. (Gradients may leave most images and tokens
// nearly without weight, and the last block of a ViT hands only its class token on.)
std::vector<int64_t> by_weight(const Tensor& w, int64_t samples) {
  const int64_t size = w.size() / samples;
  std::vector<double> weight;
  std::vector<int64_t> order;
  for (int64_t s = 0; s < samples; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += w[s * size + i];
    weight.push_back(sum);
    if (!(sum == 0)) order.push_back(s);
  }
  const auto heavier = [&](int64_t a, int64_t b) { return weight[at(a)] > weight[at(b)]; };
  std::stable_sort(order.begin(), order.end(), heavier);
  return order;
}

// The rows of the output that any weight reaches.
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

// The operands of a search and what their products are compared with.
struct Problem {
  Layer layer;   // the operand that stands is on its grid
  Side side;     // of the one that is searched
  Tensor left;   // [S, ...] in float
  Tensor right;  // of a product, in float
  Distance distance;

  // The layer with this grid for the searched operand, in integers where that goes. `other`, if any, is a candidate
  // made before: the codes of a weight that stands are shared.
  Layer candidate(const Grid& grid, const Int8Layer* other) const {
    Layer c = layer;
    Quantized q = *layer.quantized;
    (side == Side::Left ? q.left : q.right) = grid;
    if (layer.is_linear() && side == Side::Right) q.weight = fake_quantize(grid, layer.weight.values());
    c.quantize(std::move(q));
    c.prepare_int8(side == Side::Left ? other : nullptr);
    return c;
  }

  // Add the errors of samples [first, last) with this candidate.
  void measure(const Layer& candidate, int64_t first, int64_t last, double* errors) const {
    const int64_t chunk = std::max<int64_t>(1, kChunk / distance.layout.sample_size());
    for (int64_t s = first; s < last; s += chunk) {
      const int64_t end = std::min(last, s + chunk);
      Tensor a = left.slice(s, end);
      // Rows that are samples of their own are still one product: linear() would multiply them one by one.
      if (layer.is_linear() && distance.layout.rows == 1) a = a.reshaped({1, a.rows(), a.dim(-1)});
      const Tensor b = layer.is_linear() ? Tensor{} : right.slice(s, end);
      const Tensor y = candidate.product({Precision::Integer}, a, b);
      distance.add(y.reshaped({end - s, distance.layout.sample_size()}), s, errors);
    }
  }
};

Problem make_problem(const Layer& layer, const Operands& data, Metric metric, Side side, const Grid& other,
                     int64_t units) {
  Layout layout = layout_of(layer, data.y, units);
  Problem p{{}, side, data.a, data.b, {}};
  p.layer.name = layer.name;
  p.layer.role = layer.role;
  p.layer.weight = layer.is_linear() ? Weight(layer.weight.values()) : Weight{};
  p.layer.bias.loaded = layer.bias.loaded;
  Quantized q{};
  (side == Side::Left ? q.right : q.left) = other;
  if (layer.is_linear() && side == Side::Left) q.weight = fake_quantize(other, p.layer.weight.values());
  p.layer.quantize(std::move(q));
  Tensor y = arrange(layout, data.y), w;
  if (metric == Metric::Hessian) w = usable_weights(layout, arrange(layout, data.g2));
  if (!w.empty() && !layout.transposed) {
    if (layer.is_linear()) {  // rows are products of their own, whichever sample they are of
      const int64_t rows = layout.samples * layout.rows;
      y = y.reshaped({rows, layout.columns}), w = w.reshaped({rows, layout.columns});
      p.left = p.left.reshaped({rows, p.left.dim(-1)});
      layout.samples = rows, layout.rows = 1;
    } else if (const auto rows = weighted_rows(layout, w); static_cast<int64_t>(rows.size()) < layout.rows) {
      y = take(y, 2, rows), w = take(w, 2, rows), p.left = take(p.left, 2, rows);  // [S, H, rows, .]
      layout.rows = static_cast<int64_t>(rows.size());
    }
    const std::vector<int64_t> order = by_weight(w, layout.samples);
    y = take(y, 0, order), w = take(w, 0, order), p.left = take(p.left, 0, order);
    if (!layer.is_linear()) p.right = take(p.right, 0, order);
    layout.samples = static_cast<int64_t>(order.size());
  }
  p.distance = {layout, metric, y, w};
  return p;
}

// Measures candidates slice by slice. Errors only grow, so a candidate that has already lost to a
// complete one in every unit needs no further samples; what is chosen is as if all had been measured.
class Race {
 public:
  Race(const Problem& problem, const Candidates& candidates)
      : problem_(problem),
        candidates_(candidates),
        units_(static_cast<size_t>(candidates.units)),
        slices_(std::min(kSlices, problem.distance.layout.samples)),
        errors_(candidates.multipliers.size() * units_, 0.0),
        bound_(units_, std::numeric_limits<double>::infinity()),
        layers_(candidates.multipliers.size()) {
    layers_[0] = problem.candidate(grid(0), nullptr);
    first_ = layers_[0]->quantized->int8;
  }

  std::vector<int> run() {
    std::vector<size_t> open(candidates_.multipliers.size()), leaders;
    for (size_t i = 0; i < open.size(); ++i) open[i] = i;
    add_slice(open, 0);
    for (size_t unit = 0; unit < units_; ++unit) leaders.push_back(best(unit));
    std::sort(leaders.begin(), leaders.end());
    leaders.erase(std::unique(leaders.begin(), leaders.end()), leaders.end());
    for (int64_t slice = 1; slice < slices_; ++slice) add_slice(leaders, slice);
    for (const size_t i : leaders)
      for (size_t unit = 0; unit < units_; ++unit) bound_[unit] = std::min(bound_[unit], error(i, unit));

    std::erase_if(open, [&](size_t i) { return std::binary_search(leaders.begin(), leaders.end(), i); });
    for (int64_t slice = 1; slice < slices_; ++slice) {
      std::erase_if(open, [&](size_t i) {
        const bool lost = has_lost(i);
        if (lost) layers_[i].reset();
        return lost;
      });
      add_slice(open, slice);
    }
    std::vector<int> chosen;
    for (size_t unit = 0; unit < units_; ++unit)
      chosen.push_back(static_cast<int>(all_alike(unit) ? nearest() : best(unit)));
    return chosen;
  }

 private:
  double error(size_t candidate, size_t unit) const { return errors_[candidate * units_ + unit]; }

  void add_slice(const std::vector<size_t>& who, int64_t slice) {
    const int64_t samples = problem_.distance.layout.samples, n = static_cast<int64_t>(who.size());
    const auto add = [&](int64_t i) {
      const size_t at = who[static_cast<size_t>(i)];
      const Layer layer = layers_[at] ? *layers_[at] : problem_.candidate(grid(at), first_.get());
      if (layer.int8()) layers_[at] = layer;  // its codes are small; floats are made anew
      double* errors = &errors_[at * units_];
      problem_.measure(layer, samples * slice / slices_, samples * (slice + 1) / slices_, errors);
      for (size_t unit = 0; unit < units_; ++unit)  // an output that overflowed is the worst there is
        if (std::isnan(errors[unit])) errors[unit] = std::numeric_limits<double>::infinity();
    };
    // Few candidates leave the threads to the products inside.
    if (n >= threads())
      parallel_for(n, add);
    else
      for (int64_t i = 0; i < n; ++i) add(i);
  }
  Grid grid(size_t candidate) const {
    return candidates_.grid(std::vector<float>(units_, candidates_.multipliers[candidate]));
  }

  bool has_lost(size_t candidate) const {
    for (size_t unit = 0; unit < units_; ++unit)
      if (!(error(candidate, unit) > bound_[unit])) return false;
    return true;
  }

  size_t best(size_t unit) const {  // the first of the smallest errors
    size_t at = 0;
    for (size_t i = 1; i < candidates_.multipliers.size(); ++i)
      if (error(i, unit) < error(at, unit)) at = i;
    return at;
  }
  bool all_alike(size_t unit) const {
    for (size_t i = 1; i < candidates_.multipliers.size(); ++i)
      if (error(i, unit) != error(0, unit)) return false;
    return true;
  }
  size_t nearest() const {  // the multiplier closest to 1
    size_t at = 0;
    for (size_t i = 1; i < candidates_.multipliers.size(); ++i)
      if (std::fabs(candidates_.multipliers[i] - 1) < std::fabs(candidates_.multipliers[at] - 1)) at = i;
    return at;
  }

  const Problem& problem_;
  const Candidates& candidates_;
  size_t units_;
  int64_t slices_;
  std::vector<double> errors_;                // [candidate][unit], over the slices measured so far
  std::vector<double> bound_;                 // of each unit: the smallest error over all slices known
  std::vector<std::optional<Layer>> layers_;  // candidates that are kept ready
  std::shared_ptr<const Int8Layer> first_;
};

// Part `unit` of x along an axis that the units share: [..., n, ...] -> [..., n / units, ...].
Tensor part_of(const Tensor& x, int axis, int64_t unit, int64_t units) {
  if (x.empty()) return x;
  require(x.dim(axis) % units == 0, "%d units for dimension %d of %s", units, axis, to_string(x.shape));
  Shape shape = x.shape;
  shape[at(axis)] /= units;
  const int64_t outer = numel({x.shape.begin(), x.shape.begin() + axis});
  return gather_rows(nullptr, x.reshaped({outer, units, x.size() / outer / units}), {unit}, shape);
}

}  // namespace

std::vector<int> search(const Layer& layer, const Operands& data, Metric metric, Side side, const Grid& other,
                        const Candidates& candidates) {
  const int64_t units = candidates.units;
  require(!candidates.multipliers.empty() && units >= 1, "%s: nothing to search", layer.name);
  if (units == 1 || (layer.is_linear() && units == layer.weight.dim(0)))
    return Race(make_problem(layer, data, metric, side, other, units), candidates).run();

  // Nothing but its own part of the output depends on a unit, so each is a search of its own, which orders samples
  // and gives up candidates by that part alone: on ViT-B's query, key and value two thirds of the time of all at once.
  require(!layer.is_linear() || side == Side::Right, "%s: its input has one unit", layer.name);
  std::vector<int> best;
  for (int64_t unit = 0; unit < units; ++unit) {
    const auto part = [&](const Tensor& x, int axis) { return part_of(x, axis, unit, units); };
    Layer own;
    own.name = layer.name;
    own.role = layer.role;
    Operands seen = data;
    if (layer.is_linear()) {
      own.weight = part(layer.weight.values(), 0);
      own.bias.loaded = part(layer.bias.loaded, 0);
    } else {
      seen.a = part(data.a, 1), seen.b = part(data.b, 1);
    }
    const int axis = layer.is_linear() ? data.y.rank() - 1 : 1;
    seen.y = part(data.y, axis), seen.g2 = part(data.g2, axis);
    const Candidates of_unit{candidates.multipliers, 1, [&](const std::vector<float>& c) {
                               return candidates.grid(std::vector<float>(static_cast<size_t>(units), c[0])).unit(unit);
                             }};
    best.push_back(search(own, seen, metric, side, other.unit(unit), of_unit)[0]);
  }
  return best;
}

}  // namespace bcq
