#include "engine/file/onnx_grid.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/core/check.h"
#include "engine/grid/asymmetric.h"
#include "engine/grid/log_grid.h"
#include "engine/grid/offset.h"
#include "engine/grid/table.h"
#include "engine/grid/twin_gelu.h"
#include "engine/grid/twin_softmax.h"
#include "engine/grid/uniform.h"

namespace bcq {
namespace {

constexpr int64_t kToI32 = 6;  // of Cast: TensorProto.DataType

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
using Units = std::vector<Steps>;  // of all of x, or of each head

// A number of each unit as a constant that goes with x [B, heads, ...].
std::string each(OnnxGraph& graph, const Units& units, const std::function<float(const Steps&)>& number) {
  std::vector<float> values;
  for (const Steps& unit : units) values.push_back(number(unit));
  return units.size() == 1 ? graph.scalar(values[0]) : graph.floats(values, {static_cast<int64_t>(units.size()), 1, 1});
}

std::string clip(OnnxGraph& graph, const Units& units, const std::string& x) {
  const std::string least = each(graph, units, [](const Steps&s) { return s.least(); }),
                    most = each(graph, units, [](const Steps&s) { return s.most(); });
  if (units.size() == 1) return graph.add("Clip", {x, least, most});
  return graph.add("Min", {graph.add("Max", {x, least}), most});
}

// The same shape as parameters of QuantizeLinear have: a scalar, or [heads].
struct Parameters {
  std::string scale, zero;
  std::vector<OnnxAttribute> attributes;

  std::vector<std::string> with(const std::string& x) const { return {x, scale, zero}; }
};
Parameters parameters_of(OnnxGraph& graph, const std::vector<float>& scale, const std::vector<uint8_t>& zero) {
  const bool one = scale.size() == 1;
  const Shape shape = one ? Shape{} : Shape{static_cast<int64_t>(scale.size())};
  return {graph.floats(scale, shape), graph.codes(zero, shape),
          one ? std::vector<OnnxAttribute>{} : std::vector<OnnxAttribute>{{"axis", int64_t{1}}}};
}

std::string round_steps(OnnxGraph& graph, const Units& units, const std::string& x) {
  const auto all = [&](bool (Steps::*is)() const) {
    return std::all_of(units.begin(), units.end(), [&](const Steps& s) { return (s.*is)(); });
  };
  if (!all(&Steps::has_codes)) {
    const std::string scale = each(graph, units, [](const Steps& s) { return s.scale; });
    const std::string code = graph.add("Round", {graph.add("Div", {clip(graph, units, x), scale})});
    return graph.add("Mul", {code, scale});
  }
  std::vector<float> scale;
  std::vector<uint8_t> zero;
  for (const Steps& unit : units) {
    scale.push_back(unit.scale);
    zero.push_back(static_cast<uint8_t>(unit.zero()));
  }
  const Parameters p = parameters_of(graph, scale, zero);
  const std::string inside = all(&Steps::fills_codes) ? x : clip(graph, units, x);
  return graph.add("DequantizeLinear", p.with(graph.add("QuantizeLinear", p.with(inside), p.attributes)), p.attributes);
}

Steps steps_of(int bits, float scale) {
  const int32_t m = 1 << (bits - 1);
  return {scale, -m, m - 1};
}

// f(unit) for x as a whole or, of a grid of several units, for each of its heads.
template <class F>
auto for_units(const Grid& grid, int64_t heads, F f) {
  std::vector<decltype(f(int64_t{}))> all;
  const int64_t units = grid->units(), n = units == 1 ? 1 : heads;
  require(grid.is_along(1) && n % units == 0, "a grid of %d units for %d heads", units, heads);
  for (int64_t i = 0; i < n; ++i) all.push_back(f(i * units / n));
  return all;
}

std::string round_table(OnnxGraph& graph, const Grid& grid, const Table& table, const std::string& x, int64_t heads) {
  std::vector<float> scale;
  std::vector<uint8_t> zero, nearest;
  std::vector<int32_t> begin;  // of each head's table
  for (const Table::Levels* part :
       for_units(grid, heads, [&](int64_t u) { return &table.parts[static_cast<size_t>(u)]; })) {
    scale.push_back(part->scale);
    zero.push_back(static_cast<uint8_t>(part->zero));
    begin.push_back(static_cast<int32_t>(nearest.size()));
    nearest.insert(nearest.end(), part->nearest.begin(), part->nearest.end());
  }
  const Parameters p = parameters_of(graph, scale, zero);
  const std::string code = graph.add("QuantizeLinear", p.with(x), p.attributes);
  std::string index = graph.add("Cast", {code}, {{"to", kToI32}});
  const auto n = static_cast<int64_t>(begin.size());
  if (n > 1) index = graph.add("Add", {index, graph.ints32(begin, {n, 1, 1})});
  const std::string entries = graph.codes(nearest, {static_cast<int64_t>(nearest.size())});
  return graph.add("DequantizeLinear", p.with(graph.add("Gather", {entries, index})), p.attributes);
}

std::string round_twin_gelu(OnnxGraph& graph, const TwinGelu& grid, const std::string& x) {
  const int32_t m = 1 << (grid.bits - 1);
  const std::string above = round_steps(graph, {{grid.pos, 0, m - 1}}, x);
  return graph.add("Add", {above, round_steps(graph, {{grid.neg, -m, 0}}, x)});
}

std::string round_twin_softmax(OnnxGraph& graph, const TwinSoftmax& grid, const std::string& x) {
  const int32_t m = (1 << (grid.bits - 1)) - 1;
  const std::string split = graph.scalar(grid.split), steps = graph.scalar(static_cast<float>(m)),
                    one = graph.scalar(1);
  const std::string low = round_steps(graph, {{grid.split / static_cast<float>(m), 0, m}}, x);
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
  return graph.add("Gather", {graph.floats(values, {static_cast<int64_t>(values.size())}), index});
}

}  // namespace

std::string onnx_round(OnnxGraph& graph, const Grid& grid, const std::string& x, int64_t heads) {
  if (grid.is_identity()) return x;
  if (const auto* g = grid.as<Uniform>())
    return round_steps(graph,
                       for_units(grid, heads, [&](int64_t u) { return steps_of(g->bits, g->plane_scale(0, u)); }), x);
  if (const auto* g = grid.as<Asymmetric>())
    return round_steps(graph,
                       for_units(grid, heads,
                                 [&](int64_t u) {
                                   return Steps{g->plane_scale(0, u), -g->offset(u), (1 << g->bits) - 1 - g->offset(u)};
                                 }),
                       x);
  if (const auto* g = grid.as<Table>()) return round_table(graph, grid, *g, x, heads);
  if (const auto* g = grid.as<TwinGelu>()) return round_twin_gelu(graph, *g, x);
  if (const auto* g = grid.as<TwinSoftmax>()) return round_twin_softmax(graph, *g, x);
  if (const auto* g = grid.as<LogGrid>()) return round_log(graph, *g, x);
  const auto* g = grid.as<Offset>();
  require_usage(g != nullptr, "--format onnx: activations on a grid of the kind \"%s\" are not written", grid.name());
  const std::string offsets = graph.floats(g->offset_of, {static_cast<int64_t>(g->offset_of.size())});
  const std::string rounded = round_steps(graph, {steps_of(g->bits, g->step)}, graph.add("Add", {x, offsets}));
  return graph.add("Sub", {rounded, offsets});
}

namespace {

Tensor transposed(const Tensor& w) {
  const int64_t rows = w.dim(0), columns = w.dim(1);
  Tensor y = Tensor::uninitialized({columns, rows});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) y[c * rows + r] = w[r * columns + c];
  return y;
}

}  // namespace

std::string onnx_weight(OnnxGraph& graph, const Grid& grid, const Weight& weight) {
  const Tensor w = weight.values();
  if (grid.is_identity() || grid->bits > kInt8Bits || !grid->has_zero_points()) return graph.floats(transposed(w));
  const int64_t out = w.dim(0), in = w.dim(1), units = grid->units();
  require(units == 1 || (grid->axis() == 0 && out % units == 0), "a grid of %d units for %d rows", units, out);
  const int32_t top = (1 << grid->bits) - 1;
  bool centred = true;  // codes less their zero points are S8
  std::vector<float> scale;
  std::vector<int8_t> zero;
  for (int64_t u = 0; u < units; ++u) centred &= grid->zero_point(u) <= 128 && top - grid->zero_point(u) <= 127;
  for (int64_t r = 0; r < (units == 1 ? 1 : out); ++r) {
    const int64_t unit = r * units / out;
    scale.push_back(grid->plane_scale(0, unit));
    zero.push_back(static_cast<int8_t>(centred ? 0 : grid->zero_point(unit) - 128));
  }
  std::vector<int8_t> codes(static_cast<size_t>(out * in));
  for (int64_t r = 0; r < out; ++r) {
    const auto at = static_cast<size_t>(units == 1 ? 0 : r);
    const auto least = static_cast<float>(-grid->zero_point(r * units / out)), most = least + static_cast<float>(top);
    for (int64_t c = 0; c < in; ++c) {
      const float value = w[r * in + c], code = std::nearbyint(value / scale[at]);
      require(code >= least && code <= most && scale[at] * code == value,
              "a weight of %g is not on its grid of step %g", value, scale[at]);
      codes[static_cast<size_t>(c * out + r)] = static_cast<int8_t>(code + zero[at]);
    }
  }
  const Shape shape = units == 1 ? Shape{} : Shape{out};
  const std::string stored = graph.signed_codes(codes, {in, out});
  return graph.add("DequantizeLinear", {stored, graph.floats(scale, shape), graph.signed_codes(zero, shape)},
                   units == 1 ? std::vector<OnnxAttribute>{} : std::vector<OnnxAttribute>{{"axis", int64_t{1}}});
}

}  // namespace bcq
