#include "quant/noisyquant.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>

#include "engine/core/check.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/ops.h"
#include "quant/linalg.h"

namespace bcq {
namespace {

constexpr int64_t kTokens = 512;

// At most kTokens of x [..., n], evenly spaced.  [tokens, n]
Tensor thinned(const Tensor& x) {
  const int64_t rows = x.rows(), kept = std::min(kTokens, rows);
  std::vector<int64_t> chosen;
  for (int64_t r = 0; r < kept; ++r) chosen.push_back(r * rows / kept);
  return take(x.reshaped({rows, x.dim(-1)}), 0, chosen);
}

// Box and Muller's, so that it is the same with every standard library.
std::vector<float> gaussian_noise(size_t n, uint32_t seed) {
  std::mt19937 words(seed);
  const auto uniform = [&] { return (static_cast<double>(words()) + 0.5) / 4294967296.0; };
  std::vector<float> noise;
  for (size_t c = 0; c < n; ++c) {
    const double radius = std::sqrt(-2 * std::log(uniform())), angle = 2 * std::numbers::pi * uniform();
    noise.push_back(static_cast<float>(2 * radius * std::cos(angle) - 1));
  }
  return noise;
}

// Counted from the head back.
std::map<const Layer*, uint32_t> seeds_of(Model& model, uint32_t seed) {
  std::map<const Layer*, uint32_t> seeds;
  for (int i = model.depth(); i >= -1; --i)
    for (const Layer* layer : model.layers(i))
      if (takes_noise(*layer)) seeds.emplace(layer, seed + static_cast<uint32_t>(seeds.size()));
  return seeds;
}

// wᵀw [in, in] of w [out, in]
Tensor gram_of(const Tensor& w) {
  const int64_t rows = w.dim(0), n = w.dim(1);
  const std::vector<double> b(w.data, w.data + w.size());
  std::vector<double> transposed(b.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; ++c) transposed[at(c * rows + r)] = w[r * n + c];
  const std::vector<double> gram = times(transposed, b, rows, n);
  return Tensor({n, n}, std::vector<float>(gram.begin(), gram.end()));
}

}  // namespace

ProductError::ProductError(const Tensor& w) : by_gram_(w.dim(1) < w.dim(0)), factor_(by_gram_ ? gram_of(w) : w) {}

double ProductError::operator()(const Tensor& q, const Tensor& x) const {
  Tensor e = add(nullptr, q, scale(nullptr, x, -1));
  e = e.reshaped({1, e.rows(), e.dim(-1)});  // one product: linear() takes samples one by one
  const Tensor y = linear(nullptr, e, factor_, {});
  const Tensor& other = by_gram_ ? e : y;
  std::vector<double> of_token(static_cast<size_t>(y.rows()));
  const int64_t n = y.dim(-1);
  parallel_for(y.rows(), [&](int64_t r) { of_token[at(r)] = kernels().dot(y.data + r * n, other.data + r * n, n); });
  return std::accumulate(of_token.begin(), of_token.end(), 0.0);
}

float clip_step(const Tensor& x, const ProductError& error, int bits) {
  const float largest = kernels().max_abs(x.data, x.size()), codes = std::ldexp(1.f, bits - 1) - 1;
  float best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 1000; i >= 1; --i) {
    const float clip = largest / 1000 * static_cast<float>(i), step = std::max(clip / codes, FLT_MIN);
    Tensor inside = x.clone();  // the search keeps off code -m, as the code does
    for (int64_t k = 0; k < x.size(); ++k) inside[k] = std::clamp(inside[k], -clip, clip);
    const double found = error(fake_quantize(Uniform{bits, 0, {step}}, inside), x);
    if (found < least) least = found, best = step;
  }
  return best;
}

OffsetErrors::OffsetErrors(const Tensor& x, const Tensor& w)
    : x_(x),
      gram_(gram_of(w)),
      rounded_(x.clone()),
      products_(static_cast<size_t>(x.size())),
      squares_(static_cast<size_t>(x.rows())) {}

double OffsetErrors::operator()(const Tensor& q, const std::vector<float>& o) {
  const int64_t n = x_.dim(-1), tokens = x_.rows();
  std::vector<double> of_token(static_cast<size_t>(tokens)), of_channel(static_cast<size_t>(n));
  parallel_for(tokens, [&](int64_t t) {
    double *const product = &products_[at(t * n)], &square = squares_[at(t)];
    for (int64_t c = 0; c < n; ++c) {
      float& value = rounded_[t * n + c];
      if (q[t * n + c] == value) continue;
      const double change = static_cast<double>(q[t * n + c]) - value;
      const float* row = gram_.data + c * n;
      square += change * (2 * product[c] + change * row[c]);
      for (int64_t k = 0; k < n; ++k) product[k] += change * row[k];
      value = q[t * n + c];
    }
    double across = 0;
    for (int64_t c = 0; c < n; ++c) across += product[c] * o[at(c)];
    of_token[at(t)] = square - 2 * across;
  });
  parallel_for(n, [&](int64_t c) { of_channel[at(c)] = o[at(c)] * kernels().dot(gram_.data + c * n, o.data(), n); });
  return std::accumulate(of_token.begin(), of_token.end(), 0.0) +
         static_cast<double>(tokens) * std::accumulate(of_channel.begin(), of_channel.end(), 0.0);
}

Offset search_offsets(const Tensor& x, const Tensor& w, const Grid& grid, float step, const std::vector<float>& noise) {
  OffsetErrors error(x, w);
  std::vector<float> best(noise.size(), 0.f), offsets = best;
  double least = std::numeric_limits<double>::infinity();
  Tensor moved = Tensor::uninitialized(x.shape);
  const int64_t n = x.dim(-1);
  const auto take_if_better = [&] {
    parallel_for(x.rows(), [&](int64_t r) { kernels().add(x.data + r * n, offsets.data(), moved.data + r * n, n); });
    const double found = error(fake_quantize(grid, moved), offsets);
    if (found < least) least = found, best = offsets;
  };
  for (int i = -200; i < 200; ++i) {
    std::fill(offsets.begin(), offsets.end(), step * static_cast<float>(i) / 200);
    take_if_better();
  }
  const float mean = best[0];
  for (int j = 1; j < 2000; ++j) {
    for (size_t c = 0; c < noise.size(); ++c) offsets[c] = mean + noise[c] * step * static_cast<float>(j) / 1000;
    take_if_better();
  }
  return Offset(grid, best);
}

NoisyQuant::NoisyQuant(int wbits, int abits, uint32_t seed) : wbits_(wbits), abits_(abits), seed_(seed) {
  for (const int bits : {wbits, abits}) require_usage(bits >= 2 && bits <= 8, "%d bits: NoisyQuant takes 2 to 8", bits);
}

void NoisyQuant::begin(Model& model) {
  begin_vision(model, "NoisyQuant");
  seeds_ = seeds_of(model, seed_);
}

void NoisyQuant::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  const Tensor x = thinned(seen.operands[0].a);
  for (Layer* layer : group) {
    const Tensor w = layer->weight.values();
    std::vector<float> steps;
    for (int64_t r = 0; r < w.dim(0); ++r)
      steps.push_back(std::max(kernels().max_abs(w.data + r * w.dim(1), w.dim(1)), FLT_MIN) /
                      (std::ldexp(1.f, wbits_ - 1) - 1));
    const Uniform grid{wbits_, 0, steps};
    const Tensor rounded = fake_quantize(grid, w);
    const float step = clip_step(x, ProductError(rounded), abits_);
    const Offset offsets =
        search_offsets(x, rounded, Uniform{abits_, 0, {step}}, step, gaussian_noise(at(x.dim(1)), seeds_.at(layer)));
    layer->quantize({offsets, grid, rounded, nullptr, nullptr});
  }
}

void NoisyPtq4vit::begin(Model& model) {
  begin_vision(model, "NoisyQuant");
  seeds_ = seeds_of(model, options_.seed);
}

void NoisyPtq4vit::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) {
  Ptq::fit(group, seen, record);
  for (size_t i = 0; i < group.size(); ++i) {
    Layer& layer = *group[i];
    if (!takes_noise(layer) || layer.left_grid().is_identity()) continue;
    const Grid grid = layer.left_grid();
    Quantized q = *layer.quantized;
    const Tensor x = thinned(seen.operands[i].a);
    q.left = search_offsets(x, layer.weight_in(Precision::Fake).values(), grid, grid->plane_scale(0, 0),
                            gaussian_noise(at(x.dim(1)), seeds_.at(&layer)));
    layer.quantize(std::move(q));
  }
}

}  // namespace bcq
