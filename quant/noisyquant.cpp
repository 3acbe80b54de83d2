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
  const int64_t n = x.dim(-1), rows = std::min(kTokens, x.rows());
  Tensor y = Tensor::uninitialized({rows, n});
  for (int64_t r = 0; r < rows; ++r) std::copy_n(x.data + r * x.rows() / rows * n, n, y.data + r * n);
  return y;
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

}  // namespace

ProductError::ProductError(const Tensor& w) : factor_(w), by_gram_(w.dim(1) < w.dim(0)) {
  if (!by_gram_) return;
  const int64_t rows = w.dim(0), n = w.dim(1);
  const std::vector<double> b(w.data, w.data + w.size());
  std::vector<double> transposed(b.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; ++c) transposed[static_cast<size_t>(c * rows + r)] = w[r * n + c];
  const std::vector<double> gram = times(transposed, b, rows, n);
  factor_ = Tensor({n, n}, std::vector<float>(gram.begin(), gram.end()));
}

double ProductError::operator()(const Tensor& q, const Tensor& x) const {
  Tensor e = add(nullptr, q, scale(nullptr, x, -1));
  e = e.reshaped({1, e.rows(), e.dim(-1)});  // one product: linear() takes samples one by one
  const Tensor y = linear(nullptr, e, factor_, {});
  const Tensor& other = by_gram_ ? e : y;
  std::vector<double> of_token(static_cast<size_t>(y.rows()));
  const int64_t n = y.dim(-1);
  parallel_for(y.rows(), [&](int64_t r) {
    of_token[static_cast<size_t>(r)] = kernels().dot(y.data + r * n, other.data + r * n, n);
  });
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

Offset search_offsets(const Tensor& x, const ProductError& error, const Grid& grid, float step,
                      const std::vector<float>& noise) {
  Offset best(grid, std::vector<float>(noise.size(), 0.f));
  double least = std::numeric_limits<double>::infinity();
  const auto take_if_better = [&](const Offset& offset) {
    const double found = error(fake_quantize(Grid(offset), x), x);
    if (found < least) least = found, best = offset;
  };
  for (int i = -200; i < 200; ++i)
    take_if_better(Offset(grid, std::vector<float>(noise.size(), step * static_cast<float>(i) / 200)));
  const float mean = best.offset_of[0];
  Offset offset = best;
  for (int j = 1; j < 2000; ++j) {
    for (size_t c = 0; c < noise.size(); ++c)
      offset.offset_of[c] = mean + noise[c] * step * static_cast<float>(j) / 1000;
    take_if_better(offset);
  }
  return best;
}

LayerNoise::LayerNoise(Model& model, uint32_t seed) {
  for (int i = model.depth(); i >= -1; --i)
    for (const Layer* layer : model.layers(i))
      if (takes_noise(*layer)) seeds_.emplace(layer, seed + static_cast<uint32_t>(seeds_.size()));
}

std::vector<float> LayerNoise::of(const Layer& layer) const {
  return gaussian_noise(static_cast<size_t>(layer.weight.dim(1)), seeds_.at(&layer));
}

NoisyQuant::NoisyQuant(const NoisyQuantOptions& options) : options_(options) {
  for (const int bits : {options.wbits, options.abits})
    require_usage(bits >= 2 && bits <= 8, "%d bits: NoisyQuant takes 2 to 8", bits);
}

Needs NoisyQuant::needs() const {
  Needs needs;
  needs.stream = Stream::Quantized;
  needs.sequential = needs.operands = true;
  return needs;
}

void NoisyQuant::begin(Model& model) {
  begin_vision(model, "NoisyQuant");
  noise_ = LayerNoise(model, options_.seed);
}

void NoisyQuant::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  const Tensor x = thinned(seen.operands[0].a);
  for (Layer* layer : group) {
    const Tensor w = layer->weight.values();
    std::vector<float> steps;
    for (int64_t r = 0; r < w.dim(0); ++r)
      steps.push_back(std::max(kernels().max_abs(w.data + r * w.dim(1), w.dim(1)), FLT_MIN) /
                      (std::ldexp(1.f, options_.wbits - 1) - 1));
    const Uniform grid{options_.wbits, 0, steps};
    const Tensor rounded = fake_quantize(grid, w);
    const ProductError error(rounded);
    const float step = clip_step(x, error, options_.abits);
    const Offset offsets = search_offsets(x, error, Uniform{options_.abits, 0, {step}}, step, noise_.of(*layer));
    layer->quantize({offsets, grid, rounded, nullptr, nullptr});
  }
}

void NoisyPtq4vit::begin(Model& model) {
  begin_vision(model, "NoisyQuant");
  noise_ = LayerNoise(model, options_.seed);
}

void NoisyPtq4vit::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) {
  Ptq::fit(group, seen, record);
  for (size_t i = 0; i < group.size(); ++i) {
    Layer& layer = *group[i];
    if (!takes_noise(layer) || layer.left_grid().is_identity()) continue;
    const Grid grid = layer.left_grid();
    Quantized q = *layer.quantized;
    const Tensor x = thinned(seen.operands[i].a);
    q.left = search_offsets(x, ProductError(layer.weight_in(Precision::Fake).values()), grid, grid->plane_scale(0, 0),
                            noise_.of(layer));
    layer.quantize(std::move(q));
  }
}

}  // namespace bcq
