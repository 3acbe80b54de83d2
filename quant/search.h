// One search for every scale that PTQ4ViT looks for.
//
// Seen from the output of a layer, [samples, heads, rows, columns], all operands are
// alike: a grid has one or more units, and a unit decides a part of the output that
// no other unit reaches. A row block of a weight owns a range of columns, a head of
// an activation owns that head, a grid with a single unit owns everything. So the
// units are searches of their own: each candidate is tried, the product is computed,
// and the part is scored. ("PTQ4ViT", section 3.3)
#pragma once
#include <functional>
#include <vector>

#include "quant/method.h"

namespace bcq {

// How similar a quantized output Ŷ is to the float output Y; summed over a unit's part.
enum class Metric {
  Hessian,  // -Σ G² (Y - Ŷ)², G the gradient of the probe loss at the layer's output
  Cosine,   // cosine of Y and Ŷ along the unit's columns; along the positions when a unit is one column
  L2        // -Σ (Y - Ŷ)²
};

enum class Side { Left, Right };  // of the product; the right operand of a linear layer is its weight

// What the grid of one operand may be.
struct Candidates {
  std::vector<float> multipliers;  // c_0 ... c_{n-1}
  int64_t units = 1;
  std::function<Grid(const std::vector<float>&)> grid;  // the grid with these multipliers, one a unit
};

// The best candidate of each unit for the operand at `side`, while the other operand is on the grid `other` (Identity:
// float). Ties go to the lower index; when all candidates tie, to the multiplier closest to 1. A unit whose weights g2
// sum to 0, or to nothing finite, is scored with 1s. Products are those of Precision::Integer where both operands have
// a grid of 8 bits or less: exact sums, and several times as fast.
// The result does not depend on the number of threads. Each thread needs room for the quantized operand and the output
// of some samples, each candidate for the codes of a weight: some hundred megabytes for ViT-B.
std::vector<int> search(const Layer& layer, const Operands& data, Metric metric, Side side, const Grid& other,
                        const Candidates& candidates);

}  // namespace bcq
