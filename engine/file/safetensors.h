// safetensors: read by mmap, validated as the reference reader validates
// (huggingface/safetensors tensor.rs), written whole or not at all.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/gemm/weight.h"

namespace bcq {

enum class DType { Bool, U8, I8, I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64 };
const char* name(DType dtype);  // "F32"
size_t bytes_of(DType dtype);

struct TensorInfo {
  DType dtype;
  Shape shape;
  const std::byte* bytes;      // inside the mapped file, or in memory
  std::shared_ptr<void> file;  // keeps the mapping, or the memory, alive
  std::string path;            // the file it came from, for messages; empty: none

  size_t size() const { return static_cast<size_t>(numel(shape)) * bytes_of(dtype); }  // in bytes
};

// A tensor as a file holds it: F32 (the tensor's own memory), or F16 or BF16, rounded half to even. Error, naming
// `name`, for a value that is not finite there.
TensorInfo store(const Tensor& t, DType dtype, const std::string& name);
TensorInfo store(Shape shape, std::vector<int32_t> values);  // as I32
Tensor load(const TensorInfo& t, const std::string& name);   // its values, as SafeTensors::get has them

// The pages of a tensor of a mapped file may leave memory; they come back when they are read again.
void forget(const TensorInfo& t);

struct PackedFormat;  // engine/file/packed_file.h

// All tensors of a model: one file, or the shards a *.safetensors.index.json names.
class SafeTensors {
 public:
  // path: a .safetensors file or a .safetensors.index.json. Throws InputError naming the file and
  // the tensor for every case the reference reader refuses, duplicate keys included.
  static SafeTensors open(const std::string& path);

  // Tensors that are mapped or in memory; path: for messages.
  SafeTensors(std::string path, std::map<std::string, TensorInfo> tensors, std::map<std::string, std::string> metadata)
      : path_(std::move(path)), tensors_(std::move(tensors)), metadata_(std::move(metadata)) {}

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }

  // The tensor as float32 (F32 borrowed from the mapping when aligned, F16/BF16/F64 converted).
  // Throws InputError when it is missing, of another shape, of an integer type or not finite:
  // the message names file, tensor, expected and found.
  Tensor get(const std::string& name, const Shape& expected) const;
  Tensor get(const std::string& name) const;  // any shape
  // The same as an operand that stays as it is stored: F16 and BF16 are widened where a product needs them.
  Weight get_weight(const std::string& name, const Shape& expected) const;
  // An integer tensor (I8, U8, I16, U16, I32, U32, I64) widened to int64.
  std::vector<int64_t> get_ints(const std::string& name, Shape* shape) const;

 private:
  std::string path_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Where a file keeps a tensor that goes by another name there: the names in the file, in the order in
// which they are joined along the first dimension (query, key and value of a fused projection).
using NameMap = std::function<std::vector<std::string>(const std::string& name)>;

// A position in the names of a checkpoint, so that code nests as the names do:
//   Loader(file).sub("blocks").sub(3).sub("attn.qkv").get("weight", {3 * D, D})
// and it knows in the end which tensors nobody asked for.
class Loader {
 public:
  // packed: how packed weights are kept in the file, which is written elsewhere; null: there are none.
  explicit Loader(const SafeTensors& file, NameMap names = nullptr,
                  std::shared_ptr<const PackedFormat> packed = nullptr)
      : file_(&file), names_(std::move(names)), packed_(std::move(packed)), asked_(std::make_shared<Asked>()) {}
  Loader sub(const std::string& child) const {
    Loader inner = *this;
    inner.prefix_ += child + ".";
    return inner;
  }
  Loader sub(int64_t index) const { return sub(std::to_string(index)); }
  const SafeTensors& file() const { return *file_; }
  const PackedFormat* packed() const { return packed_.get(); }
  std::string name() const { return prefix_.substr(0, prefix_.size() - (prefix_.empty() ? 0 : 1)); }  // of the position
  bool has(const std::string& child) const;
  // InputError as SafeTensors::get has it.
  Tensor get(const std::string& child, const Shape& expected) const;
  Weight get_weight(const std::string& child, const Shape& expected) const;
  void ignore(const std::string& child) const;  // as if it had been asked for
  // Of tensors that go by one name.
  std::vector<int64_t> get_ints(const std::string& child, Shape* shape) const;  // as SafeTensors has it
  const TensorInfo& raw(const std::string& child) const;  // as the file has it, asked for but not counted
  const Shape& shape(const std::string& child) const;
  std::string describe(const std::string& child) const;           // "FILE: tensor "NAME"", for messages
  void count(int64_t values) const { asked_->values += values; }  // more values than those of tensors asked for
  // Names of the file that no get() of this loader or of its subs has asked for.
  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (const auto& entry : file_->tensors())
      if (!asked_->names.count(entry.first)) names.push_back(entry.first);
    return names;
  }
  int64_t values() const { return asked_->values; }  // of all tensors that were asked for
  // Those, by the names they were asked for: where each stands in the file.
  const std::map<std::string, std::vector<std::string>>& places() const { return asked_->places; }

 private:
  std::vector<std::string> names_of(const std::string& child) const;
  // Where a tensor of `values` values is, noted as asked for. InputError when the file does not have it.
  std::vector<std::string> ask(const std::string& child, int64_t values) const;
  const SafeTensors* file_;
  NameMap names_;
  std::shared_ptr<const PackedFormat> packed_;
  std::string prefix_;
  struct Asked {
    std::set<std::string> names;
    std::map<std::string, std::vector<std::string>> places;
    int64_t values = 0;
  };
  std::shared_ptr<Asked> asked_;
};

constexpr uint64_t kMaxHeader = 100'000'000;  // bytes: the reference reader's limit

// Write tensors as the reference writer does (names in its order, header padded to 8 bytes, metadata
// {"format": "pt"} plus what is given, with bytes that are not UTF-8 replaced), as write_file() does.
// Throws Error when it cannot be written; nothing is left behind then.
void write_safetensors(const std::string& path, const std::map<std::string, TensorInfo>& tensors,
                       const std::map<std::string, std::string>& metadata = {});
// The same for float32 tensors. Error when a value is not finite.
void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace bcq
