// Which outputs to compensate: the grid search of the official scripts (--gsfb), selecting without test images.
#pragma once
#include <string>
#include <vector>

#include "eval/vision.h"

namespace bcq {

// One choice of outputs and what the network compensated there is worth.
struct BcRanking {
  std::string sites;      // as --bc-sites has it; empty: nothing is compensated
  int64_t values = 0;     // fitted
  double kl = 0, se = 0;  // mean over images of KL(float prediction || quantized prediction), nats; standard error
  double logit_mse = 0;   // mean squared error of the logits
};

// Fit and rank nothing and each of the 31 unions of layers (conv, linear, matmul), attention, MLPs, blocks (and a
// Swin's merges and stages) and the output; lowest divergence first, of equal ones the first in this order. Each is
// fitted on the recipe's BC images and scored on up to `images` others of task.calib that neither it nor the quantizer
// has seen; UsageError when there are none. The quantized model is left without compensation.
std::vector<BcRanking> search_compensations(VisionTask& task, const Recipe& recipe, int64_t images,
                                            const Progress& progress);

json to_json(const std::vector<BcRanking>& ranking);

}  // namespace bcq
