#include "engine/file/grid_file.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/file/config.h"
#include "engine/file/json.h"
#include "engine/grid/affine.h"

namespace bcq {
namespace {

using Tensors = std::map<std::string, TensorInfo>;

// Numbers as bytes where they are, else as floats.
TensorInfo put_numbers(const std::vector<float>& values, const Shape& shape, const std::string& name) {
  const bool bytes =
      std::all_of(values.begin(), values.end(), [](float v) { return v >= 0 && v <= 255 && v == std::nearbyint(v); });
  if (!bytes) return store(Tensor(shape, values), DType::F32, name);
  const auto owner = std::make_shared<std::vector<uint8_t>>(values.begin(), values.end());
  return {DType::U8, shape, reinterpret_cast<const std::byte*>(owner->data()), owner, ""};
}

std::vector<float> get_numbers(const Loader& from, const std::string& field) {
  const TensorInfo& info = from.raw(field);
  require_input(info.shape.size() <= 1 && (info.dtype == DType::U8 || info.dtype == DType::F32),
                "%s: is %s of shape %s, but a field of a grid is one number or an array of them, U8 or F32",
                from.describe(field), name(info.dtype), to_string(info.shape));
  if (info.dtype == DType::U8) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(info.bytes);
    return {bytes, bytes + info.size()};
  }
  const Tensor values = load(info, from.describe(field));
  return {values.data, values.data + values.size()};
}

// The grid of row r of `rows`.
int64_t unit_of(const Grid& grid, int64_t r, int64_t rows) { return r * grid->units() / rows; }

// What is wrong with the grid as that of a weight [out, in], or "".
std::string misfit(const Grid& grid, int64_t out, int64_t in) {
  if (grid.is_identity() || !grid->has_zero_points() || grid->bits > 8)
    return format("a %s grid is none that weights are stored on", grid.name());
  const auto* affine = grid.as<Affine>();
  if (affine && (affine->group != in || grid->units() != out))
    return format("%d rows of %d columns for a weight of shape [%d, %d]", grid->units(), affine->group, out, in);
  if (out % grid->units() != 0 || !grid.is_along(0))
    return format("%d scales do not fit the rows of a weight of shape [%d, %d]", grid->units(), out, in);
  return "";
}

}  // namespace

std::shared_ptr<const PackedFormat> read_grid_format(const json& config, const std::string& where) {
  const json found = config.is_object() ? config.value("quantization_config", json()) : json();
  if (found.is_null()) return nullptr;
  PackedFormat f;
  f.kind = PackedFormat::Kind::Grids;
  f.where = where;
  f.grids = std::make_shared<const json>(found);
  const ConfigReader in(*f.grids, where, "quantization_config.");
  const std::string method = in.text("quant_method", ""), format = in.text("format", "");
  require_input(method == "bcq" && format == "grids",
                "%s: this vision model is quantized as %s (%s), which is not read here; what imagenet --save writes is",
                where, quoted(method), quoted(format));
  const int64_t version = in.integer({"format_version"});
  require_input(version == 1, "%s: format_version %d is newer than this program", where, version);
  in.ignore({"meta", "method", "recipe", "layers"});
  in.only({{"folded_layer_scale", "true|false"}});
  in.require_known();
  if (!in.value("layers").is_object()) in.refuse("layers", "an object of grids by layer");
  return std::make_shared<const PackedFormat>(f);
}

json put_grid(const std::string& name, const Grid& grid, Tensors& tensors) {
  json about = {{"grid", grid.name()}};
  for (const auto& entry : grid.describe()) {
    const std::string& field = entry.first;
    const std::string tensor = name + "." + field;
    if (const auto* number = std::get_if<int64_t>(&entry.second))
      about[field] = *number;
    else if (const auto* one = std::get_if<float>(&entry.second))
      tensors[tensor] = put_numbers({*one}, {}, tensor);
    else
      tensors[tensor] = put_numbers(std::get<std::vector<float>>(entry.second),
                                    {static_cast<int64_t>(std::get<std::vector<float>>(entry.second).size())}, tensor);
  }
  return about;
}

Grid get_grid(const Loader& from, const json& about) {
  if (about.is_null()) return {};
  const std::string where = from.packed()->where + ": " + from.name();
  const std::string kind = get<std::string>(about, "grid", where);
  Fields fields;
  for (const auto& [key, value] : about.items())
    if (key != "grid") fields[key] = get<int64_t>(about, key.c_str(), where);
  const std::string prefix = from.name() + ".";
  const Tensors& all = from.file().tensors();
  for (auto entry = all.lower_bound(prefix); entry != all.end() && entry->first.rfind(prefix, 0) == 0; ++entry) {
    const std::string field = entry->first.substr(prefix.size());
    const std::vector<float> values = get_numbers(from, field);
    require_input(!fields.count(field), "%s: %s is there twice, as a tensor, too", where, quoted(field));
    if (entry->second.shape.empty())
      fields[field] = values.at(0);
    else
      fields[field] = values;
  }
  try {
    const Grid grid = read_grid(kind, fields);
    for (const auto& entry : fields)  // a grid is what it says of itself, and nothing beside it
      require_input(grid.describe() == fields || grid.describe().count(entry.first), "a %s grid has no field %s", kind,
                    quoted(entry.first));
    require_input(grid.describe() == fields, "its fields are not as a %s grid has them", kind);
    return grid;
  } catch (const Error& e) {
    throw InputError(format("%s: tensors %s.*: %s", from.file().path(), from.name(), e.what()));
  }
}

void put_codes(const std::string& name, const Grid& grid, const Weight& weight, Tensors& tensors) {
  const int64_t out = weight.dim(0), in = weight.dim(1);
  const std::string wrong = misfit(grid, out, in);
  require(wrong.empty(), "%s: %s", name, wrong);
  const int64_t row = packed_words(in, grid->bits);
  std::vector<int32_t> words(at(out * row));
  std::atomic<bool> fits = true;
  parallel_for(out, [&](int64_t r) {
    Tensor scratch;
    const float* w = weight.rows(r, r + 1, scratch);
    const int64_t unit = unit_of(grid, r, out);
    const float scale = grid->plane_scale(0, unit);
    const auto zero = static_cast<float>(grid->zero_point(unit)), top = std::ldexp(1.f, grid->bits) - 1;
    std::vector<uint8_t> codes(at(in));
    for (int64_t c = 0; c < in; ++c) {
      const float code = std::nearbyint(w[c] / scale) + zero;
      if (!(code >= 0 && code <= top && scale * (code - zero) == w[c])) fits = false;
      codes[at(c)] = static_cast<uint8_t>(std::clamp(code, 0.f, top));
    }
    pack_codes(codes.data(), in, grid->bits, reinterpret_cast<uint32_t*>(words.data() + r * row));
  });
  require(fits, "%s: its weights are not on their grid", name);
  tensors[name + ".qweight"] = store({out, row}, std::move(words));
}

Tensor get_codes(const Loader& from, const Grid& grid, int64_t out, int64_t in) {
  const std::string wrong = misfit(grid, out, in);
  require_input(wrong.empty(), "%s: tensors %s.right.*: %s", from.file().path(), from.name(), wrong);
  const TensorInfo& info = from.raw("qweight");
  const int64_t row = packed_words(in, grid->bits);
  require_input(info.dtype == DType::I32 && info.shape == Shape({out, row}),
                "%s: is %s of shape %s, but codes of %d bits for a weight of shape [%d, %d] are I32 of shape [%d, %d]",
                from.describe("qweight"), name(info.dtype), to_string(info.shape), grid->bits, out, in, out, row);
  from.count(out * in);  // parameters are weights, not words
  Tensor w = Tensor::uninitialized({out, in});
  parallel_for(out, [&](int64_t r) {
    std::vector<uint32_t> words(at(row));
    std::memcpy(words.data(), info.bytes + r * row * 4, at(row) * 4);
    std::vector<uint8_t> codes(at(in));
    unpack_codes(words.data(), in, grid->bits, codes.data());
    const int64_t unit = unit_of(grid, r, out);
    const float scale = grid->plane_scale(0, unit);
    float values[256];
    for (int u = 0; u < 1 << grid->bits; ++u) values[u] = scale * static_cast<float>(u - grid->zero_point(unit));
    for (int64_t c = 0; c < in; ++c) w[r * in + c] = values[codes[at(c)]];
  });
  forget(info);
  return w;
}

}  // namespace bcq
