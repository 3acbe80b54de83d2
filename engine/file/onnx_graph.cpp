#include "engine/file/onnx_graph.h"

#include "engine/core/check.h"

namespace bcq {

std::vector<std::string> OnnxGraph::add(const std::string& op, const std::vector<std::string>& inputs,
                                        const std::vector<OnnxAttribute>& attributes, int outputs) {
  OnnxNode node{format("%s/%s_%d", scope_, op, named_++), op, inputs, {}, attributes};
  for (int i = 0; i < outputs; ++i) node.outputs.push_back(node.name + (i ? format(":%d", i) : ""));
  nodes.push_back(node);
  return node.outputs;
}

void OnnxGraph::finish(const std::string& value) {
  require(!nodes.empty() && nodes.back().outputs == std::vector<std::string>{value},
          "an ONNX graph does not end in its output");
  nodes.back().outputs[0] = kOutput;
}

template <class T>
std::string OnnxGraph::constant(OnnxType type, const T* values, const Shape& shape) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values);
  const auto size = static_cast<size_t>(numel(shape)) * sizeof(T);
  constants.push_back({format("%s/constant_%d", scope_, named_++), type, shape, {bytes, bytes + size}});
  return constants.back().name;
}

std::string OnnxGraph::floats(const Tensor& values) { return constant(OnnxType::F32, values.data, values.shape); }

namespace {

template <class T>
const T* checked(const std::vector<T>& values, const Shape& shape) {
  require(static_cast<int64_t>(values.size()) == numel(shape), "%d values do not fill a constant of shape %s",
          values.size(), to_string(shape));
  return values.data();
}

}  // namespace

std::string OnnxGraph::floats(const std::vector<float>& values, const Shape& shape) {
  return constant(OnnxType::F32, checked(values, shape), shape);
}
std::string OnnxGraph::ints(const std::vector<int64_t>& values) {
  return constant(OnnxType::I64, values.data(), {static_cast<int64_t>(values.size())});
}
std::string OnnxGraph::index(int64_t value) { return constant(OnnxType::I64, &value, {}); }
std::string OnnxGraph::ints32(const std::vector<int32_t>& values, const Shape& shape) {
  return constant(OnnxType::I32, checked(values, shape), shape);
}
std::string OnnxGraph::codes(const std::vector<uint8_t>& values, const Shape& shape) {
  return constant(OnnxType::U8, checked(values, shape), shape);
}
std::string OnnxGraph::signed_codes(const std::vector<int8_t>& values, const Shape& shape) {
  return constant(OnnxType::S8, checked(values, shape), shape);
}

}  // namespace bcq
