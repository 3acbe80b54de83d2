#include "quant/tokens.h"

#include <algorithm>
#include <cmath>

#include "engine/nn/ops.h"

namespace bcq {
namespace {

int64_t tokens_of(const Tensor& x) { return x.rank() > 2 ? x.dim(-2) : 1; }

}  // namespace

float token_weight(int64_t token, int64_t tokens, int64_t read) {
  if (read == 0 || read >= tokens) return 1;
  const double n = static_cast<double>(tokens);
  return static_cast<float>(n / 2 / static_cast<double>(token < read ? read : tokens - read));
}

std::vector<float> row_weights(const Tensor& x, int64_t read) {
  std::vector<float> weights(static_cast<size_t>(x.rows()));
  for (int64_t r = 0; r < x.rows(); ++r) weights[at(r)] = token_weight(r % tokens_of(x), tokens_of(x), read);
  return weights;
}

std::vector<double> weighted_mean(const Tensor& x, int64_t read) {
  constexpr int64_t kColumns = 64;
  const int64_t n = x.dim(-1);
  std::vector<double> mean(static_cast<size_t>(n));
  parallel_for((n + kColumns - 1) / kColumns, [&](int64_t part) {
    const int64_t begin = part * kColumns, end = std::min(n, begin + kColumns);
    for (int64_t r = 0; r < x.rows(); ++r) {
      const double weight = token_weight(r % tokens_of(x), tokens_of(x), read) / static_cast<double>(x.rows());
      for (int64_t c = begin; c < end; ++c) mean[at(c)] += weight * x[r * n + c];
    }
  });
  return mean;
}

Tensor weighted_deviation(const Tensor& x, const std::vector<double>& mean, int64_t read) {
  const int64_t n = x.dim(-1);
  Tensor y = x.clone();
  for_rows(y, [&](int64_t r) {
    const float root = std::sqrt(token_weight(r % tokens_of(x), tokens_of(x), read));
    for (int64_t c = 0; c < n; ++c) y[r * n + c] = root * static_cast<float>(y[r * n + c] - mean[at(c)]);
  });
  return y;
}

}  // namespace bcq
