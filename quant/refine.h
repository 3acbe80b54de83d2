// Weights refitted before they are rounded; what a rounded weight costs at its layer's output, and a descent on its
// codes that can only lower it.
#pragma once
#include <cstdint>
#include <vector>

#include "quant/gptq.h"
#include "quant/moments.h"

namespace bcq {

// Weights refitted to the inputs they will get: those that quantized layers before them make.
struct Refit {
  std::vector<Tensor> weights;  // V of each W
  double ridge = 0;             // λ as a share of C's mean diagonal; infinite: V = W
};

// What each of `weights`, W [out, in], should have been, given inputs x~ where it had x:
//   min_V E || W x - V x~ ||² + λ || V - W ||²   =>   V = W + W (E x x~ᵀ - C) (C + λ)⁻¹,  C = E x~ x~ᵀ,
// products centred when `centred`, for a bias fitted afterwards takes up the means. The two halves of the
// windows, a and b, choose λ: the one whose V, fitted on either half, errs least on the other; where none does
// better than W, V is W. V is then fitted on both halves, which a holds afterwards.
Refit refit(const std::vector<Tensor>& weights, Moments& a, const Moments& b, bool centred);

// Σ (q - v) c (q - v)ᵀ over the rows of q, v [out, in]; v may be empty for 0. c [in, in] row-major, of which the upper
// triangle is read. With c = E x xᵀ it is E || q x - v x ||²; with the covariance, what is left of that once the
// layer's bias has been fitted.
double quadratic_error(const Tensor& q, const Tensor& v, const std::vector<double>& c);

// || q x - v x ||² / out for the input x [in]. Of mean inputs it is what fitting the bias takes away from the mean
// error.
double squared_error(const Tensor& q, const Tensor& v, const std::vector<double>& x);

// Lowers quadratic_error(q.values, v, c), scales and zero points as they are: column by column each row takes the
// code that is best given its others, up to `sweeps` times or until none changes. A code changes only where the
// error falls, so the result is never worse than what it starts from. (Coordinate descent as in COMQ and QuantEase)
void refine(QuantizedWeight& q, const Tensor& v, const std::vector<double>& c, int sweeps);

// Lowers it by the scales, codes and zero points as they are: for every row those of all its groups at once,
//   min_s (Σ_g s_g p_g - v) c (Σ_g s_g p_g - v)ᵀ,  p_g = codes less zero points in group g, 0 elsewhere,
// which is a system of as many equations as there are groups. A row keeps its scales where the new ones are not
// positive or, rounded to what `grid` stores, no better.
void refit_scales(QuantizedWeight& q, const Tensor& v, const std::vector<double>& c, const WeightGrid& grid);

// quadratic_error() of each row.
std::vector<double> row_errors(const Tensor& q, const Tensor& v, const std::vector<double>& c);

}  // namespace bcq
