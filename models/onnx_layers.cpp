#include "models/onnx_layers.h"

#include <cmath>
#include <limits>

#include "engine/core/check.h"
#include "engine/file/onnx_grid.h"

namespace bcq {

std::string OnnxLayers::linear(const Layer& layer, const std::string& x) {
  graph.begin(layer.name);
  const bool rounds = quantized(layer);
  require_usage(!rounds || !layer.packed(), "--format onnx: %s has packed codes, which are not written", layer.name);
  const Grid left = rounds ? layer.quantized->left : Grid{}, right = rounds ? layer.quantized->right : Grid{};
  const std::string a = onnx_round(graph, left, x);
  const bool coded = !left.is_identity() && graph.nodes.back().op == "DequantizeLinear";
  const std::string w = onnx_weight(graph, right, layer.weight_in(precision_), coded);
  std::string y = graph.add("MatMul", {a, w});
  if (const Tensor& bias = layer.bias.in(precision_); !bias.empty()) y = add(y, graph.floats(bias));
  return compensate(layer.added, y);
}

std::string OnnxLayers::linear(const Weight& weight, const Tensor& bias, const std::string& x) {
  return add(graph.add("MatMul", {x, onnx_weight(graph, {}, weight, false)}), graph.floats(bias));
}

// a [B, H, N, K], b [B, H, K, M] -> [B, H, N, M]
std::string OnnxLayers::product(const Layer& layer, const std::string& a, const std::string& b, int64_t heads) {
  graph.begin(layer.name);
  if (!quantized(layer)) return compensate(layer.added, graph.add("MatMul", {a, b}));
  const Quantized& q = *layer.quantized;
  const OnnxRounded left = onnx_round_heads(graph, q.left, a, heads),
                    right = onnx_round_heads(graph, q.right, b, heads);
  const std::string y = graph.add("MatMul", {left.value, right.value});
  if (!q.renormalized) return compensate(layer.added, onnx_rescale(graph, left, right, y));
  // The scale of the weights is in their sum, too.
  for (int64_t u = 0; u < q.left->units(); ++u)
    require(fake_quantize(q.left.unit(u), Tensor({1, 1}, {1.f}))[0] > 0, "%s: a grid that rounds 1 to 0", layer.name);
  const std::string sum = graph.add("ReduceSum", {left.value, graph.ints({-1})});
  return compensate(layer.added, onnx_rescale(graph, {}, right, graph.add("Div", {y, sum})));
}

// Softmax; where it is renormalized, exp(score - largest of its row).
std::string OnnxLayers::attention_weights(const Layer& av, const std::string& scores) {
  if (!quantized(av) || !av.quantized->renormalized) return graph.add("Softmax", {scores}, {{"axis", int64_t{-1}}});
  const std::string largest = graph.add("ReduceMax", {scores}, {{"axes", std::vector<int64_t>{-1}}});
  return graph.add("Exp", {graph.add("Sub", {scores, largest})});
}

std::string OnnxLayers::attend(const Layer& qk, const Layer& av, const std::string& qkv, const AttentionForm& form,
                               int64_t channels, const Norm& q_norm, const Norm& k_norm, float eps) {
  const int64_t H = form.heads;
  const float scale_by = 1.f / std::sqrt(static_cast<float>(channels));
  graph.begin(qk.name);
  const auto parts = graph.add("Split", {qkv}, {{"axis", int64_t{-1}}}, 3);
  const auto heads = [&](size_t part) { return reshape(parts[part], {0, 0, H, channels}); };  // [B, N, H, d]
  std::string q = transpose(layer_norm(q_norm, eps, heads(0)), {0, 2, 1, 3});
  const std::string k = transpose(layer_norm(k_norm, eps, heads(1)), {0, 2, 3, 1});  // [B, H, d, N]
  const std::string v = transpose(heads(2), {0, 2, 1, 3});
  if (form.scales_queries) q = scale(q, scale_by);
  std::string scores = product(qk, q, k, H);
  if (!form.scales_queries) scores = scale(scores, scale_by);
  if (!form.bias.empty()) scores = add(scores, graph.floats(form.bias));
  if (const Tensor& mask = form.mask; !mask.empty()) {  // [W, T, T], the W windows of an image in the batch
    const int64_t W = mask.dim(0), T = mask.dim(1);
    scores = add(reshape(scores, {-1, W, H, T, T}), graph.floats(mask.reshaped({W, 1, T, T})));
    scores = reshape(scores, {-1, H, T, T});
  }
  const std::string mixed = product(av, attention_weights(av, scores), v, H);
  return reshape(transpose(mixed, {0, 2, 1, 3}), {0, 0, H * channels});
}

std::string OnnxLayers::mlp(const Layer& fc1, const Layer& fc2, const std::string& x, Gelu form) {
  return linear(fc2, gelu(linear(fc1, x), form));
}

std::string OnnxLayers::layer_norm(const Norm& norm, float eps, const std::string& x) {
  if (norm.weight.empty()) return x;
  graph.begin(norm.name);
  return graph.add("LayerNormalization", {x, graph.floats(norm.weight), graph.floats(norm.bias.loaded)},
                   {{"axis", int64_t{-1}}, {"epsilon", eps}});
}

std::string OnnxLayers::gelu(const std::string& x, Gelu form) {
  const auto times = [&](const std::string& a, const std::string& b) { return graph.add("Mul", {a, b}); };
  if (form == Gelu::Quick) return times(x, graph.add("Sigmoid", {scale(x, 1.702f)}));
  if (form == Gelu::Tanh) {  // 0.5 (1 + tanh(u)) is the sigmoid of 2 u
    const std::string inner = add(scale(times(times(x, x), x), 0.044715f), x);
    return times(x, graph.add("Sigmoid", {scale(inner, 1.59576912f)}));
  }
  const std::string erf = graph.add("Erf", {graph.add("Div", {x, graph.scalar(static_cast<float>(M_SQRT2))})});
  return scale(times(x, add(erf, graph.scalar(1))), 0.5f);
}

std::string OnnxLayers::scale_channels(const std::string& x, const Tensor& gamma) {
  return gamma.empty() ? x : graph.add("Mul", {x, graph.floats(gamma)});
}

std::string OnnxLayers::compensate(const Tensor& added, const std::string& y) {
  return precision_ == Precision::Float || added.empty() ? y : add(y, graph.floats(added));
}

std::string OnnxLayers::unfold_patches(const std::string& pixels, const ImageConfig& image, int64_t P) {
  const int64_t rows = image.height / P, columns = image.width / P;
  const std::string cut = reshape(pixels, {0, 3, rows, P, columns, P});
  return reshape(transpose(cut, {0, 2, 4, 1, 3, 5}), {0, rows * columns, 3 * P * P});
}

std::string OnnxLayers::prepend_tokens(const std::string& x, const Tensor& tokens, const Tensor& positions) {
  const int64_t K = tokens.dim(0);
  Tensor added = positions.clone();
  for (int64_t i = 0; i < tokens.size(); ++i) added[i] += tokens[i];
  return add(K ? graph.add("Pad", {x, graph.ints({0, K, 0, 0, 0, 0})}) : x, graph.floats(added));
}

std::string OnnxLayers::gather_rows(const std::string& x, const std::vector<int64_t>& index, const Shape& shape) {
  return reshape(graph.add("Gather", {x, graph.ints(index)}, {{"axis", int64_t{1}}}), shape);
}

std::string OnnxLayers::select_token(const std::string& x, int64_t index) {
  return graph.add("Gather", {x, graph.constant(std::vector<int64_t>{index}, {})}, {{"axis", int64_t{1}}});
}

std::string OnnxLayers::mean_tokens(const std::string& x, int64_t first) {
  constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
  const std::string rows =
      first ? graph.add("Slice", {x, graph.ints({first}), graph.ints({kEnd}), graph.ints({1})}) : x;
  return graph.add("ReduceMean", {rows}, {{"axes", std::vector<int64_t>{1}}, {"keepdims", int64_t{0}}});
}

std::string OnnxLayers::reshape(const std::string& x, const std::vector<int64_t>& shape) {
  return graph.add("Reshape", {x, graph.ints(shape)});
}

std::string OnnxLayers::transpose(const std::string& x, const std::vector<int64_t>& order) {
  return graph.add("Transpose", {x}, {{"perm", order}});
}

}  // namespace bcq
