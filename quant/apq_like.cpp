#include "quant/apq_like.h"

#include <algorithm>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/parallel.h"

namespace bcq {
namespace {

// The sum of the largest of n terms g² (y - real)², a share of them.
double largest_errors(const float* y, const float* real, const float* g2, int64_t n, double share) {
  std::vector<float> terms(at(n));
  for (int64_t i = 0; i < n; ++i) terms[at(i)] = g2[i] * (y[i] - real[i]) * (y[i] - real[i]);
  const int64_t kept = std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(n)));
  std::nth_element(terms.begin(), terms.begin() + (kept - 1), terms.end(), std::greater<>());
  return std::accumulate(terms.begin(), terms.begin() + kept, 0.0);
}

}  // namespace

PtqOptions apq_like(int wbits, int abits) {
  PtqOptions options{wbits, abits};
  options.softmax_twin = SoftmaxTwin::Unsigned;
  options.eq_n = 20;
  options.eq_alpha = 0.3;
  return options;
}

// Of the block as it is quantized now. g2 is that of its output, all images one after the other.
double ApqLike::error(const std::vector<Tensor>& real, const Tensor& g2) const {
  std::vector<double> sums(real.size());
  int64_t images = 0;
  std::vector<int64_t> first;
  for (const Tensor& y : real) first.push_back(images), images += y.dim(0);
  parallel_for(static_cast<int64_t>(real.size()), [&](int64_t item) {
    const size_t j = at(item);
    const Tensor y = model_->block({Precision::Fake}, index_, (*inputs_)[j]);
    const int64_t n = y.size() / y.dim(0);
    for (int64_t b = 0; b < y.dim(0); ++b)
      sums[j] += largest_errors(y.data + b * n, real[j].data + b * n, g2.data + (first[j] + b) * n, n, share_);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void ApqLike::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord& record) {
  if (part_.kind != Part::Kind::Block) return Ptq::fit(group, seen, record);
  waiting_.emplace_back(group[0], std::move(seen.operands[0]));
  if (waiting_.size() < part_.layers().size()) return;
  std::vector<Tensor> real;
  for (const Tensor& x : *inputs_) real.push_back(model_->block({Precision::Float}, index_, x));
  const Tensor g2 = waiting_.back().second.g2;  // a block adds what its last layer makes: the gradient is that
  std::vector<std::shared_ptr<const Quantized>> chosen;
  for (auto& [layer, data] : waiting_) {
    Layer& own = *layer;
    calibrate_layer(own, data, options_, [&](Side side, const Grid& other, const Candidates& candidates) {
      std::vector<double> errors;
      for (const float c : candidates.multipliers) {
        const Grid grid = candidates.grid(std::vector<float>(at(candidates.units), c));
        own.quantize(side == Side::Left ? grid : other, side == Side::Left ? other : grid);
        errors.push_back(error(real, g2));
      }
      const auto best = std::min_element(errors.begin(), errors.end()) - errors.begin();
      return std::vector<int>(at(candidates.units), static_cast<int>(best));
    });
    chosen.push_back(std::move(own.quantized));  // the next one is tried with this one in float
    own.quantized = nullptr;
  }
  for (size_t i = 0; i < waiting_.size(); ++i) waiting_[i].first->quantized = chosen[i];
  waiting_.clear();
}

}  // namespace bcq
