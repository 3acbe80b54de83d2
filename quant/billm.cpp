#include "quant/billm.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/half.h"
#include "engine/core/parallel.h"
#include "engine/grid/binary.h"
#include "engine/kernels/kernels.h"
#include "quant/linalg.h"
#include "quant/refine.h"

namespace bcq {
namespace {

enum Part : uint8_t { kSmall, kLarge, kSalient };
constexpr int kSplits = 81;  // quantiles 0.1 to 0.9

// A row's values as one or two sums mean ± scale.
struct Level {
  double mean = 0, scale = 0;
  bool half = false;  // float16, and never the mean itself

  bool adds(double x) const { return x >= mean; }
  double of(double x) const { return mean + (adds(x) ? (half || x != mean ? scale : 0) : -scale); }
  void round_to_half() {
    for (double* value : {&mean, &scale}) {
      const uint16_t stored = to_f16(static_cast<float>(*value));
      float rounded;
      kernels().from_f16(&stored, &rounded, 1);
      *value = rounded;
    }
    half = true;
  }
};

// Of n values x(i).
template <class Values>
Level level_of(size_t n, Values x) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += x(i);
  Level level;
  if (n == 0) return level;
  const auto count = static_cast<double>(n);
  level.mean = sum / count;
  for (size_t i = 0; i < n; ++i) level.scale += std::abs(x(i) - level.mean) / count;
  return level;
}

// Σ (x - its levels)² of values of a row on two sums of levels, the second of what the first leaves.
double squared_rest(const std::vector<float>& x) {
  std::vector<float> sum(x.size());
  const auto rest = [&](size_t i) { return static_cast<double>(x[i]) - sum[i]; };
  for (int k = 0; k < 2; ++k) {
    const Level level = level_of(x.size(), rest);
    for (size_t i = 0; i < x.size(); ++i) sum[i] += static_cast<float>(level.of(rest(i)));
  }
  double squares = 0;
  for (size_t i = 0; i < x.size(); ++i) squares += rest(i) * rest(i);
  return squares;
}

// What is left of x [rows, n] when the values of each row are binarized twice over in two groups, those of columns for
// which in_first(c) holds and the others.
template <class InFirst>
double squared_rest(const Tensor& x, InFirst in_first) {
  const int64_t n = x.dim(1);
  double sum = 0;
  std::vector<float> first, second;
  for (int64_t r = 0; r < x.dim(0); ++r) {
    first.clear(), second.clear();
    for (int64_t c = 0; c < n; ++c) (in_first(c) ? first : second).push_back(x[r * n + c]);
    sum += squared_rest(first) + squared_rest(second);
  }
  return sum;
}

// Some values of a row in ascending order, with the sums of the first i of them and of their squares. What is left of
// the values when they are binarized in two groups, those of size t or more and the others, is computed from a few of
// these sums, whatever t is.
class SortedRow {
 public:
  explicit SortedRow(std::vector<float> values) : x_(std::move(values)), sums_{0}, squares_{0} {
    std::sort(x_.begin(), x_.end());
    for (const double v : x_) {
      sums_.push_back(sums_.back() + v);
      squares_.push_back(squares_.back() + v * v);
    }
  }
  double squared_rest(float t) const {
    const size_t n = x_.size(), low = after(-t), high = std::max(low, before(t));
    return squared_rest(0, low, high, n) + squared_rest(low, high, n, n);
  }

 private:
  size_t before(double v) const { return at(std::lower_bound(x_.begin(), x_.end(), v) - x_.begin()); }
  size_t after(double v) const { return at(std::upper_bound(x_.begin(), x_.end(), v) - x_.begin()); }

  // Of the group that is the values a to b and c to d.
  double squared_rest(size_t a, size_t b, size_t c, size_t d) const {
    struct Some {
      double n, sum, squares;
      double rest(float level) const { return squares - 2. * level * sum + n * level * level; }
    };
    const auto some = [&](size_t from, size_t to) {  // of the group, what lies there
      Some s{};
      for (const auto& [begin, end] : {std::pair{a, b}, {c, d}}) {
        const size_t first = std::clamp(begin, from, to), last = std::clamp(end, from, to);
        s.n += static_cast<double>(last - first);
        s.sum += sums_[last] - sums_[first];
        s.squares += squares_[last] - squares_[first];
      }
      return s;
    };
    const Some all = some(0, x_.size());
    if (all.n == 0) return 0;
    const double mean = all.sum / all.n;
    const Some less = some(0, before(mean)), more = some(after(mean), x_.size());
    const double scale = (more.sum - more.n * mean + less.n * mean - less.sum) / all.n;
    return less.rest(static_cast<float>(mean - scale)) + more.rest(static_cast<float>(mean + scale));
  }

  std::vector<float> x_;
  std::vector<double> sums_, squares_;
};

// Calls error(k) for all k in parallel; the first of the least.
template <class Error>
int64_t best_of(int64_t candidates, Error error) {
  std::vector<double> errors(at(candidates));
  parallel_for(candidates, [&](int64_t k) { errors[at(k)] = error(k); });
  return std::min_element(errors.begin(), errors.end()) - errors.begin();
}

// Which part each value of a block belongs to, by its salience s [out, n]. As in the published code, splits are chosen
// by how well the salience itself is binarized, and quantiles are of all values, with 0 for salient ones.
std::vector<uint8_t> parts_of(const Tensor& s, int most, BillmBlock& chosen) {
  const int64_t n = s.dim(1);
  std::vector<double> of_column(at(n));
  for (int64_t i = 0; i < s.size(); ++i) of_column[at(i % n)] += std::abs(s[i]);
  std::vector<int64_t> order(at(n)), place(at(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return of_column[at(a)] > of_column[at(b)]; });
  for (int64_t k = 0; k < n; ++k) place[at(order[at(k)])] = k;
  chosen.salient_columns = 1 + best_of(std::min<int64_t>(most, n) - 1, [&](int64_t k) {
                             return squared_rest(s, [&](int64_t c) { return place[at(c)] <= k; });
                           });
  const auto is_salient = [&](int64_t c) { return place[at(c)] < chosen.salient_columns; };
  std::vector<float> sizes(at(s.size()));
  for (int64_t i = 0; i < s.size(); ++i) sizes[at(i)] = is_salient(i % n) ? 0.f : std::abs(s[i]);
  std::vector<float> sorted = sizes;
  std::sort(sorted.begin(), sorted.end());
  const auto quantile = [&](int64_t k) {
    const double rank = (0.1 + 0.8 * static_cast<double>(k) / (kSplits - 1)) * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(rank);
    const double high = sorted[std::min(below + 1, sorted.size() - 1)];
    return static_cast<float>(sorted[below] + (high - sorted[below]) * (rank - static_cast<double>(below)));
  };
  std::vector<SortedRow> rows;
  for (int64_t r = 0; r < s.dim(0); ++r) {
    std::vector<float> others;
    for (int64_t c = 0; c < n; ++c)
      if (!is_salient(c)) others.push_back(s[r * n + c]);
    rows.emplace_back(std::move(others));
  }
  chosen.split = quantile(best_of(kSplits, [&](int64_t k) {
    const float t = quantile(k);
    double sum = 0;
    for (const SortedRow& row : rows) sum += row.squared_rest(t);
    return sum;
  }));
  std::vector<uint8_t> parts(sizes.size());
  for (int64_t i = 0; i < s.size(); ++i)
    parts[at(i)] = is_salient(i % n) ? kSalient : sizes[at(i)] >= chosen.split ? kLarge : kSmall;
  return parts;
}

// The levels of a row of a block, and its values on them.
struct RowLevels {
  Level levels[4];  // of parts; and of what is left of salient values
  static constexpr int kRest = 3;

  RowLevels(const float* w, const uint8_t* parts, int64_t n, bool half) {
    std::vector<float> of_part;
    for (const Part part : {kSmall, kLarge, kSalient}) {
      of_part.clear();
      for (int64_t i = 0; i < n; ++i)
        if (parts[i] == part) of_part.push_back(w[i]);
      levels[part] = level_of(of_part.size(), [&](size_t i) { return static_cast<double>(of_part[i]); });
      if (half) levels[part].round_to_half();
    }
    levels[kRest] =  // of the salient ones, the last of these parts
        level_of(of_part.size(), [&](size_t i) { return of_part[i] - levels[kSalient].of(of_part[i]); });
    if (half) levels[kRest].round_to_half();
  }

  // A value, and as bits whether its scale is added, and whether it is large or its second scale is added.
  struct Rounded {
    float value;
    bool sign, part;
  };
  Rounded as_binarized(double w, uint8_t part) const {
    const Level &one = levels[part], &rest = levels[kRest];
    const double first = one.of(w);
    if (part != kSalient) return {static_cast<float>(first), one.adds(w), part == kLarge};
    return {static_cast<float>(first + rest.of(w - first)), one.adds(w), rest.adds(w - first)};
  }
  Rounded nearest(double w, uint8_t part) const {
    const Level &one = levels[part], &rest = levels[kRest];
    Rounded best{};
    double least = std::numeric_limits<double>::infinity();
    for (const bool sign : {false, true})
      for (const bool second : {false, true}) {
        double level = one.mean + (sign ? one.scale : -one.scale);
        if (part == kSalient) level += rest.mean + (second ? rest.scale : -rest.scale);
        if (std::abs(w - level) >= least) continue;
        least = std::abs(w - level);
        best = {static_cast<float>(level), sign, part == kSalient ? second : part == kLarge};
      }
    return best;
  }
};

// Columns [a, a + n) of row r, w and their parts: its values on their levels to q, and the errors, over pivots, that go
// to columns after.
void solve_row(const float* w, const uint8_t* parts, const float* u, int64_t r, int64_t a, int64_t n,
               const BillmOptions& options, BinarizedWeight& q, float* errors) {
  const RowLevels row(w, parts, n, options.half);
  const int64_t columns = q.values.dim(1);
  float* const values = q.values.data + r * columns + a;
  for (int64_t c = 0; c < n; ++c) {
    double x = w[c];
    for (int64_t k = 0; k < c && options.inside != BillmInside::Official; ++k)
      x -= static_cast<double>(errors[k]) * u[(a + k) * columns + a + c];
    const RowLevels::Rounded rounded =
        options.inside == BillmInside::Sequential ? row.nearest(x, parts[c]) : row.as_binarized(w[c], parts[c]);
    values[c] = rounded.value;
    errors[c] = static_cast<float>((x - values[c]) / u[(a + c) * columns + a + c]);
    if (!q.planes) continue;
    const size_t word = at(r * q.planes->words() + (a + c) / 32);
    q.planes->signs[word] |= static_cast<uint32_t>(rounded.sign) << (a + c) % 32;
    q.planes->parts[word] |= static_cast<uint32_t>(rounded.part) << (a + c) % 32;
  }
  if (!q.planes) return;
  uint16_t* stored = &q.planes->levels[at((r * q.planes->blocks() + a / q.planes->block) * BinaryPlanes::kLevels)];
  for (const Level& level : row.levels) {
    *stored++ = to_f16(static_cast<float>(level.mean));
    *stored++ = to_f16(static_cast<float>(level.scale));
  }
}

}  // namespace

BinarizedWeight billm(const Tensor& w, std::vector<double> hessian, const BillmOptions& options,
                      const std::string& name, const Warn& warn) {
  const int64_t out = w.dim(0), in = w.dim(1);
  require(kernels().all_finite(w.data, w.size()), "%s: its weight is not finite (NaN or infinity)", name);
  Tensor rest = w.clone();
  for (int64_t c = 0; c < in; ++c) {
    double& d = hessian[at(c * in + c)];
    if (d != 0) continue;
    d = 1;  // an input that is always zero: its weights may be zero too
    for (int64_t r = 0; r < out; ++r) rest[r * in + c] = 0;
  }
  double damp = 0;
  const std::vector<float> u = factor_hessian(hessian, in, options.percdamp, name, warn, &damp);
  require(!u.empty(), "%s: its Hessian cannot be factored even with damping %g", name, damp);

  const OneBlasThread one;
  BinarizedWeight q{Tensor::uninitialized(w.shape), {}, nullptr};
  if (options.half) q.planes = std::make_shared<BinaryPlanes>(out, in, std::min(in, options.block));
  q.stored_bits = static_cast<double>(in);
  for (int64_t a = 0; a < in; a += options.block) {
    const int64_t n = std::min(options.block, in - a), after = in - a - n;
    Tensor block = Tensor::uninitialized({out, n}), salience = Tensor::uninitialized({out, n});
    for (int64_t i = 0; i < block.size(); ++i) {
      const float x = block[i] = rest[i / n * in + a + i % n], pivot = u[at((a + i % n) * (in + 1))];
      salience[i] = options.hessian ? x * x / (pivot * pivot) : x;
    }
    BillmBlock& chosen = q.blocks.emplace_back();
    const std::vector<uint8_t> parts = parts_of(salience, options.most, chosen);
    std::vector<float> errors(at(out * n));
    parallel_for(out, [&](int64_t r) {
      solve_row(block.data + r * n, &parts[at(r * n)], u.data(), r, a, n, options, q, &errors[at(r * n)]);
    });
    for (int64_t c = 0; c < n && q.planes; ++c)
      q.planes->salient[at((a + c) / 32)] |= static_cast<uint32_t>(parts[at(c)] == kSalient) << (a + c) % 32;
    if (after > 0)
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<int>(out), static_cast<int>(after),
                  static_cast<int>(n), -1.f, errors.data(), static_cast<int>(n), &u[at(a * in + a + n)],
                  static_cast<int>(in), 1.f, rest.data + a + n, static_cast<int>(in));
    for (const auto& [part, count] :
         {std::pair{kSmall, &chosen.small}, {kLarge, &chosen.large}, {kSalient, &chosen.salient}})
      *count = std::count(parts.begin(), parts.end(), part);
    const auto salient = static_cast<double>(chosen.salient), others = static_cast<double>(chosen.small + chosen.large);
    q.sign_bits += others + 2 * salient;
    q.stored_bits += 2 * others + 2 * salient + 8 * 16 * static_cast<double>(out);
  }
  return q;
}

Billm::Billm(const BillmOptions& options, const LayerBits& bits, const Warn& warn)
    : options_(options), bits_(bits), warn_(warn) {
  for (const auto& [layer, own] : bits)
    require_usage(own == 0, "%s: BiLLM has no bits to choose, layers can only be left out", layer->name);
}

void Billm::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  std::vector<Tensor> weights;
  for (const Layer* layer : group) weights.push_back(layer->weight.values());
  if (seen.odd) weights = refit(weights, *seen.moments, *seen.odd, options_.centred).weights;
  const std::vector<double> hessian = seen.moments->second(options_.centred);
  for (size_t i = 0; i < group.size(); ++i) {
    Layer* layer = group[i];
    BinarizedWeight q = billm(weights[i], hessian, options_, layer->name, warn_);
    if (q.planes)
      layer->quantize(std::move(q.planes));
    else
      layer->quantize({layer->left_grid(), Binary(q.stored_bits, q.sign_bits), q.values, nullptr, nullptr});
  }
}

}  // namespace bcq
