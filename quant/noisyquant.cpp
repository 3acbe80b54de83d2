#include "quant/noisyquant.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>

#include "engine/core/check.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"
#include "quant/refine.h"

namespace bcq {
namespace {

constexpr int64_t kTokens = 512;

double cost(const Tensor& x, const Grid& grid, const std::vector<double>& gram) {
  return quadratic_error(fake_quantize(grid, x), x, gram);
}

// At most kTokens of x [..., n], evenly spaced.  [tokens, n]
Tensor thinned(const Tensor& x) {
  const int64_t n = x.dim(-1), rows = std::min(kTokens, x.rows());
  Tensor y = Tensor::uninitialized({rows, n});
  for (int64_t r = 0; r < rows; ++r) std::copy_n(x.data + r * x.rows() / rows * n, n, y.data + r * n);
  return y;
}

std::vector<double> gram_of(const Tensor& w) {
  const int64_t n = w.dim(1);
  std::vector<double> gram(static_cast<size_t>(n * n), 0.0);
  for (int64_t r = 0; r < w.dim(0); ++r)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j)
        gram[static_cast<size_t>(i * n + j)] += static_cast<double>(w[r * n + i]) * w[r * n + j];
  return gram;
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

float clip_step(const Tensor& x, const std::vector<double>& gram, int bits) {
  const float largest = kernels().max_abs(x.data, x.size()), codes = std::ldexp(1.f, bits - 1) - 1;
  float best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 1000; i >= 1; --i) {
    const float clip = largest / 1000 * static_cast<float>(i), step = std::max(clip / codes, FLT_MIN);
    Tensor inside = x.clone();  // the search keeps off code -m, as the code does
    for (int64_t k = 0; k < x.size(); ++k) inside[k] = std::clamp(inside[k], -clip, clip);
    const double error = quadratic_error(fake_quantize(Uniform{bits, 0, {step}}, inside), x, gram);
    if (error < least) least = error, best = step;
  }
  return best;
}

Offset search_offsets(const Tensor& x, const std::vector<double>& gram, int bits, float step,
                      const std::vector<float>& noise) {
  Offset best(bits, step, std::vector<float>(noise.size(), 0.f));
  double least = std::numeric_limits<double>::infinity();
  for (int i = -200; i < 200; ++i) {
    const Offset offset(bits, step, std::vector<float>(noise.size(), step * static_cast<float>(i) / 200));
    const double error = cost(x, offset, gram);
    if (error < least) least = error, best = offset;
  }
  const float mean = best.offset_of[0];
  for (int j = 1; j < 2000; ++j) {
    Offset offset = best;
    for (size_t c = 0; c < noise.size(); ++c)
      offset.offset_of[c] = mean + noise[c] * step * static_cast<float>(j) / 1000;
    const double error = cost(x, offset, gram);
    if (error < least) least = error, best = offset;
  }
  return best;
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
  for (int i = model.depth(); i >= -1; --i)
    for (const Layer* layer : model.layers(i))
      if (wants(*layer)) seeds_.emplace(layer, options_.seed + static_cast<uint32_t>(seeds_.size()));
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
    const std::vector<double> gram = gram_of(rounded);
    const float step = clip_step(x, gram, options_.abits);
    const std::vector<float> noise = gaussian_noise(static_cast<size_t>(x.dim(-1)), seeds_.at(layer));
    layer->quantize({search_offsets(x, gram, options_.abits, step, noise), grid, rounded, nullptr, nullptr});
  }
}

}  // namespace bcq
