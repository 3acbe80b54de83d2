#include "engine/core/check.h"
#include "engine/file/onnx_graph.h"

namespace bcq {

void require_onnx() {
  throw UsageError("--format onnx: this program was built without ONNX; make ONNX=1 builds it with (libonnx-dev)");
}

std::string onnx_bytes(const OnnxGraph&, const std::map<std::string, std::string>&) {
  require_onnx();
  return {};
}

}  // namespace bcq
