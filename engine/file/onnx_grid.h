// What quantized operands are in an ONNX graph: QuantizeLinear and DequantizeLinear where a grid is one of 8-bit codes
// with a scale and a zero point, other standard operators of the same values where it is not.
#pragma once
#include <string>
#include <vector>

#include "engine/file/onnx_graph.h"
#include "engine/gemm/weight.h"
#include "engine/grid/grid.h"

namespace bcq {

// x rounded to a grid of one unit; x itself for the identity.
//   uniform, asymmetric:  QuantizeLinear to U8, DequantizeLinear; a Clip before it where the grid has fewer than 256
//                         codes. Of more than 8 bits, or where no zero point of 8 bits fits: Div, Round, Clip, Mul.
//   uniform+offset:       the same between Add and Sub of the channels' offsets
//   table:                QuantizeLinear to U8, Gather of the table, DequantizeLinear
//   twin-gelu:            the sum of two such pairs, each behind a Clip
//   twin-softmax:         the same; the coarse range, whose step is one over an integer, as Mul, Round, Div
//   log2, log-sqrt2, adalog: the level by Log, Round and Clip, in floats (the engine compares with the levels' edges),
//                         then Gather of the levels' values
// UsageError naming the grid where it is of another kind.
std::string onnx_round(OnnxGraph& graph, const Grid& grid, const std::string& x);

// An operand x [B, heads, ...] of a product: of head h it is scale[h] times this value; without scales it is the value.
struct OnnxRounded {
  std::string value;
  std::vector<float> scale = {};
};
// x rounded to a grid with units along axis 1, or with one. Runtimes have no integer products of activations with
// several scales, so the heads' scales are taken out: x / scale is rounded to integers with one zero point (floats
// where 8 bits do not hold those of all heads).
OnnxRounded onnx_round_heads(OnnxGraph& graph, const Grid& grid, const std::string& x, int64_t heads);
// The product y of two such values, times the scales of both.
std::string onnx_rescale(OnnxGraph& graph, const OnnxRounded& a, const OnnxRounded& b, const std::string& y);

// A weight [out, in] that is rounded to the grid, as [in, out]: codes of 8 bits and DequantizeLinear with a scale and a
// zero point a column, or one; floats where the grid is none of at most 8 bits with such, or they do not fit. Codes of
// fewer bits take 8, too: opset 17 has no smaller type. They are S8 with a zero point of 0; those of 8 bits are U8,
// because processors without VNNI add pairs of U8 S8 products in 16 bits, which cuts off those of 8-bit codes. Unless
// it `meets_codes`, rounded activations, the weight is made by Cast, Sub and Mul: ONNX Runtime takes a DequantizeLinear
// beside floats as leave to round those. Error when values are not on the grid.
std::string onnx_weight(OnnxGraph& graph, const Grid& grid, const Weight& weight, bool meets_codes);

}  // namespace bcq
