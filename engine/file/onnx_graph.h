// A network as an ONNX graph that is built node by node: names of values are strings, as the format has them. The file
// itself is written through the format's own protobuf schema, which comes with `make ONNX=1`: onnx_protobuf.cpp; in
// other builds stands onnx_none.cpp.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

// The types of constants: F32, U8, S8, I32, I64.
using OnnxValues = std::variant<std::vector<float>, std::vector<uint8_t>, std::vector<int8_t>, std::vector<int32_t>,
                                std::vector<int64_t>>;

// A constant of the graph, row-major.
struct OnnxConstant {
  std::string name;
  Shape shape;  // [] is a scalar
  OnnxValues values;
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
  std::string constant(OnnxValues values, const Shape& shape);
  std::string floats(const Tensor& t) { return constant(std::vector<float>(t.data, t.data + t.size()), t.shape); }
  std::string scalar(float value) { return constant(std::vector<float>{value}, {}); }
  std::string ints(const std::vector<int64_t>& values) {
    return constant(values, {static_cast<int64_t>(values.size())});
  }
  std::string codes(std::vector<uint8_t> values, const Shape& shape) { return constant(std::move(values), shape); }

 private:
  std::string scope_;
  int64_t named_ = 0;
};

// UsageError where this build cannot write ONNX files.
void require_onnx();

// The bytes of a model of IR version 8 and opset 17. The input and the output are F32 [batch, ...]. The strings of
// `metadata` are for people: the producer's name and version are under "producer_name" and "producer_version", all else
// goes to metadata_props. UsageError as require_onnx() has it, and for more than the 2 GB that protobuf can hold.
std::string onnx_bytes(const OnnxGraph& graph, const std::map<std::string, std::string>& metadata);

}  // namespace bcq
