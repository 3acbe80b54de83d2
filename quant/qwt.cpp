#include "quant/qwt.h"

#include <cmath>

#include "engine/core/check.h"
#include "quant/linalg.h"
#include "quant/tokens.h"

namespace bcq {

void Qwt::see_block(const Tensor& x, const Tensor& error) {
  seen_.push_back(x);
  errors_.push_back(error);
}

void Qwt::fit_block(int i, PartRecord& record) {
  const int64_t n = seen_.at(0).dim(-1), read = model_->info().read_tokens;
  std::vector<double> x(static_cast<size_t>(n)), e = x;  // means over all
  for (size_t j = 0; j < seen_.size(); ++j) {
    const std::vector<double> of_x = weighted_mean(seen_[j], read), of_e = weighted_mean(errors_[j], read);
    for (size_t c = 0; c < x.size(); ++c) {
      x[c] += (of_x[c] - x[c]) / static_cast<double>(j + 1);
      e[c] += (of_e[c] - e[c]) / static_cast<double>(j + 1);
    }
  }
  Moments moments(n);
  for (size_t j = 0; j < seen_.size(); ++j)
    moments.add(weighted_deviation(seen_[j], x, read), weighted_deviation(errors_[j], e, read));
  seen_.clear();
  errors_.clear();

  std::vector<double> c = moments.second(), w = moments.cross();
  double mean = 0;
  const size_t side = static_cast<size_t>(n);
  for (size_t k = 0; k < side; ++k) mean += c[k * side + k] / static_cast<double>(n);
  fill_lower(c, n);
  if (!(mean > 0) || !solve_rows(c, n, 1e-2 * mean, w)) return;
  Tensor weight({n, n}), bias({n});
  for (size_t r = 0; r < side; ++r) {
    double b = e[r];
    for (size_t k = 0; k < side; ++k) {
      weight[static_cast<int64_t>(r * side + k)] = static_cast<float>(w[r * side + k]);
      b -= w[r * side + k] * x[k];
    }
    bias[static_cast<int64_t>(r)] = static_cast<float>(b);
  }
  model_->set_block_linear(i, weight, bias);
  record.fitted += n * n + n;
}

}  // namespace bcq
