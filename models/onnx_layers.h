// What the networks' forward passes are made of, as nodes of an ONNX graph: engine/nn, operation by operation.
#pragma once
#include <string>
#include <vector>

#include "engine/file/onnx_graph.h"
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "models/model.h"

namespace bcq {

// Values are names in the graph; shapes are those of the functions of these names in engine/nn. In Precision::Float the
// network as loaded, else as it is quantized and compensated.
class OnnxLayers {
 public:
  OnnxLayers(OnnxGraph& to, Precision in) : graph(to), precision_(in) {}

  OnnxGraph& graph;

  // Layer::run: x [B, ..., in] -> [B, ..., out], with its bias and its compensation.
  std::string linear(const Layer& layer, const std::string& x);
  // x Wᵀ + b in float: what stands beside a block.
  std::string linear(const Weight& weight, const Tensor& bias, const std::string& x);
  std::string attend(const Layer& qk, const Layer& av, const std::string& qkv, const AttentionForm& form,
                     int64_t channels, const Norm& q_norm = {}, const Norm& k_norm = {}, float eps = 0);
  std::string mlp(const Layer& fc1, const Layer& fc2, const std::string& x, Gelu form = Gelu::Erf);
  std::string layer_norm(const Norm& norm, float eps, const std::string& x);  // x itself where there is none
  std::string gelu(const std::string& x, Gelu form);

  std::string add(const std::string& a, const std::string& b) { return graph.add("Add", {a, b}); }
  std::string scale(const std::string& x, float s) { return graph.add("Mul", {x, graph.scalar(s)}); }
  std::string scale_channels(const std::string& x, const Tensor& gamma);  // x itself where gamma is empty
  std::string concat(const std::vector<std::string>& parts) {
    return graph.add("Concat", parts, {{"axis", int64_t{-1}}});
  }
  // add_compensation(): y itself where `added` is empty or not of this precision.
  std::string compensate(const Tensor& added, const std::string& y);

  std::string unfold_patches(const std::string& pixels, const ImageConfig& image, int64_t P);
  // tokens [K, D] and x [B, N, D], each with its position of [K+N, D] -> [B, K+N, D]
  std::string prepend_tokens(const std::string& x, const Tensor& tokens, const Tensor& positions);
  // Rows of x [B, N, D], in this order, as `shape`; a -1 in it is what the batch makes of it.
  std::string gather_rows(const std::string& x, const std::vector<int64_t>& index, const Shape& shape);
  std::string select_token(const std::string& x, int64_t index);     // [B, N, D] -> [B, D]
  std::string mean_tokens(const std::string& x, int64_t first = 0);  // of rows from this one on: [B, N, D] -> [B, D]
  std::string reshape(const std::string& x, const std::vector<int64_t>& shape);  // 0: as in x, -1: what is left

 private:
  std::string transpose(const std::string& x, const std::vector<int64_t>& order);
  std::string product(const Layer& layer, const std::string& a, const std::string& b, int64_t heads);
  std::string attention_weights(const Layer& av, const std::string& scores);
  bool quantized(const Layer& layer) const { return precision_ != Precision::Float && layer.quantized != nullptr; }

  Precision precision_;
};

}  // namespace bcq
