// A network as an ONNX graph that is built node by node: names of values are strings, as the format has them. What the
// format's schema is needed for, the file itself, is onnx_file.h's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

enum class OnnxType { F32, U8, S8, I32, I64 };

// A constant of the graph, row-major, little-endian.
struct OnnxConstant {
  std::string name;
  OnnxType type;
  Shape shape;  // [] is a scalar
  std::vector<std::byte> bytes;
};

using OnnxAttribute = std::pair<std::string, std::variant<int64_t, float, std::vector<int64_t>>>;

struct OnnxNode {
  std::string name, op;
  std::vector<std::string> inputs, outputs;
  std::vector<OnnxAttribute> attributes;
};

class OnnxGraph {
 public:
  static constexpr int kOpset = 17;  // the first with LayerNormalization
  static constexpr const char *kInput = "pixel_values", *kOutput = "logits";

  Shape input, output;  // less the batch, whose dimension is open
  std::vector<OnnxConstant> constants;
  std::vector<OnnxNode> nodes;  // in the order they run

  // What names of nodes and constants begin with from here on: "blocks.0.attn.qkv".
  void begin(const std::string& scope) { scope_ = scope; }
  // An operation of this name in opset 17; the names of its outputs are made here.
  std::string add(const std::string& op, const std::vector<std::string>& inputs,
                  const std::vector<OnnxAttribute>& attributes = {}) {
    return add(op, inputs, attributes, 1)[0];
  }
  std::vector<std::string> add(const std::string& op, const std::vector<std::string>& inputs,
                               const std::vector<OnnxAttribute>& attributes, int outputs);
  // `value`, which the last node made, is the output. Error when it is another's.
  void finish(const std::string& value);

  // Constants; they give their names. Values in the shape given: as many as it holds.
  std::string floats(const Tensor& values);
  std::string floats(const std::vector<float>& values, const Shape& shape);
  std::string scalar(float value) { return floats(std::vector<float>{value}, {}); }
  std::string ints(const std::vector<int64_t>& values);  // I64 [n]
  std::string index(int64_t value);                      // I64 []
  std::string ints32(const std::vector<int32_t>& values, const Shape& shape);
  std::string codes(const std::vector<uint8_t>& values, const Shape& shape);
  std::string signed_codes(const std::vector<int8_t>& values, const Shape& shape);

 private:
  template <class T>
  std::string constant(OnnxType type, const T* values, const Shape& shape);

  std::string scope_;
  int64_t named_ = 0;
};

}  // namespace bcq
