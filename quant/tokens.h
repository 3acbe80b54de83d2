// What the tokens of a sequence count for. Where the head of a vision transformer reads one token, what is lost there
// is lost for good, while errors of the others average out: the gradient of the logits is a hundred times larger there
// in the first blocks, a thousand times in the last. That token counts as much as all others together.
#pragma once
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

// The weight of a token: the first `read` of a sequence weigh as much as all others together, the mean is 1. read 0: 1.
float token_weight(int64_t token, int64_t tokens, int64_t read);
// Of all rows of x [samples, ..., tokens, n] or [samples, n], whose tokens are equal then.
std::vector<float> row_weights(const Tensor& x, int64_t read);
// Mean of the rows of x by these weights, [n].
std::vector<double> weighted_mean(const Tensor& x, int64_t read);
// (x - mean) times the root of what its token counts for: second moments of these are weighted covariances.
Tensor weighted_deviation(const Tensor& x, const std::vector<double>& mean, int64_t read);

}  // namespace bcq
