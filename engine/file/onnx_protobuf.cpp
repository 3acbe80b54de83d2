#include <onnx/onnx_pb.h>

#include <limits>

#include "engine/core/check.h"
#include "engine/file/onnx_graph.h"

namespace bcq {
namespace {

constexpr int kIrVersion = 8;  // of ONNX 1.10 to 1.12, which have opsets 15 to 17

void put(const OnnxConstant& from, onnx::TensorProto& to) {
  using Proto = onnx::TensorProto;
  constexpr Proto::DataType kTypes[] = {Proto::FLOAT, Proto::UINT8, Proto::INT8, Proto::INT32, Proto::INT64};
  static_assert(std::size(kTypes) == std::variant_size_v<OnnxValues>);  // in the same order
  to.set_name(from.name);
  to.set_data_type(kTypes[from.values.index()]);
  for (const int64_t n : from.shape) to.add_dims(n);
  std::visit([&](const auto& v) { to.set_raw_data(v.data(), v.size() * sizeof v[0]); }, from.values);  // little-endian
}

void put(const OnnxAttribute& from, onnx::AttributeProto& to) {
  to.set_name(from.first);
  if (const auto* i = std::get_if<int64_t>(&from.second)) {
    to.set_type(onnx::AttributeProto::INT);
    to.set_i(*i);
  } else if (const auto* f = std::get_if<float>(&from.second)) {
    to.set_type(onnx::AttributeProto::FLOAT);
    to.set_f(*f);
  } else {
    to.set_type(onnx::AttributeProto::INTS);
    for (const int64_t value : std::get<std::vector<int64_t>>(from.second)) to.add_ints(value);
  }
}

void put(const OnnxNode& from, onnx::NodeProto& to) {
  to.set_name(from.name);
  to.set_op_type(from.op);
  for (const std::string& name : from.inputs) to.add_input(name);
  for (const std::string& name : from.outputs) to.add_output(name);
  for (const OnnxAttribute& attribute : from.attributes) put(attribute, *to.add_attribute());
}

void put(const char* name, const Shape& shape, onnx::ValueInfoProto& to) {
  to.set_name(name);
  onnx::TypeProto::Tensor& tensor = *to.mutable_type()->mutable_tensor_type();
  tensor.set_elem_type(onnx::TensorProto::FLOAT);
  tensor.mutable_shape()->add_dim()->set_dim_param("batch");
  for (const int64_t n : shape) tensor.mutable_shape()->add_dim()->set_dim_value(n);
}

}  // namespace

void require_onnx() {}

std::string onnx_bytes(const OnnxGraph& graph, const std::map<std::string, std::string>& metadata) {
  onnx::ModelProto model;
  model.set_ir_version(kIrVersion);
  model.add_opset_import()->set_version(OnnxGraph::kOpset);
  for (const auto& [key, value] : metadata) {
    if (key == "producer_name") {
      model.set_producer_name(value);
    } else if (key == "producer_version") {
      model.set_producer_version(value);
    } else {
      onnx::StringStringEntryProto& entry = *model.add_metadata_props();
      entry.set_key(key);
      entry.set_value(value);
    }
  }
  onnx::GraphProto& to = *model.mutable_graph();
  to.set_name("network");
  for (const OnnxConstant& constant : graph.constants) put(constant, *to.add_initializer());
  for (const OnnxNode& node : graph.nodes) put(node, *to.add_node());
  put(OnnxGraph::kInput, graph.input, *to.add_input());
  put(OnnxGraph::kOutput, graph.output, *to.add_output());
  require_usage(model.ByteSizeLong() <= std::numeric_limits<int32_t>::max(),
                "--format onnx: %d bytes, and an ONNX file holds at most 2 GB", model.ByteSizeLong());
  std::string bytes;
  require(model.SerializeToString(&bytes), "an ONNX file that cannot be written");
  return bytes;
}

}  // namespace bcq
