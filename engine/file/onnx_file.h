// ONNX files, written through the format's own protobuf schema, which comes with `make ONNX=1`: onnx_protobuf.cpp; in
// other builds stands onnx_none.cpp.
#pragma once
#include <map>
#include <string>

#include "engine/file/onnx_graph.h"

namespace bcq {

// UsageError where this build cannot write ONNX files.
void require_onnx();

// The bytes of a model of IR version 8 and opset 17. The input and the output are F32 [batch, ...]. The strings of
// `metadata` are for people: the producer's name and version are under "producer_name" and "producer_version", all else
// goes to metadata_props. UsageError as require_onnx() has it, and for more than the 2 GB that protobuf can hold.
std::string onnx_bytes(const OnnxGraph& graph, const std::map<std::string, std::string>& metadata);

}  // namespace bcq
