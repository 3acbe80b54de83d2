#include "engine/file/packed_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/config.h"
#include "engine/file/json.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

using Kind = PackedFormat::Kind;

// The widths GPTQ checkpoints have (GPTQModel's planar layouts of others are another format).
bool is_gptq_width(int64_t bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

// 32-bit integers where the file has them.
struct Words {
  const TensorInfo& info;
  const Shape& shape;

  Words(const Loader& from, const std::string& child) : info(from.raw(child)), shape(info.shape) {
    require_input(info.dtype == DType::I32 || info.dtype == DType::U32, "%s: is %s, but words of 32 bits are needed",
                  from.describe(child), name(info.dtype));
  }
  uint32_t operator[](int64_t i) const {
    uint32_t word;
    std::memcpy(&word, info.bytes + i * 4, sizeof word);
    return word;
  }
};

void require_shape(const Loader& from, const char* child, const Shape& found, const Shape& expected) {
  require_input(found == expected, "%s: has shape %s, but the layer needs %s", from.describe(child), to_string(found),
                to_string(expected));
}

// The group of every column as the file has it; empty when columns are in order.
std::vector<int32_t> get_groups(const Loader& from, int64_t in, int64_t group, int64_t groups) {
  if (!from.has("g_idx")) return {};
  Shape shape;
  const std::vector<int64_t> values = from.get_ints("g_idx", &shape);
  if (shape == Shape{0}) return {};  // as without act-order some tools write it
  require_shape(from, "g_idx", shape, {in});
  std::vector<int64_t> columns(at(groups));
  bool in_order = true;
  for (int64_t c = 0; c < in; ++c) {
    const int64_t g = values[at(c)];
    require_input(g >= 0 && g < groups, "%s: column %d is in group %d, but there are %d", from.describe("g_idx"), c, g,
                  groups);
    require_input(++columns[at(g)] <= group, "%s: more than %d columns are in group %d", from.describe("g_idx"), group,
                  g);
    in_order = in_order && g == c / group;
  }
  return in_order ? std::vector<int32_t>{} : std::vector<int32_t>(values.begin(), values.end());
}

// Stored zero points of a symmetric quantization, all 2^(bits-1) or, as v1 has them, all one less: what to add to
// them. -1: they are something else.
int symmetric_offset(const std::vector<uint8_t>& stored, int bits) {
  const int middle = 1 << (bits - 1);
  const bool same = std::all_of(stored.begin(), stored.end(), [&](uint8_t z) { return z == stored[0]; });
  return same && (stored[0] == middle || stored[0] == middle - 1) ? middle - stored[0] : -1;
}

// Zero points [out, groups] from words [groups, words of out].
Tensor get_zeros(const Loader& from, int64_t out, int64_t groups, int bits, const PackedFormat& format) {
  const Words words(from, "qzeros");
  const int64_t row = packed_words(out, bits);
  require_shape(from, "qzeros", words.shape, {groups, row});
  std::vector<uint8_t> stored(at(groups * out));
  std::vector<uint32_t> stream(at(row));
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t k = 0; k < row; ++k) stream[at(k)] = words[g * row + k];
    unpack_codes(stream.data(), out, bits, stored.data() + g * out);
  }
  int offset = format.kind == Kind::GptqV1 ? 1 : 0;
  const int symmetric = symmetric_offset(stored, bits);
  require_input(symmetric >= 0 || format.symmetry != PackedFormat::Symmetry::Yes,
                "%s: sym is true in %s, but the zero points are not all %d (stored, or stored less 1)",
                from.describe("qzeros"), format.where, 1 << (bits - 1));
  if (symmetric >= 0 && format.kind != Kind::Own && format.symmetry != PackedFormat::Symmetry::No) offset = symmetric;
  Tensor zeros = Tensor::uninitialized({out, groups});
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < out; ++r) {
      const int zero = stored[at(g * out + r)] + offset;
      // A zero point of 0 becomes -1 in v1 and runs over the neighbours in its word: those are lost.
      require_input(zero < 1 << bits,
                    "%s: an asymmetric zero point overflowed when this GPTQ v1 file was written; the checkpoint "
                    "is only good in v2 (checkpoint_format \"gptq_v2\")",
                    from.describe("qzeros"));
      zeros[r * groups + g] = static_cast<float>(zero);
    }
  }
  return zeros;
}

// The configurations of a quantization, of which a folder may have two; `where` becomes the file the first is in.
json find_configuration(const json& config, const std::string& folder, std::string& where) {
  json found = config.is_object() ? config.value("quantization_config", json()) : json();
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const std::string path = (std::filesystem::path(folder) / name).string();
    if (!std::filesystem::exists(path)) continue;
    const json other = read_json(path);
    if (found.is_null()) {
      found = other;
      where = path;
    }
    if (!found.is_object() || !other.is_object()) continue;
    for (const char* key : {"bits", "group_size", "sym", "desc_act", "checkpoint_format", "quant_method"}) {
      const json here = found.value(key, json()), there = other.value(key, json());
      require_input(here.is_null() || there.is_null() || here == there, "%s: %s is %s, but in %s it is %s", where, key,
                    shown(here), path, shown(there));
    }
  }
  return found;
}

}  // namespace

std::shared_ptr<const PackedFormat> read_packed_format(const json& config, const std::string& where,
                                                       const std::string& folder, const SafeTensors& file) {
  PackedFormat f;
  f.where = where;
  const json q = find_configuration(config, folder, f.where);
  const auto packed = std::find_if(file.tensors().begin(), file.tensors().end(), [](const auto& entry) {
    return entry.first.ends_with(".qweight") || entry.first.ends_with(".signs");
  });
  const bool is_packed = packed != file.tensors().end();
  require_input(
      !q.is_null() || !is_packed,
      "%s: tensor %s is packed, but neither quantization_config in config.json nor quantize_config.json says how",
      file.path(), is_packed ? quoted(packed->first).c_str() : "");
  require_input(q.is_null() || is_packed, "%s: no tensor is packed, but %s has a quantization_config", file.path(),
                f.where);
  if (q.is_null()) return nullptr;

  const ConfigReader in(q, f.where);
  const auto text = [&](const char* key, const char* other, const std::string& fallback) {
    require_input(!in.has(key) || !in.has(other) || in.text(key, "") == in.text(other, ""),
                  "%s: %s is %s, but %s is %s", f.where, key, shown(in.value(key)), other, shown(in.value(other)));
    return in.text(key, in.text(other, fallback));
  };
  const std::string method = text("quant_method", "method", "gptq");
  if (method == "bcq") {
    const int64_t version = in.integer({"format_version"});
    require_input(version == 1, "%s: format_version %d is newer than this program", f.where, version);
    f.positions = in.integer({"bc_positions"}, {0, 1 << 24}, 0);
  } else {
    const std::string format =
        in.flag("is_marlin_format", false) ? "marlin" : text("checkpoint_format", "format", "gptq");
    require_input(
        method == "gptq" && (format == "gptq" || format == "gptq_v2") && in.text("pack_dtype", "int32") == "int32",
        "%s: this checkpoint is quantized as %s (%s), which is not read here; GPTQ's gptq and gptq_v2 with "
        "int32 words are",
        f.where, quoted(method), quoted(format));
    f.kind = format == "gptq" ? Kind::GptqV1 : Kind::GptqV2;
  }
  const json& dynamic = in.value("dynamic");
  f.by_layer = !dynamic.is_null() && !dynamic.empty();
  if (in.has("sym") && dump(dynamic).find("\"sym\"") == std::string::npos)
    f.symmetry = in.flag("sym", true) ? PackedFormat::Symmetry::Yes : PackedFormat::Symmetry::No;
  f.bits = static_cast<int>(in.integer({"bits"}, {0, 64}));
  f.group = in.integer({"group_size"}, {-1, 1 << 20}, -1);
  const bool fits = f.kind == Kind::Own ? f.bits >= 1 && f.bits <= 8 : is_gptq_width(f.bits);
  require_input(fits && (f.group == -1 || f.group >= 1), "%s: bits %d with group_size %d is not a quantization",
                f.where, f.bits, f.group);
  return std::make_shared<const PackedFormat>(f);
}

bool has_packed(const Loader& at) { return at.packed() && !at.has("weight"); }

PackedWeight get_packed(const Loader& from, int64_t out, int64_t in) {
  const PackedFormat& f = *from.packed();
  const bool own = f.kind == Kind::Own;
  const Words words(from, "qweight");
  require_input(words.shape.size() == 2 && words.shape[own ? 0 : 1] == out,
                "%s: has shape %s, but the layer has %d outputs", from.describe("qweight"), to_string(words.shape),
                out);
  const int64_t blocks = (in + 31) / 32, row = words.shape[own ? 1 : 0], bits = row / blocks;
  require_input(row % blocks == 0 && (own ? bits >= 2 && bits <= 8 : is_gptq_width(bits) && in % 32 == 0),
                "%s: shape %s is not that of packed codes for %d inputs", from.describe("qweight"),
                to_string(words.shape), in);
  require_input(f.by_layer || bits == f.bits, "%s: has %d bits by its shape %s, but %s says bits %d",
                from.describe("qweight"), bits, to_string(words.shape), f.where, f.bits);

  Affine grid{static_cast<int>(bits), f.group < 0 ? in : std::min(f.group, in), {}, {}};
  int64_t groups = (in + grid.group - 1) / grid.group;
  if (f.by_layer && from.has("scales")) {  // only the tensors know
    const Shape& shape = from.shape("scales");
    require_input(shape.size() == 2, "%s: has shape %s, but scales have two dimensions", from.describe("scales"),
                  to_string(shape));
    groups = shape[own ? 1 : 0];
    require_input(groups >= 1 && groups <= in, "%s: %d groups for %d inputs", from.describe("scales"), groups, in);
    if ((in + grid.group - 1) / grid.group != groups) grid.group = (in + groups - 1) / groups;
  }
  grid.scale = own ? from.get("scales", {out, groups}) : transposed(from.get("scales", {groups, out}));
  grid.zero = get_zeros(from, out, groups, grid.bits, f);
  grid.column_group = get_groups(from, in, grid.group, groups);
  from.count(out * in - grid.scale.size());  // parameters are weights, not scales
  PackedWeight w(grid, {out, in}, [&](int64_t r, uint8_t* codes) {
    std::vector<uint32_t> stream(at(row));
    for (int64_t k = 0; k < row; ++k) stream[at(k)] = words[own ? r * row + k : k * out + r];
    unpack_codes(stream.data(), in, grid.bits, codes);
  });
  for (const char* name : {"qweight", "qzeros", "scales"}) forget(from.raw(name));  // they are here now
  return w;
}

Tensor get_bc(const Loader& at, int64_t width) {
  if (!at.packed() || !at.has("bc")) return {};
  const Tensor bc = at.get("bc", {at.packed()->positions, width});
  at.count(-bc.size());  // nor compensations
  return bc;
}

bool has_binary(const Loader& at) { return has_packed(at) && at.has("signs"); }

std::shared_ptr<const BinaryPlanes> get_binary(const Loader& from, int64_t out, int64_t in) {
  const Shape& levels = from.shape("levels");
  require_input(
      levels.size() == 3 && levels[0] == out && levels[1] >= 1 && levels[1] <= in && levels[2] == BinaryPlanes::kLevels,
      "%s: has shape %s, but a layer of %d outputs and %d inputs needs [%d, blocks, %d]", from.describe("levels"),
      to_string(levels), out, in, out, BinaryPlanes::kLevels);
  const PackedFormat& f = *from.packed();
  const int64_t block = f.group < 0 ? in : std::min(f.group, in);
  require_input((in + block - 1) / block == levels[1], "%s: %d blocks for %d inputs, but %s says group_size %d",
                from.describe("levels"), levels[1], in, f.where, f.group);
  auto planes = std::make_shared<BinaryPlanes>(out, in, block);
  const auto read = [&](const char* name, const Shape& shape, std::vector<uint32_t>& into) {
    const Words words(from, name);
    require_shape(from, name, words.shape, shape);
    for (size_t i = 0; i < into.size(); ++i) into[i] = words[static_cast<int64_t>(i)];
  };
  read("salient", {planes->words()}, planes->salient);
  read("signs", {out, planes->words()}, planes->signs);
  read("parts", {out, planes->words()}, planes->parts);
  const TensorInfo& stored = from.raw("levels");
  require_input(stored.dtype == DType::F16, "%s: is %s, but levels are F16", from.describe("levels"),
                name(stored.dtype));
  load(stored, from.describe("levels"));  // which refuses what is not finite
  std::memcpy(planes->levels.data(), stored.bytes, planes->levels.size() * sizeof(uint16_t));
  from.count(out * in);
  for (const char* name : {"salient", "signs", "parts", "levels"}) forget(from.raw(name));
  return planes;
}

void put_packed(const std::string& name, const PackedWeight& w, Kind kind, std::map<std::string, TensorInfo>& tensors) {
  const bool own = kind == Kind::Own;
  const Affine grid = w.grid();
  const int64_t out = w.shape()[0], in = w.shape()[1], groups = w.groups(), bits = grid.bits;
  require(own || (is_gptq_width(bits) && in % 32 == 0 && out % 32 == 0 && scale_bits(grid) == 16),
          "%s: %d bits in shape %s cannot be written in GPTQ's format", name, bits, to_string(w.shape()));
  const int64_t row = packed_words(in, grid.bits), zero_row = packed_words(out, grid.bits);
  const auto ints = [](const std::vector<uint32_t>& words) { return std::vector<int32_t>(words.begin(), words.end()); };
  std::vector<uint32_t> words(at(out * row)), of_row(at(row));
  const std::vector<uint8_t> all = w.codes();
  for (int64_t r = 0; r < out; ++r) {
    pack_codes(all.data() + r * in, in, grid.bits, of_row.data());
    for (int64_t k = 0; k < row; ++k) words[at(own ? r * row + k : k * out + r)] = of_row[at(k)];
  }
  tensors[name + ".qweight"] = store(own ? Shape{out, row} : Shape{row, out}, ints(words));

  std::vector<uint32_t> zeros(at(groups * zero_row));
  std::vector<uint8_t> codes(at(out));
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t r = 0; r < out; ++r) {
      const int zero = static_cast<int>(grid.zero[r * groups + g]) - (kind == Kind::GptqV1 ? 1 : 0);
      require(zero >= 0 && zero < 1 << bits, "%s: the zero point %g cannot be stored", name,
              static_cast<double>(grid.zero[r * groups + g]));
      codes[at(r)] = static_cast<uint8_t>(zero);
    }
    pack_codes(codes.data(), out, grid.bits, zeros.data() + g * zero_row);
  }
  tensors[name + ".qzeros"] = store({groups, zero_row}, ints(zeros));
  tensors[name + ".scales"] = store(own ? grid.scale : transposed(grid.scale),
                                    scale_bits(grid) == 16 ? DType::F16 : DType::F32, name + ".scales");

  std::vector<int32_t> g_idx = grid.column_group;
  for (int64_t c = 0; !own && grid.column_group.empty() && c < in; ++c)
    g_idx.push_back(static_cast<int32_t>(grid.group_of(c)));
  if (!g_idx.empty()) tensors[name + ".g_idx"] = store({in}, std::move(g_idx));
}

void put_binary(const std::string& name, const BinaryPlanes& planes, std::map<std::string, TensorInfo>& tensors) {
  const auto ints = [](const std::vector<uint32_t>& words) { return std::vector<int32_t>(words.begin(), words.end()); };
  tensors[name + ".salient"] = store({planes.words()}, ints(planes.salient));
  tensors[name + ".signs"] = store({planes.out, planes.words()}, ints(planes.signs));
  tensors[name + ".parts"] = store({planes.out, planes.words()}, ints(planes.parts));
  Tensor levels = Tensor::uninitialized({planes.out, planes.blocks(), BinaryPlanes::kLevels});
  kernels().from_f16(planes.levels.data(), levels.data, levels.size());
  tensors[name + ".levels"] = store(levels, DType::F16, name + ".levels");
}

}  // namespace bcq
