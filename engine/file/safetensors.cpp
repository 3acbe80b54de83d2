// safetensors, read. A file is: 8 bytes N (little-endian), N bytes of JSON
// header, the tensors' bytes. Everything the header says is checked before any byte of
// data is looked at: the tensors, by offset, must cover the data exactly, without holes
// or overlap, and every size must follow from shape and dtype. Refuses dtypes that the
// engine has no use for (8-bit floats and smaller, complex) like unknown ones.
// A file that another process shortens while it is mapped ends this one (SIGBUS), as any
// mapping would; writers that rename, like write_safetensors, never do that.
#include "engine/file/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/file/json.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and used in place");

constexpr uint64_t kLengthBytes = 8;

// Elements of T at an address of any alignment.
template <class T>
T value_at(const std::byte* bytes, int64_t i) {
  T value;
  std::memcpy(&value, bytes + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

template <class T>
int64_t integer_at(const std::byte* bytes, int64_t i) {
  return value_at<T>(bytes, i);
}

// One for each DType, in their order.
struct DTypeRow {
  const char* name;
  size_t bytes;
  int64_t (*integer_at)(const std::byte* bytes, int64_t i) = nullptr;  // null: not read as integers
};
constexpr DTypeRow kDTypes[] = {{"BOOL", 1},
                                {"U8", 1, integer_at<uint8_t>},
                                {"I8", 1, integer_at<int8_t>},
                                {"I16", 2, integer_at<int16_t>},
                                {"U16", 2, integer_at<uint16_t>},
                                {"F16", 2},
                                {"BF16", 2},
                                {"I32", 4, integer_at<int32_t>},
                                {"U32", 4, integer_at<uint32_t>},
                                {"F32", 4},
                                {"F64", 8},
                                {"I64", 8, integer_at<int64_t>},
                                {"U64", 8}};
static_assert(std::size(kDTypes) == static_cast<size_t>(DType::U64) + 1);

const DTypeRow& row(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

// Shapes in messages come from the file: no longer than a line.
std::string short_shape(const Shape& shape) {
  constexpr size_t kShown = 12;
  if (shape.size() <= kShown) return to_string(shape);
  return format("%d dimensions %s...", shape.size(), to_string(Shape(shape.begin(), shape.begin() + kShown)));
}

// ---- The file in memory ------------------------------------------------------------------------

struct Mapping {
  const std::byte* bytes = nullptr;
  size_t size = 0;

  explicit Mapping(const std::string& path) {
    struct stat status = {};
    // Asked before opening, because opening a pipe would wait for its writer.
    require_input(::stat(path.c_str(), &status) == 0, "%s: cannot be opened: %s", path, std::strerror(errno));
    require_input(!S_ISDIR(status.st_mode), "%s: is a directory; name the .safetensors file in it", path);
    require_input(S_ISREG(status.st_mode), "%s: is not a regular file, so it cannot be mapped", path);
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    require_input(fd >= 0, "%s: cannot be opened: %s", path, std::strerror(errno));
    const bool sized = ::fstat(fd, &status) == 0;
    size = sized ? static_cast<size_t>(status.st_size) : 0;
    void* mapped = size ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
    const int error = errno;
    ::close(fd);
    require_input(sized && mapped != MAP_FAILED, "%s: cannot be mapped: %s", path, std::strerror(error));
    bytes = static_cast<const std::byte*>(mapped);
  }
  Mapping(const Mapping&) = delete;
  ~Mapping() {
    if (bytes) ::munmap(const_cast<std::byte*>(bytes), size);
  }
};

// ---- The header --------------------------------------------------------------------------------

// One tensor of the header. begin and end count from the start of the data.
struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  uint64_t begin, end;
};

// A header and what is needed to complain about it.
struct Header {
  const std::string& path;
  std::vector<Entry> entries = {};
  std::map<std::string, std::string> metadata = {};

  // "model.safetensors: tensor "blocks.0.weight""
  std::string tensor(const std::string& name) const { return path + ": tensor " + quoted(name); }

  void read_metadata(const json& object);
  void read_entry(const std::string& name, const json& object);
  void check_entry_size(const Entry& entry) const;
  void check_coverage(uint64_t data_size);
};

void Header::read_metadata(const json& object) {
  if (object.is_null()) return;
  require_input(object.is_object(), "%s: __metadata__ must be a JSON object of strings", path);
  for (const auto& [key, value] : object.items()) {
    require_input(value.is_string(), "%s: __metadata__ %s must be a string", path, quoted(key));
    metadata[key] = value.get<std::string>();
  }
}

void Header::read_entry(const std::string& name, const json& object) {
  const std::string who = tensor(name);
  require_input(object.is_object(), "%s: its description must be a JSON object", who);
  for (const char* key : {"dtype", "shape", "data_offsets"})
    require_input(object.contains(key), "%s: \"%s\" is missing", who, key);

  const json& dtype = object["dtype"];
  require_input(dtype.is_string(), "%s: dtype must be a string", who);
  const std::string dtype_name = dtype.get<std::string>();
  const auto known =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](auto& r) { return r.name == dtype_name; });
  require_input(known != std::end(kDTypes),
                "%s: dtype %s is not one this program reads (F32, F16, BF16, F64, integers)", who, quoted(dtype_name));

  // Unsigned excludes negative numbers, fractions and what exceeds 64 bits.
  const json& shape = object["shape"];
  const auto is_count = [](const json& v) { return v.is_number_unsigned(); };
  require_input(shape.is_array() && std::all_of(shape.begin(), shape.end(), is_count),
                "%s: shape must be an array of non-negative integers", who);
  Shape dims;
  for (const json& d : shape) {
    const auto value = d.get<uint64_t>();
    require_input(value <= std::numeric_limits<int64_t>::max(), "%s: dimension %d is too large", who, value);
    dims.push_back(static_cast<int64_t>(value));
  }

  const json& offsets = object["data_offsets"];
  require_input(offsets.is_array() && offsets.size() == 2 && is_count(offsets[0]) && is_count(offsets[1]),
                "%s: data_offsets must be two non-negative integers", who);
  entries.push_back({name, static_cast<DType>(known - kDTypes), std::move(dims), offsets[0].get<uint64_t>(),
                     offsets[1].get<uint64_t>()});
}

void Header::check_entry_size(const Entry& e) const {
  uint64_t size = 1;
  bool fits = true;
  for (const int64_t d : e.shape) fits = fits && !__builtin_mul_overflow(size, static_cast<uint64_t>(d), &size);
  // Bits, as the reference counts, which makes its overflow ours.
  uint64_t bits = 0;
  fits = fits && !__builtin_mul_overflow(size, 8 * bytes_of(e.dtype), &bits);
  require_input(fits, "%s: %s of shape %s overflows 64 bits", tensor(e.name), bcq::name(e.dtype), short_shape(e.shape));
  require_input(e.end - e.begin == bits / 8, "%s: %s of shape %s takes %d bytes, but data_offsets give it %d",
                tensor(e.name), bcq::name(e.dtype), short_shape(e.shape), bits / 8, e.end - e.begin);
}

// By offset, each tensor must begin where the one before ended, the first at 0, the last at the end
// of the file. That excludes holes, overlap and two tensors that share bytes.
void Header::check_coverage(uint64_t data_size) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  uint64_t covered = 0;
  for (const Entry& e : entries) {
    require_input(e.begin <= e.end, "%s: data_offsets [%d, %d] are reversed", tensor(e.name), e.begin, e.end);
    require_input(e.begin == covered, "%s: begins at byte %d of the data, but the tensors before it end at %d",
                  tensor(e.name), e.begin, covered);
    check_entry_size(e);
    require_input(e.end <= data_size, "%s: ends at byte %d, but the file has only %d bytes of data; %s", tensor(e.name),
                  e.end, data_size, "it may be incomplete: fetch it again");
    covered = e.end;
  }
  require_input(covered == data_size, "%s: the tensors take %d bytes, but the file has %d bytes of data", path, covered,
                data_size);
}

// The JSON text of the header; every number in it is still to be distrusted.
std::string header_text(const Mapping& file, const std::string& path) {
  require_input(file.size >= kLengthBytes, "%s: %d bytes are too few for a safetensors file", path, file.size);
  uint64_t length;
  std::memcpy(&length, file.bytes, sizeof length);
  require_input(length <= kMaxHeader, "%s: a header of %d bytes exceeds the format's 100 MB; is it safetensors?", path,
                length);
  require_input(length <= file.size - kLengthBytes, "%s: the header needs %d bytes, the file ends after %d; %s", path,
                length, file.size - kLengthBytes, "it may be incomplete: fetch it again");
  std::string text(reinterpret_cast<const char*>(file.bytes + kLengthBytes), length);
  require_input(!text.empty() && text[0] == '{', "%s: the header must begin with '{'; is it safetensors?", path);
  return text;
}

SafeTensors open_file(const std::string& path) {
  const auto file = std::make_shared<Mapping>(path);
  const std::string text = header_text(*file, path);
  const json parsed = parse_json(text, path + " (header)");
  Header header{path};
  for (const auto& [name, value] : parsed.items()) {
    if (name == "__metadata__")
      header.read_metadata(value);
    else
      header.read_entry(name, value);
  }
  const std::byte* data = file->bytes + kLengthBytes + text.size();
  header.check_coverage(file->size - kLengthBytes - text.size());

  std::map<std::string, TensorInfo> tensors;
  for (Entry& e : header.entries) tensors[e.name] = {e.dtype, std::move(e.shape), data + e.begin, file, path};
  return SafeTensors(path, std::move(tensors), std::move(header.metadata));
}

// ---- Shards ------------------------------------------------------------------------------------

// The shards an index names, as files beside it, and the tensors each must contain.
std::map<std::string, std::vector<std::string>> read_index(const std::string& path) {
  const json index = read_json(path);
  const json map = get<json>(index, "weight_map", path);
  require_input(map.is_object(), "%s: \"weight_map\" must be an object of file names", path);
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, file] : map.items()) {
    require_input(file.is_string(), "%s: the file of tensor %s must be a string", path, quoted(tensor));
    const std::string name = file.get<std::string>();
    const bool plain = !name.empty() && name != "." && name != ".." &&
                       name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
    require_input(plain, "%s: tensor %s is said to be in %s; only files beside the index are allowed", path,
                  quoted(tensor), quoted(name));
    shards[name].push_back(tensor);
  }
  return shards;
}

SafeTensors open_shards(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  const std::string directory = slash == std::string::npos ? "" : path.substr(0, slash + 1);
  std::map<std::string, TensorInfo> all;
  std::map<std::string, std::string> metadata;
  for (const auto& [name, tensors] : read_index(path)) {
    const std::string shard_path = directory + name;
    const SafeTensors shard = open_file(shard_path);
    for (const std::string& tensor : tensors) {
      require_input(shard.has(tensor), "%s: tensor %s is not in %s, where the index says it is", path, quoted(tensor),
                    shard_path);
      all[tensor] = shard.tensors().at(tensor);
    }
    metadata.insert(shard.metadata().begin(), shard.metadata().end());
  }
  return SafeTensors(path, std::move(all), std::move(metadata));
}

// ---- Values ------------------------------------------------------------------------------------

template <class T>
bool aligned(const std::byte* bytes) {
  return reinterpret_cast<uintptr_t>(bytes) % alignof(T) == 0;
}

bool is_half(const TensorInfo& info) { return info.dtype == DType::F16 || info.dtype == DType::BF16; }

// Values [begin, end) of a 16-bit tensor.
void widen_half(const TensorInfo& info, int64_t begin, int64_t end, float* y) {
  if (begin == end) return;
  const std::byte* bytes = info.bytes + 2 * begin;
  std::vector<uint16_t> copy;
  if (!aligned<uint16_t>(bytes)) {
    copy.resize(at(end - begin));
    bytes = static_cast<const std::byte*>(std::memcpy(copy.data(), bytes, 2 * copy.size()));
  }
  const auto from = info.dtype == DType::F16 ? kernels().from_f16 : kernels().from_bf16;
  from(reinterpret_cast<const uint16_t*>(bytes), y, end - begin);
}

Tensor decode(const TensorInfo& info, const std::string& who) {
  const bool in_place = info.dtype == DType::F32 && aligned<float>(info.bytes);
  if (in_place) return Tensor::borrow(info.shape, reinterpret_cast<const float*>(info.bytes), info.file);
  Tensor t = Tensor::uninitialized(info.shape);
  const int64_t n = t.size();
  switch (info.dtype) {
    case DType::F32:
      std::memcpy(t.data, info.bytes, static_cast<size_t>(n) * sizeof(float));
      break;
    case DType::F16:
    case DType::BF16:
      widen_half(info, 0, n, t.data);
      break;
    case DType::F64:
      for (int64_t i = 0; i < n; ++i) t.data[i] = static_cast<float>(value_at<double>(info.bytes, i));
      break;
    default:
      throw InputError(format("%s: is %s, but a floating-point tensor is needed", who, name(info.dtype)));
  }
  return t;
}

// Indices of a flat offset: "[3, 17]".
std::string position(const Shape& shape, int64_t offset) {
  Shape index(shape.size());
  for (size_t i = shape.size(); i-- > 0; offset /= shape[i]) index[i] = offset % shape[i];
  return short_shape(index);
}

void require_finite(const Tensor& t, const std::string& who) {
  const int64_t n = t.size();
  if (kernels().all_finite(t.data, n)) return;
  const int64_t bad = std::find_if(t.data, t.data + n, [](float v) { return !std::isfinite(v); }) - t.data;
  throw InputError(format("%s: the value at %s is %s", who, position(t.shape, bad),
                          std::isnan(t[bad]) ? "NaN" : "infinite or too large for float32"));
}

const TensorInfo& find(const SafeTensors& file, const std::string& name) {
  const auto found = file.tensors().find(name);
  require_input(found != file.tensors().end(), "%s: tensor %s is missing", file.path(), quoted(name));
  return found->second;
}

std::string describe(const TensorInfo& info, const std::string& name) { return info.path + ": tensor " + quoted(name); }

}  // namespace

const char* name(DType dtype) { return row(dtype).name; }
size_t bytes_of(DType dtype) { return row(dtype).bytes; }

SafeTensors SafeTensors::open(const std::string& path) {
  return path.ends_with(".json") ? open_shards(path) : open_file(path);
}

Tensor SafeTensors::get(const std::string& name) const {
  const TensorInfo& info = find(*this, name);
  return load(info, describe(info, name));
}

Tensor SafeTensors::get(const std::string& name, const Shape& expected) const {
  const TensorInfo& info = find(*this, name);
  require_input(info.shape == expected, "%s: has shape %s, but the model needs %s", describe(info, name),
                short_shape(info.shape), to_string(expected));
  return get(name);
}

Weight SafeTensors::get_weight(const std::string& name, const Shape& expected) const {
  const TensorInfo& info = find(*this, name);
  if (!is_half(info) || info.shape != expected) return get(name, expected);
  std::atomic<bool> finite{true};
  for_chunks(numel(expected), [&](int64_t begin, int64_t end) {
    float values[kElementsPerItem];
    widen_half(info, begin, end, values);
    if (!kernels().all_finite(values, end - begin)) finite = false;
  });
  if (!finite) return get(name, expected);  // which says where
  const int64_t columns = numel(expected) / expected[0];
  return Weight(expected, [info, columns](int64_t begin, int64_t end, float* y) {
    widen_half(info, begin * columns, end * columns, y);
  });
}

std::vector<int64_t> SafeTensors::get_ints(const std::string& name, Shape* shape) const {
  const TensorInfo& info = find(*this, name);
  const auto integer_at = row(info.dtype).integer_at;
  require_input(integer_at != nullptr, "%s: is %s, but an integer tensor is needed", describe(info, name),
                bcq::name(info.dtype));
  std::vector<int64_t> values(at(numel(info.shape)));
  for (size_t i = 0; i < values.size(); ++i) values[i] = integer_at(info.bytes, static_cast<int64_t>(i));
  if (shape) *shape = info.shape;
  return values;
}

std::vector<std::string> Loader::names_of(const std::string& child) const {
  return names_ ? names_(prefix_ + child) : std::vector<std::string>{prefix_ + child};
}

bool Loader::has(const std::string& child) const {
  for (const std::string& name : names_of(child))
    if (!file_->has(name)) return false;
  return true;
}

void Loader::ignore(const std::string& child) const {
  for (const std::string& name : names_of(child)) asked_->names.insert(name);
}

std::vector<std::string> Loader::ask(const std::string& child, int64_t values) const {
  ignore(child);
  asked_->values += values;
  const std::vector<std::string> names = names_of(child);
  for (const std::string& name : names)
    require_input(file_->has(name), "%s: tensor %s is missing: is the file whole, and config.json its own?",
                  file_->path(), quoted(name));
  asked_->places[prefix_ + child] = names;
  return names;
}

Tensor Loader::get(const std::string& child, const Shape& expected) const {
  const std::vector<std::string> names = ask(child, numel(expected));
  if (names.size() == 1) return file_->get(names[0], expected);
  Shape part = expected;
  part[0] /= static_cast<int64_t>(names.size());
  std::vector<Tensor> parts;
  for (const std::string& name : names) parts.push_back(file_->get(name, part));
  return concatenate(parts);
}

Weight Loader::get_weight(const std::string& child, const Shape& expected) const {
  if (names_of(child).size() != 1) return get(child, expected);
  return file_->get_weight(ask(child, numel(expected))[0], expected);
}

std::vector<int64_t> Loader::get_ints(const std::string& child, Shape* shape) const {
  const std::string name = names_of(child)[0];
  ignore(child);
  return file_->get_ints(name, shape);
}

const TensorInfo& Loader::raw(const std::string& child) const { return find(*file_, ask(child, 0)[0]); }

const Shape& Loader::shape(const std::string& child) const { return find(*file_, names_of(child)[0]).shape; }

std::string Loader::describe(const std::string& child) const {
  const std::string name = names_of(child)[0];
  const auto found = file_->tensors().find(name);
  return (found == file_->tensors().end() ? file_->path() : found->second.path) + ": tensor " + quoted(name);
}

void forget(const TensorInfo& info) {
  if (info.path.empty()) return;  // not of a file
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(info.bytes) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(info.bytes) + info.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

Tensor load(const TensorInfo& info, const std::string& who) {
  Tensor t = decode(info, who);
  require_finite(t, who);
  return t;
}

}  // namespace bcq
