#include "quant/joint.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "quant/ptq4vit.h"
#include "quant/ranges.h"
#include "quant/tokens.h"

namespace bcq {
namespace {

using Floats = std::vector<float>;

// Rows of a tensor [samples, ..., n] that are looked at together, with what each counts for.
struct Rows {
  Tensor x;        // [rows, n]
  Floats weights;  // [rows]
};

// The tokens that are read and every `step`-th other of samples that are held out, or of the others.
Rows sample_rows(const Tensor& x, int64_t read, bool held_out, double share) {
  constexpr int64_t kTokens = 32;  // of a sample
  const int64_t tokens = x.rank() > 2 ? x.dim(-2) : 1, rows = x.rows(), per_sample = rows / x.dim(0);
  const int64_t step = std::max<int64_t>(1, tokens / kTokens);
  std::vector<int64_t> chosen;
  Rows sample;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = r % tokens;
    if (is_held_out(r / per_sample, share) != held_out || (token >= read && token % step != 0)) continue;
    chosen.push_back(r);
    sample.weights.push_back(token_weight(token, tokens, read) * static_cast<float>(token < read ? 1 : step));
  }
  sample.x = take(x.reshaped({rows, x.dim(-1)}), 0, chosen);
  return sample;
}

// The samples of x that are held out, or nothing.
Tensor held_out_samples(const Tensor& x, double share) {
  std::vector<int64_t> chosen;
  for (int64_t b = 0; b < x.dim(0); ++b)
    if (is_held_out(b, share)) chosen.push_back(b);
  return chosen.empty() ? Tensor{} : take(x, 0, chosen);
}

// x Wᵀ + b of rows x [rows, in].
Tensor product(const Tensor& x, const Weight& w, const Tensor& b = {}) {
  return linear(nullptr, x.reshaped({1, x.dim(0), x.dim(1)}), w, b).reshaped({x.dim(0), w.dim(0)});
}

// Weighted squares of y [rows, out] about their weighted mean.
double centred_energy(const Tensor& y, const Floats& weights) {
  const int64_t n = y.dim(1);
  std::vector<double> sum(at(n)), squares(at(n));
  double total = 0;
  for (int64_t r = 0; r < y.dim(0); ++r) {
    const double w = weights[at(r)];
    total += w;
    for (int64_t c = 0; c < n; ++c) {
      sum[at(c)] += w * y[r * n + c];
      squares[at(c)] += w * y[r * n + c] * y[r * n + c];
    }
  }
  double energy = 0;
  for (int64_t c = 0; c < n; ++c) energy += squares[at(c)] - sum[at(c)] * sum[at(c)] / total;
  return energy / total;
}

// Weighted mean square of what the finished layer makes of rounded inputs less what the float one makes of its own.
double output_error(const Layer& layer, const Rows& f, const Rows& a) {
  const Tensor real = product(f.x, layer.weight, layer.bias.loaded);
  const Tensor own = product(a.x, layer.weight_in(Precision::Fake), layer.bias.in(Precision::Fake));
  double sum = 0, total = 0;
  for (int64_t r = 0; r < real.dim(0); ++r) {
    double row = 0;
    for (int64_t i = r * real.dim(1); i < (r + 1) * real.dim(1); ++i)
      row += (static_cast<double>(real[i]) - own[i]) * (static_cast<double>(real[i]) - own[i]);
    sum += f.weights[at(r)] * row / static_cast<double>(real.dim(1));
    total += f.weights[at(r)];
  }
  return sum / total;
}

Tensor minus(const Tensor& a, const Tensor& b) { return add(nullptr, a, scale(nullptr, b, -1)); }

using Fold = Joint::Fold;

// None; centred; centred and divided by the deviation, or by half the range of 99.9 % of the values.
std::vector<Fold> candidates(const Rows& rows) {
  const int64_t n = rows.x.dim(1), count = rows.x.dim(0);
  Fold centred, by_deviation, by_range;
  double total = 0;
  for (const float w : rows.weights) total += w;
  Floats column(at(count));
  for (int64_t c = 0; c < n; ++c) {
    double mean = 0, square = 0;
    for (int64_t r = 0; r < count; ++r) {
      column[at(r)] = rows.x[r * n + c];
      mean += rows.weights[at(r)] * column[at(r)] / total;
      square += rows.weights[at(r)] * static_cast<double>(column[at(r)]) * column[at(r)] / total;
    }
    const auto usable = [](double s) { return s > 1e-6 ? static_cast<float>(s) : 1.f; };
    const float deviation = usable(std::sqrt(std::max(0.0, square - mean * mean)));
    std::sort(column.begin(), column.end());
    const float lo = column[at(count / 2000)], hi = column[at(count - 1 - count / 2000)], half = usable((hi - lo) / 2);
    centred.scale.push_back(1);
    centred.shift.push_back(static_cast<float>(mean));
    by_deviation.scale.push_back(deviation);
    by_deviation.shift.push_back(static_cast<float>(mean) / deviation);
    by_range.scale.push_back(half);
    by_range.shift.push_back((lo + hi) / 2 / half);
  }
  return {{}, centred, by_deviation, by_range};
}

// The weights of layers that share an input, one below the other [out, in], for an input that was folded.
Tensor stacked(const std::vector<Layer*>& layers, const Fold& fold) {
  int64_t out = 0;
  const int64_t in = layers[0]->weight.dim(1);
  for (const Layer* layer : layers) out += layer->weight.dim(0);
  Tensor all = Tensor::uninitialized({out, in});
  float* to = all.data;
  for (const Layer* layer : layers) {
    const Tensor w = layer->weight.values();
    to = std::copy_n(w.data, w.size(), to);
  }
  for (int64_t i = 0; fold.changes() && i < all.size(); ++i) all[i] *= fold.scale[at(i % in)];
  return all;
}

// Σ_r w[r, c]²: what an error of channel c counts for at the output.
Floats column_energy(const Tensor& w) {
  Floats energy(at(w.dim(1)));
  for (int64_t i = 0; i < w.size(); ++i) energy[at(i % w.dim(1))] += w[i] * w[i];
  return energy;
}

GptqMethodOptions solver_options(const JointOptions& o) {
  GptqMethodOptions s;
  s.gptq.bits = o.wbits == kFloatBits ? 8 : o.wbits;
  s.gptq.sym = o.wbits == 8;  // s8 codes
  s.gptq.act_order = s.gptq.weighted = true;
  s.target = Target::Float;  // centred by what fit_linear() hands over
  s.refine = o.refine;
  s.scale_rounds = o.scale_rounds;
  s.packed = false;
  return s;
}

}  // namespace

Joint::Joint(const JointOptions& o, const Warn& warn) : options_(o), solver_(solver_options(o), warn) {
  for (const int bits : {o.wbits, o.abits})
    require_usage((bits >= 2 && bits <= 8) || bits == kFloatBits, "%d bits: joint takes 2 to 8, or %d to stay float",
                  bits, kFloatBits);
  require_usage(o.held_out >= 0 && o.held_out <= 0.5, "the share of held-out images is 0 to 0.5, not %g", o.held_out);
}

void Joint::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) {
  Operands& x = seen.operands[0];
  if (group[0]->is_linear())
    fit_linear(group, x, record);
  else if (options_.abits == kFloatBits)
    return;
  else if (group[0]->role == Role::QK)
    fit_scores(*group[0], x);
  else
    fit_mix(*group[0], x);
}

// Tokens that count more, of the operands of a block.
int64_t Joint::read_tokens() const { return part_.kind == Part::Kind::Block ? model_->info().read_tokens : 0; }

Grid Joint::grid_of(const Histogram& values) const {
  if (options_.grid == ActGrid::Uniform) return fit_asymmetric(values, options_.abits);
  return fit_table(values, options_.abits, false);
}

Joint::Fold Joint::choose_fold(const std::vector<Layer*>& layers, const Tensor& x) const {
  const Rows fitted = sample_rows(x, read_tokens(), false, options_.held_out);
  const Rows held_out = sample_rows(x, read_tokens(), options_.held_out > 0, options_.held_out);
  constexpr double kSolved = 0.5;  // of an error of weights rounded to nearest, what GPTQ leaves, roughly
  Fold best;
  double least = std::numeric_limits<double>::infinity();
  for (const Fold& fold : candidates(fitted)) {
    Rows own = fitted, other = held_out;
    own.x = own.x.clone(), other.x = other.x.clone();
    if (fold.changes()) {
      fold_channels(own.x, fold.scale, fold.shift);
      fold_channels(other.x, fold.scale, fold.shift);
    }
    const Tensor w = stacked(layers, fold);
    const Grid grid = grid_of(Histogram(own.x, own.weights, column_energy(w)));
    double error = centred_energy(product(minus(fake_quantize(grid, other.x), other.x), w), other.weights);
    if (options_.wbits != kFloatBits) {
      const Tensor rounded = round_to_nearest(w, {options_.wbits}).values;
      error += kSolved * centred_energy(product(other.x, minus(rounded, w)), other.weights);
    }
    if (error < least) least = error, best = fold;
  }
  return best;
}

void Joint::fit_linear(const std::vector<Layer*>& group, Operands& x, PartRecord& record) {
  const LayerGroup& whole = part_.group_of(*group[0]);
  const bool rounds_input = options_.abits != kFloatBits && part_.kind != Part::Kind::Embedding;
  Grid left;
  // What the float network fed this layer was seen before the values were folded.
  if (group[0]->role == Role::Proj && of_values_.changes()) fold_channels(x.f, of_values_.scale, of_values_.shift);
  if (rounds_input) {
    if (whole.source.norm && group.size() == whole.layers.size()) {
      const Fold fold = choose_fold(group, x.a);
      if (fold.changes()) {
        model_->fold(whole, fold.scale, fold.shift);
        fold_channels(x.a, fold.scale, fold.shift);
        fold_channels(x.f, fold.scale, fold.shift);
      }
    }
    const Histogram values(x.a, row_weights(x.a, read_tokens()), column_energy(stacked(group, {})));
    const bool is_gelu = group[0]->role == Role::Fc2;
    if (is_gelu && options_.grid == ActGrid::AdaLog)
      left = fit_adalog(values, options_.abits, AdaLog::kGeluShift);
    else
      left = grid_of(values);
    x.a = fake_quantize(left, x.a);
  }
  for (Layer* layer : group) layer->quantize(left, {});
  const std::vector<double> means[] = {weighted_mean(x.f, read_tokens()), weighted_mean(x.a, read_tokens())};
  if (options_.wbits != kFloatBits) {
    Seen seen;
    seen.moments = std::make_unique<Moments>(x.a.dim(-1));
    if (x.a.dim(0) > 1) seen.odd = std::make_unique<Moments>(x.a.dim(-1));  // of one sample nothing is refitted
    for (int64_t b = 0; b < x.a.dim(0); ++b)
      (b % 2 ? seen.odd : seen.moments)
          ->add(weighted_deviation(x.a.slice(b, b + 1), means[1], read_tokens()),
                seen.odd ? weighted_deviation(x.f.slice(b, b + 1), means[0], read_tokens()) : Tensor{});
    solver_.fit(group, seen, record);
  }
  if (options_.bias)
    for (Layer* layer : group) fit_bias(*layer, x, record);
  if (options_.held_out == 0 || options_.wbits == kFloatBits) return;
  const Rows f = sample_rows(x.f, read_tokens(), true, options_.held_out);
  const Rows a = sample_rows(x.a, read_tokens(), true, options_.held_out);
  for (size_t i = 0; i < group.size() && !a.weights.empty(); ++i)
    record.layers[record.layers.size() - group.size() + i].held_out = output_error(*group[i], f, a);
}

void Joint::fit_bias(Layer& layer, const Operands& x, PartRecord& record) const {
  const Tensor w = layer.weight.values(), q = layer.weight_in(Precision::Fake).values();
  const auto error = [&](const Tensor& real, const Tensor& own) {
    const std::vector<double> f = weighted_mean(real, read_tokens()), a = weighted_mean(own, read_tokens());
    Tensor mean({w.dim(0)});
    for (int64_t r = 0; r < w.dim(0); ++r) {
      double sum = 0;
      for (int64_t c = 0; c < w.dim(1); ++c) sum += w[r * w.dim(1) + c] * f[at(c)] - q[r * w.dim(1) + c] * a[at(c)];
      mean[r] = static_cast<float>(sum);
    }
    return mean;
  };
  const Tensor all = error(x.f, x.a);
  if (const Tensor f = held_out_samples(x.f, options_.held_out); !f.empty()) {
    const double share = static_cast<double>(f.dim(0)) / static_cast<double>(x.f.dim(0));
    if (!helps_held_out(all, error(f, held_out_samples(x.a, options_.held_out)), share)) {
      ++record.dropped;
      return;
    }
  }
  Model::point_of(layer).add(all);
  record.fitted += w.dim(0);
}

void Joint::fit_scores(Layer& layer, Operands& x) {
  const int64_t H = x.b.dim(1), N = x.b.dim(2), d = x.b.dim(3);
  const LayerGroup& group = part_.group_of(layer);
  if (group.source.layer) {  // k [B, H, N, d], less the mean of each channel
    std::vector<double> mean(at(H * d));
    for (int64_t i = 0; i < x.b.size(); ++i)
      mean[at(i / (N * d) % H * d + i % d)] +=
          token_weight(i / d % N, N, read_tokens()) * static_cast<double>(x.b[i]) / static_cast<double>(x.b.dim(0) * N);
    for (int64_t i = 0; i < x.b.size(); ++i) x.b[i] -= static_cast<float>(mean[at(i / (N * d) % H * d + i % d)]);
    model_->fold(group, Floats(mean.size(), 1.f), Floats(mean.begin(), mean.end()));
  }
  layer.quantize(head_grids(x.a, false), head_grids(x.b, true));
}

void Joint::fit_mix(Layer& layer, Operands& x) {
  const int64_t H = x.b.dim(1), N = x.b.dim(2), d = x.b.dim(3);
  for (const LayerGroup& group : part_.groups) {
    if (group.layers[0]->role != Role::Proj || !group.source.layer) continue;
    const Fold fold = choose_fold(group.layers, merge_heads(nullptr, matmul(nullptr, x.a, x.b, false)));
    if (!fold.changes()) continue;
    model_->fold(group, fold.scale, fold.shift);
    of_values_ = fold;
    for (int64_t i = 0; i < x.b.size(); ++i) {
      const size_t c = at(i / (N * d) % H * d + i % d);
      x.b[i] = x.b[i] / fold.scale[c] - fold.shift[c];
    }
  }
  Quantized q{softmax_grid(x.a), head_grids(x.b, true), {}, nullptr, nullptr};
  q.renormalized = true;
  layer.quantize(std::move(q));
}

// Of attention weights a [B, H, N, N] as they are renormalized: those of a row are w / largest; an error of one is as
// large in the product as their sum is small.
Grid Joint::softmax_grid(const Tensor& a) const {
  const int64_t N = a.dim(3), rows = a.rows();
  Tensor scaled = a.clone();
  Floats weights(at(rows));
  parallel_for(rows, [&](int64_t r) {
    float* row = scaled.data + r * N;
    const float largest = *std::max_element(row, row + N);
    scale_to_largest(row, N);
    weights[at(r)] = largest * largest * token_weight(r % a.dim(2), a.dim(2), read_tokens());
  });
  if (options_.grid == ActGrid::AdaLog) return fit_adalog(Histogram(scaled, weights), options_.abits, 0);
  std::vector<double> histogram(256, 0.0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < N; ++c)
      histogram[at(std::lround(scaled[r * N + c] * 255))] += static_cast<double>(weights[at(r)]);
  std::vector<uint8_t> levels = best_levels(histogram, options_.abits);
  levels.front() = 0;   // what is masked stays out
  levels.back() = 255;  // each row has one
  return Table(options_.abits, 1.f / 255, 0, levels);
}

// A grid for each head of x [B, H, N, d].
Grid Joint::head_grids(const Tensor& x, bool is_signed) const {
  const int64_t B = x.dim(0), H = x.dim(1), N = x.dim(2), d = x.dim(3);
  std::vector<Table> tables;
  for (int64_t h = 0; h < H; ++h) {
    Tensor head = Tensor::uninitialized({B, N, d});
    for (int64_t b = 0; b < B; ++b) std::copy_n(x.data + (b * H + h) * N * d, N * d, head.data + b * N * d);
    tables.push_back(fit_table(Histogram(head, row_weights(head, read_tokens())), options_.abits, is_signed));
  }
  return Table(1, tables);
}

}  // namespace bcq
