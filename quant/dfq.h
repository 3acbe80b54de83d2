// DFQ ("Data-Free Quantization Through Weight Equalization and Bias Correction"): what can be had without any data. The
// ancestor of bias compensation: its correction is that of a mean input known from the norm that makes it. High-bias
// absorption, which is not exact, is left out.
#pragma once
#include "quant/method.h"

namespace bcq {

// s_i = sqrt(r1_i / r2_i), by which output i of the first layer is divided: r1 the range, largest less least, of its
// weights w1 [n, .], r2 that of what reads it in w2 [., n]. Afterwards both are sqrt(r1 r2). Between 1e-8 and 1e8; 1
// where a range is 0.   (eq. 11)
std::vector<float> equalizing_scales(const Tensor& w1, const Tensor& w2);
// E max(0, x), x normal with this mean and deviation.   (eq. 19)
double relu_mean(double mean, double deviation);

// Cross-layer equalization, folded into the float network: of layers with ReLU or attention between them (fc1 and fc2
// of an OPT, values and output projection), once each, for no pair changes another's ranges of columns. Without data.
class Equalization : public Method {
 public:
  Needs needs() const override { return {.folds = true}; }
  void begin(Model& model) override;
};

// Bias correction: adds -(Ŵ - W) E[x] to the biases of the layers whose mean input follows from parameters, one value a
// channel. What a norm makes has its shift for a mean and its scale for a deviation; so a linear layer behind it makes
// W β + b, attention leaves that as it is, and of ReLU it is the mean above. Returns the number of values.
// (section 4.2)
int64_t correct_biases(Model& model);

}  // namespace bcq
