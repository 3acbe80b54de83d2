#include "engine/file/onnx_grid.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/grid/log_grid.h"
#include "engine/grid/offset.h"
#include "engine/grid/table.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"

namespace bcq {
namespace {

constexpr int64_t kToF32 = 1, kToI32 = 6;  // of Cast: TensorProto.DataType

// x̂ = scale round(x / scale), with round(x / scale) from lo to hi.
struct Steps {
  float scale;
  int32_t lo, hi;

  int32_t zero() const { return std::clamp(-lo, 0, 255); }  // u8 codes are round(x / scale) + zero
  bool has_codes() const { return lo + zero() >= 0 && hi + zero() <= 255; }
  bool fills_codes() const { return lo + zero() == 0 && hi + zero() == 255; }
  float least() const { return scale * static_cast<float>(lo); }
  float most() const { return scale * static_cast<float>(hi); }
};

std::string round_steps(OnnxGraph& graph, const Steps& steps, const std::string& x) {
  const auto inside = [&] { return graph.add("Clip", {x, graph.scalar(steps.least()), graph.scalar(steps.most())}); };
  const std::string scale = graph.scalar(steps.scale);
  if (!steps.has_codes()) return graph.add("Mul", {graph.add("Round", {graph.add("Div", {inside(), scale})}), scale});
  const std::string zero = graph.codes({static_cast<uint8_t>(steps.zero())}, {});
  const std::string code = graph.add("QuantizeLinear", {steps.fills_codes() ? x : inside(), scale, zero});
  return graph.add("DequantizeLinear", {code, scale, zero});
}

// A number of each head as a constant that goes with x [B, heads, ...].
std::string each(OnnxGraph& graph, const std::vector<float>& numbers) {
  return graph.constant(numbers, {static_cast<int64_t>(numbers.size()), 1, 1});
}

// round(x / scale) of each head, with codes that all have one zero point, or as floats where there is none such. Values
// are cut off before they are divided: behind a division OpenVINO loses the bounds.
OnnxRounded round_heads(OnnxGraph& graph, const std::vector<Steps>& heads, const std::string& x) {
  std::vector<float> scale, least, most;
  Steps all{1, heads[0].lo, heads[0].hi};
  for (const Steps& head : heads) {
    scale.push_back(head.scale);
    least.push_back(head.least());
    most.push_back(head.most());
    all = {1, std::min(all.lo, head.lo), std::max(all.hi, head.hi)};
  }
  const bool fills = all.fills_codes() && std::all_of(heads.begin(), heads.end(), [&](const Steps& head) {
                       return head.lo == all.lo && head.hi == all.hi;
                     });
  const std::string inside =
      fills ? x : graph.add("Min", {graph.add("Max", {x, each(graph, least)}), each(graph, most)});
  const std::string v = graph.add("Div", {inside, each(graph, scale)});
  if (!all.has_codes()) return {graph.add("Round", {v}), scale};
  return {round_steps(graph, {1, -all.zero(), 255 - all.zero()}, v), scale};
}

Steps steps_of(const Asymmetric& grid, int64_t unit) {
  const int32_t z = grid.offset(unit);
  return {grid.plane_scale(0, unit), -z, (1 << grid.bits) - 1 - z};
}

std::string round_table(OnnxGraph& graph, const Table::Levels& table, const std::string& x) {
  const std::string scale = graph.scalar(table.scale), zero = graph.codes({static_cast<uint8_t>(table.zero)}, {});
  const std::string index = graph.add("Cast", {graph.add("QuantizeLinear", {x, scale, zero})}, {{"to", kToI32}});
  const std::string levels = graph.codes({table.nearest.begin(), table.nearest.end()}, {256});
  return graph.add("DequantizeLinear", {graph.add("Gather", {levels, index}), scale, zero});
}

// The levels of all heads less their zero points, in one table behind which they have one zero point or are floats.
OnnxRounded round_table_heads(OnnxGraph& graph, const std::vector<const Table::Levels*>& heads, const std::string& x) {
  constexpr int32_t kMiddle = 128;
  std::vector<float> scale, zero, levels;
  std::vector<int32_t> begin;
  std::vector<uint8_t> codes;
  bool centred = true;
  for (const Table::Levels* head : heads) {
    scale.push_back(head->scale);
    zero.push_back(static_cast<float>(head->zero));
    begin.push_back(static_cast<int32_t>(levels.size()));
    for (const uint8_t level : head->nearest) {
      const int32_t value = level - head->zero;
      centred &= -kMiddle <= value && value < kMiddle;
      levels.push_back(static_cast<float>(value));
      codes.push_back(static_cast<uint8_t>(value + kMiddle));
    }
  }
  const auto n = static_cast<int64_t>(heads.size());
  const std::string steps = graph.add("Round", {graph.add("Div", {x, each(graph, scale)})});
  const std::string code =
      graph.add("Clip", {graph.add("Add", {steps, each(graph, zero)}), graph.scalar(0), graph.scalar(255)});
  const std::string index =
      graph.add("Add", {graph.add("Cast", {code}, {{"to", kToI32}}), graph.constant(begin, {n, 1, 1})});
  if (!centred) return {graph.add("Gather", {graph.constant(levels, {256 * n}), index}), scale};
  const std::string found = graph.add("Gather", {graph.codes(codes, {256 * n}), index});
  return {graph.add("DequantizeLinear", {found, graph.scalar(1), graph.codes({kMiddle}, {})}), scale};
}

std::string round_twin_gelu(OnnxGraph& graph, const TwinGelu& grid, const std::string& x) {
  const int32_t m = 1 << (grid.bits - 1);
  const std::string above = round_steps(graph, {grid.pos, 0, m - 1}, x);
  return graph.add("Add", {above, round_steps(graph, {grid.neg, -m, 0}, x)});
}

std::string round_twin_softmax(OnnxGraph& graph, const TwinSoftmax& grid, const std::string& x) {
  const int32_t m = (1 << (grid.bits - 1)) - 1;
  const std::string split = graph.scalar(grid.split), steps = graph.scalar(static_cast<float>(m)),
                    one = graph.scalar(1);
  const std::string low = round_steps(graph, {grid.split / static_cast<float>(m), 0, m}, x);
  const std::string above = graph.add("Clip", {x, grid.official ? split : graph.scalar(0), one});
  const std::string high = graph.add("Div", {graph.add("Round", {graph.add("Mul", {above, steps})}), steps});
  if (grid.official) return graph.add("Add", {high, low});
  return graph.add("Where", {graph.add("Less", {x, split}), low, high});
}

std::string round_log(OnnxGraph& graph, const LogGrid& grid, const std::string& x) {
  std::vector<float> values = grid.values();
  for (float& value : values) value -= grid.shift;
  std::string v = x;
  if (grid.shift != 0) v = graph.add("Max", {graph.add("Add", {x, graph.scalar(grid.shift)}), graph.scalar(0)});
  const std::string log = graph.add("Log", {graph.add("Div", {v, graph.scalar(grid.scale)})});
  const auto slope = static_cast<float>(-1 / (grid.step * M_LN2));
  const std::string level = graph.add("Round", {graph.add("Mul", {log, graph.scalar(slope)})});
  const auto last = static_cast<float>(values.size() - 1);
  const std::string index =
      graph.add("Cast", {graph.add("Clip", {level, graph.scalar(0), graph.scalar(last)})}, {{"to", kToI32}});
  return graph.add("Gather", {graph.constant(values, {static_cast<int64_t>(values.size())}), index});
}

}  // namespace

std::string onnx_round(OnnxGraph& graph, const Grid& grid, const std::string& x) {
  if (grid.is_identity()) return x;
  require(grid->units() == 1, "a grid of %d units for a whole tensor", grid->units());
  if (const auto* g = grid.as<Asymmetric>()) return round_steps(graph, steps_of(*g, 0), x);
  if (const auto* g = grid.as<Table>()) return round_table(graph, g->parts[0], x);
  if (const auto* g = grid.as<TwinGelu>()) return round_twin_gelu(graph, *g, x);
  if (const auto* g = grid.as<TwinSoftmax>()) return round_twin_softmax(graph, *g, x);
  if (const auto* g = grid.as<LogGrid>()) return round_log(graph, *g, x);
  const auto* g = grid.as<Offset>();
  require_usage(g != nullptr, "--format onnx: activations on a grid of the kind \"%s\" are not written", grid.name());
  const std::string offsets = graph.constant(g->offset_of, {static_cast<int64_t>(g->offset_of.size())});
  return graph.add("Sub", {onnx_round(graph, g->moved, graph.add("Add", {x, offsets})), offsets});
}

OnnxRounded onnx_round_heads(OnnxGraph& graph, const Grid& grid, const std::string& x, int64_t heads) {
  if (grid.is_identity() || grid->units() == 1) return {onnx_round(graph, grid, x), {}};
  const int64_t units = grid->units();
  require(grid.is_along(1) && heads % units == 0, "a grid of %d units for %d heads", units, heads);
  std::vector<Steps> steps;
  std::vector<const Table::Levels*> tables;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t unit = h * units / heads;
    if (const auto* g = grid.as<Table>()) tables.push_back(&g->parts[static_cast<size_t>(unit)]);
    if (const auto* g = grid.as<Asymmetric>()) steps.push_back(steps_of(*g, unit));
  }
  require_usage(!steps.empty() || !tables.empty(), "--format onnx: grids of the kind \"%s\" for heads are not written",
                grid.name());
  return tables.empty() ? round_heads(graph, steps, x) : round_table_heads(graph, tables, x);
}

std::string onnx_rescale(OnnxGraph& graph, const OnnxRounded& a, const OnnxRounded& b, const std::string& y) {
  std::vector<float> scale = a.scale.empty() ? b.scale : a.scale;
  for (size_t h = 0; h < scale.size() && !a.scale.empty() && !b.scale.empty(); ++h) scale[h] *= b.scale[h];
  return scale.empty() ? y : graph.add("Mul", {y, each(graph, scale)});
}

std::string onnx_weight(OnnxGraph& graph, const Grid& grid, const Weight& weight, bool meets_codes) {
  const Tensor w = weight.values();
  if (grid.is_identity() || grid->bits > kInt8Bits || !grid->has_zero_points()) return graph.floats(transposed(w));
  const int64_t out = w.dim(0), in = w.dim(1), units = grid->units(), n = units == 1 ? 1 : out;
  require(out % units == 0 && (units == 1 || grid->axis() == 0), "a grid of %d units for %d rows", units, out);
  const bool is_unsigned = grid->bits == kInt8Bits;
  const int32_t top = (1 << grid->bits) - 1;
  for (int64_t u = 0; u < units; ++u) {
    const int32_t z = grid->zero_point(u);
    if (is_unsigned ? z < 0 || z > top : z > 128 || top - z > 127) return graph.floats(transposed(w));
  }
  std::vector<float> scale;
  std::vector<uint8_t> zero, codes(static_cast<size_t>(out * in));  // those of S8 are the same bytes
  for (int64_t r = 0; r < n; ++r) {
    scale.push_back(grid->plane_scale(0, r * units / out));
    zero.push_back(static_cast<uint8_t>(is_unsigned ? grid->zero_point(r * units / out) : 0));
  }
  for (int64_t r = 0; r < out; ++r) {
    const size_t at = static_cast<size_t>(n == 1 ? 0 : r);
    const int32_t z = grid->zero_point(r * units / out);
    for (int64_t c = 0; c < in; ++c) {
      const float value = w[r * in + c], code = std::nearbyint(value / scale[at]);
      require(code >= static_cast<float>(-z) && code <= static_cast<float>(top - z) && scale[at] * code == value,
              "a weight of %g is not on its grid of step %g", value, scale[at]);
      codes[static_cast<size_t>(c * out + r)] = static_cast<uint8_t>(static_cast<int32_t>(code) + zero[at]);
    }
  }
  const auto stored = [&](const std::vector<uint8_t>& values, const Shape& shape) {
    if (is_unsigned) return graph.codes(values, shape);
    return graph.constant(std::vector<int8_t>(values.begin(), values.end()), shape);
  };
  const Shape shape = n == 1 ? Shape{} : Shape{n};
  const std::string code = stored(codes, {in, out}), scales = graph.constant(scale, shape);
  if (meets_codes)
    return graph.add("DequantizeLinear", {code, scales, stored(zero, shape)},
                     n == 1 ? std::vector<OnnxAttribute>{} : std::vector<OnnxAttribute>{{"axis", int64_t{1}}});
  std::string number = graph.add("Cast", {code}, {{"to", kToF32}});
  if (is_unsigned)
    number = graph.add("Sub", {number, graph.constant(std::vector<float>(zero.begin(), zero.end()), shape)});
  return graph.add("Mul", {number, scales});
}

}  // namespace bcq
