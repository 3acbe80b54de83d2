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

std::string OnnxGraph::constant(OnnxValues values, const Shape& shape) {
  const size_t n = std::visit([](const auto& v) { return v.size(); }, values);
  require(static_cast<int64_t>(n) == numel(shape), "%d values do not fill a constant of shape %s", n, to_string(shape));
  constants.push_back({format("%s/constant_%d", scope_, named_++), shape, std::move(values)});
  return constants.back().name;
}

}  // namespace bcq
