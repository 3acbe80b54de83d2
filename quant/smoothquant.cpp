#include "quant/smoothquant.h"

#include <algorithm>
#include <cmath>

namespace bcq {

std::vector<float> smoothing_scales(const std::vector<float>& max_x, const std::vector<Tensor>& weights, double alpha) {
  std::vector<float> max_w(max_x.size(), 1e-5f), scales;
  for (const Tensor& w : weights)
    for (int64_t i = 0; i < w.size(); ++i) {
      float& most = max_w[at(i % w.dim(1))];
      most = std::max(most, std::abs(w[i]));
    }
  const auto a = static_cast<float>(alpha);
  for (size_t c = 0; c < max_x.size(); ++c)
    scales.push_back(std::max(std::pow(max_x[c], a) / std::pow(max_w[c], 1 - a), 1e-5f));
  return scales;
}

void Smoothing::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  const std::vector<float>&least = seen.moments->column_least(), &largest = seen.moments->column_largest();
  std::vector<float> max_x;
  for (size_t c = 0; c < least.size(); ++c) max_x.push_back(std::max(-least[c], largest[c]));
  std::vector<Tensor> weights;
  for (const Layer* layer : group) weights.push_back(layer->weight.values());
  const std::vector<float> scales = smoothing_scales(max_x, weights, alpha_);
  model_->fold(part_.group_of(*group[0]), scales, std::vector<float>(scales.size(), 0.f));
}

}  // namespace bcq
