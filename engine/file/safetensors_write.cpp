// Writing of safetensors; reading: safetensors.cpp.
#include <algorithm>
#include <string_view>
#include <vector>

#include "engine/core/check.h"
#include "engine/core/half.h"
#include "engine/file/json.h"
#include "engine/file/safetensors.h"
#include "engine/kernels/kernels.h"

namespace bcq {

TensorInfo store(const Tensor& t, DType dtype, const std::string& name) {
  require(!t.empty(), "tensor %s cannot be written: it has no values", quoted(name));
  const int64_t n = t.size();
  bool finite = kernels().all_finite(t.data, n);
  TensorInfo info{dtype, t.shape, reinterpret_cast<const std::byte*>(t.data), t.owner, ""};
  if (dtype != DType::F32) {
    require(dtype == DType::F16 || dtype == DType::BF16, "a tensor cannot be stored as %s", bcq::name(dtype));
    const auto halves = std::make_shared<std::vector<uint16_t>>(static_cast<size_t>(n));
    const uint16_t exponent = dtype == DType::F16 ? 0x7c00 : 0x7f80;
    for (size_t i = 0; i < halves->size(); ++i) {
      const float x = t.data[i];
      (*halves)[i] = dtype == DType::F16 ? to_f16(x) : to_bf16(x);
      finite = finite && ((*halves)[i] & exponent) != exponent;
    }
    info.bytes = reinterpret_cast<const std::byte*>(halves->data());
    info.file = halves;
  }
  require(finite, "tensor %s has values that are not finite%s", quoted(name),
          dtype == DType::F16 ? ", or too large for 16 bits" : "");
  return info;
}

TensorInfo store(Shape shape, std::vector<int32_t> values) {
  const auto owner = std::make_shared<std::vector<int32_t>>(std::move(values));
  return {DType::I32, std::move(shape), reinterpret_cast<const std::byte*>(owner->data()), owner, ""};
}

void write_safetensors(const std::string& path, const std::map<std::string, TensorInfo>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  // The reference writer sorts by descending dtype (its order is that of the enumeration), then by name.
  std::vector<std::pair<std::string, TensorInfo>> sorted(tensors.begin(), tensors.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.dtype > b.second.dtype; });
  try {
    json all_metadata = metadata;
    all_metadata["format"] = "pt";  // without it transformers refuses the file
    std::string header = "{\"__metadata__\":" + dump(all_metadata);
    std::vector<std::string_view> pieces = {{}, {}};
    uint64_t offset = 0;
    for (const auto& [name, t] : sorted) {
      require(name != "__metadata__", "%s: tensor %s cannot be written: the name is reserved", path, quoted(name));
      header += format(",%s:{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%d,%d]}", json(name).dump(),
                       bcq::name(t.dtype), json(t.shape).dump(), offset, offset + t.size());
      pieces.emplace_back(reinterpret_cast<const char*>(t.bytes), t.size());
      offset += t.size();
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    require(length <= kMaxHeader, "%s: not written: its header would exceed the format's 100 MB", path);
    pieces[0] = {reinterpret_cast<const char*>(&length), sizeof length};
    pieces[1] = header;
    write_file(path, pieces);
  } catch (const json::exception& error) {  // dump() of a name that is not UTF-8
    throw Error(format("%s: not written: a name is not valid UTF-8", path));
  }
}

void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::map<std::string, TensorInfo> stored;
  try {
    for (const auto& [name, t] : tensors) stored[name] = store(t, DType::F32, name);
  } catch (const Error& error) {
    throw Error(path + ": not written: " + error.what());
  }
  write_safetensors(path, stored, metadata);
}

}  // namespace bcq
