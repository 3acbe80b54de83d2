// ONNX graphs computed operation by operation, as the operators' specification has them: opset 17, those that are
// written. Floats are rounded to F32 after each operation; sums are exact in double before that.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/core/check.h"
#include "engine/file/onnx_graph.h"

namespace bcq::test {

class OnnxRun {
 public:
  // Values of any type; those of the largest I64 need not be exact.
  struct Value {
    Shape shape;
    std::vector<double> of;

    int64_t dim(int64_t i) const { return shape.at(static_cast<size_t>(i < 0 ? i + rank() : i)); }
    int64_t rank() const { return static_cast<int64_t>(shape.size()); }
  };

  Tensor operator()(const OnnxGraph& graph, const Tensor& pixels) {
    values_.clear();
    values_[OnnxGraph::kInput] = {pixels.shape, {pixels.data, pixels.data + pixels.size()}};
    for (const OnnxConstant& c : graph.constants) values_[c.name] = read(c);
    for (const OnnxNode& node : graph.nodes) run(node);
    const Value& y = values_.at(OnnxGraph::kOutput);
    return Tensor(y.shape, std::vector<float>(y.of.begin(), y.of.end()));
  }

 private:
  using Function = std::function<double(const std::vector<double>&)>;

  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  static Value read(const OnnxConstant& c) {
    return std::visit([&](const auto& v) { return Value{c.shape, {v.begin(), v.end()}}; }, c.values);
  }

  template <class T>
  static T attribute(const OnnxNode& node, const std::string& name, T otherwise) {
    for (const auto& [key, value] : node.attributes)
      if (key == name) return std::get<T>(value);
    return otherwise;
  }
  static int64_t axis_of(const OnnxNode& node, int64_t rank, int64_t otherwise) {
    const int64_t axis = attribute<int64_t>(node, "axis", otherwise);
    return axis < 0 ? axis + rank : axis;
  }

  // y[i] = f(a[i], b[i], ...) of values that are broadcast against each other.
  static Value map(const std::vector<const Value*>& inputs, const Function& f) {
    Value y;
    for (const Value* x : inputs) {
      y.shape.insert(y.shape.begin(), at(std::max<int64_t>(0, x->rank() - y.rank())), 1);
      for (int64_t i = 1; i <= x->rank(); ++i) {
        int64_t& n = y.shape[at(y.rank() - i)];
        require(n == 1 || x->dim(-i) == 1 || n == x->dim(-i), "shapes that do not broadcast");
        n = std::max(n, x->dim(-i));
      }
    }
    std::vector<double> arguments(inputs.size());
    for (int64_t i = 0; i < numel(y.shape); ++i) {
      for (size_t k = 0; k < inputs.size(); ++k) {
        int64_t rest = i, offset = 0, stride = 1;
        for (int64_t d = 1; d <= inputs[k]->rank(); ++d) {
          if (inputs[k]->dim(-d) > 1) offset += rest % y.dim(-d) * stride;
          rest /= y.dim(-d);
          stride *= inputs[k]->dim(-d);
        }
        arguments[k] = inputs[k]->of[at(offset)];
      }
      y.of.push_back(static_cast<float>(f(arguments)));
    }
    return y;
  }

  // A parameter [n] along an axis of x as one that broadcasts.
  static Value along(const Value& parameter, const Value& x, int64_t axis) {
    if (parameter.rank() == 0) return parameter;
    require(parameter.rank() == 1 && parameter.dim(0) == x.dim(axis), "a parameter of another axis");
    Value y = parameter;
    y.shape.resize(at(x.rank() - axis), 1);
    return y;
  }

  // rows of the last dimension -> f(row, n, out)
  static Value map_rows(const Value& x, const std::function<void(const double*, int64_t, std::vector<double>&)>& f) {
    Value y{x.shape, {}};
    const int64_t n = x.dim(-1);
    for (int64_t r = 0; r < numel(x.shape); r += n) f(x.of.data() + r, n, y.of);
    for (double& value : y.of) value = static_cast<float>(value);
    return y;
  }

  static Value matmul(const Value& a, const Value& b) {
    const int64_t N = a.dim(-2), K = a.dim(-1), M = b.dim(-1), batch = numel(a.shape) / (N * K);
    require(b.dim(-2) == K && (b.rank() == 2 || numel(b.shape) == batch * K * M), "MatMul of shapes %s and %s",
            to_string(a.shape), to_string(b.shape));
    Value y{a.shape, {}};
    y.shape.back() = M;
    for (int64_t i = 0; i < batch; ++i) {
      const double *left = a.of.data() + i * N * K, *right = b.of.data() + (b.rank() == 2 ? 0 : i * K * M);
      for (int64_t r = 0; r < N; ++r)
        for (int64_t c = 0; c < M; ++c) {
          double sum = 0;
          for (int64_t k = 0; k < K; ++k) sum += left[r * K + k] * right[k * M + c];
          y.of.push_back(static_cast<float>(sum));
        }
    }
    return y;
  }

  static Value reshape(const Value& x, const Value& shape) {
    Value y = x;
    y.shape.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(shape.of.size()); ++i)
      y.shape.push_back(shape.of[at(i)] == 0 ? x.dim(i) : static_cast<int64_t>(shape.of[at(i)]));
    for (int64_t& n : y.shape)
      if (n == -1) {
        n = 1;
        n = numel(x.shape) / numel(y.shape);
      }
    require(numel(y.shape) == numel(x.shape), "Reshape of %s to %s", to_string(x.shape), to_string(y.shape));
    return y;
  }

  // y of this shape, y[i] = x at(the index of i)
  static Value pick(const Value& x, const Shape& shape, const std::function<int64_t(const Shape&)>& offset) {
    Value y{shape, {}};
    Shape index(shape.size(), 0);
    for (int64_t i = 0; i < numel(shape); ++i) {
      const int64_t from = offset(index);
      y.of.push_back(from < 0 ? 0 : x.of[at(from)]);
      for (size_t d = shape.size(); d-- > 0;) {
        if (++index[d] < shape[d]) break;
        index[d] = 0;
      }
    }
    return y;
  }
  static int64_t offset_of(const Value& x, const Shape& index) {
    int64_t offset = 0;
    for (size_t d = 0; d < index.size(); ++d) offset = offset * x.shape[d] + index[d];
    return offset;
  }

  static Value transpose(const Value& x, const std::vector<int64_t>& order) {
    Shape shape;
    for (const int64_t d : order) shape.push_back(x.dim(d));
    return pick(x, shape, [&](const Shape& index) {
      Shape from(index.size());
      for (size_t d = 0; d < index.size(); ++d) from[at(order[d])] = index[d];
      return offset_of(x, from);
    });
  }

  static Value gather(const Value& x, const Value& indices, int64_t axis) {
    Shape shape(x.shape.begin(), x.shape.begin() + axis);
    shape.insert(shape.end(), indices.shape.begin(), indices.shape.end());
    shape.insert(shape.end(), x.shape.begin() + axis + 1, x.shape.end());
    return pick(x, shape, [&](const Shape& index) {
      int64_t which = 0;
      Shape from(index.begin(), index.begin() + axis);
      for (int64_t d = 0; d < indices.rank(); ++d) which = which * indices.dim(d) + index[at(axis + d)];
      from.push_back(static_cast<int64_t>(indices.of[at(which)]));
      require(0 <= from.back() && from.back() < x.dim(axis), "an index out of range");
      from.insert(from.end(), index.begin() + axis + indices.rank(), index.end());
      return offset_of(x, from);
    });
  }

  // Entries [begin, begin + n) of an axis.
  static Value part(const Value& x, int64_t axis, int64_t begin, int64_t n) {
    Shape shape = x.shape;
    shape[at(axis)] = n;
    return pick(x, shape, [&](Shape index) {
      index[at(axis)] += begin;
      return offset_of(x, index);
    });
  }

  static Value pad(const Value& x, const Value& pads) {  // zeros before
    Shape shape = x.shape;
    for (size_t d = 0; d < shape.size(); ++d) shape[d] += static_cast<int64_t>(pads.of[d]);
    return pick(x, shape, [&](Shape index) -> int64_t {
      for (size_t d = 0; d < index.size(); ++d)
        if ((index[d] -= static_cast<int64_t>(pads.of[d])) < 0) return -1;
      return offset_of(x, index);
    });
  }

  static Value concat(const std::vector<const Value*>& parts) {  // of rows
    Value y = *parts[0];
    y.shape.back() = 0;
    y.of.clear();
    for (const Value* x : parts) y.shape.back() += x->dim(-1);
    for (int64_t r = 0; r < numel(parts[0]->shape) / parts[0]->dim(-1); ++r)
      for (const Value* x : parts)
        y.of.insert(y.of.end(), x->of.begin() + r * x->dim(-1), x->of.begin() + (r + 1) * x->dim(-1));
    return y;
  }

  static Value reduce(const OnnxNode& node, const Value& x, int64_t axis) {
    axis = axis < 0 ? axis + x.rank() : axis;
    const int64_t n = x.dim(axis);
    Value y = part(x, axis, 0, 1);
    for (int64_t i = 1; i < n; ++i) {
      const Value next = part(x, axis, i, 1);
      for (size_t k = 0; k < y.of.size(); ++k)
        y.of[k] = node.op == "ReduceMax" ? std::max(y.of[k], next.of[k]) : y.of[k] + next.of[k];
    }
    for (double& value : y.of)
      value = static_cast<float>(node.op == "ReduceMean" ? value / static_cast<double>(n) : value);
    if (attribute<int64_t>(node, "keepdims", 1) == 0) y.shape.erase(y.shape.begin() + axis);
    return y;
  }

  static const std::map<std::string, Function>& elementwise() {
    using V = const std::vector<double>&;
    static const std::map<std::string, Function> all = {
        {"Add", [](V x) { return x[0] + x[1]; }},
        {"Sub", [](V x) { return x[0] - x[1]; }},
        {"Mul", [](V x) { return x[0] * x[1]; }},
        {"Div", [](V x) { return x[0] / x[1]; }},
        {"Max", [](V x) { return std::max(x[0], x[1]); }},
        {"Min", [](V x) { return std::min(x[0], x[1]); }},
        {"Less", [](V x) { return x[0] < x[1]; }},
        {"Where", [](V x) { return x[0] != 0 ? x[1] : x[2]; }},
        {"Clip", [](V x) { return std::min(std::max(x[0], x[1]), x[2]); }},
        {"Round", [](V x) { return std::nearbyint(x[0]); }},
        {"Log", [](V x) { return std::log(x[0]); }},
        {"Exp", [](V x) { return std::exp(x[0]); }},
        {"Erf", [](V x) { return std::erf(x[0]); }},
        {"Sigmoid", [](V x) { return 1 / (1 + std::exp(-x[0])); }},
        {"Cast", [](V x) { return std::trunc(x[0]); }},
        {"QuantizeLinear",
         [](V x) {
           const double code = std::nearbyint(static_cast<double>(static_cast<float>(x[0] / x[1]))) + x[2];
           return std::clamp(code, 0., 255.);
         }},
        {"DequantizeLinear", [](V x) { return (x[0] - x[2]) * x[1]; }}};
    return all;
  }

  static Value layer_norm(const Value& x, const Value& weight, const Value& bias, float eps) {
    return map_rows(x, [&](const double* row, int64_t n, std::vector<double>& out) {
      double mean = 0, square = 0;
      for (int64_t i = 0; i < n; ++i) mean += row[i] / static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i) square += (row[i] - mean) * (row[i] - mean) / static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i)
        out.push_back((row[i] - mean) / std::sqrt(square + static_cast<double>(eps)) * weight.of[at(i)] +
                      bias.of[at(i)]);
    });
  }
  static Value softmax(const Value& x) {
    return map_rows(x, [](const double* row, int64_t n, std::vector<double>& out) {
      const double most = *std::max_element(row, row + n);
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += std::exp(row[i] - most);
      for (int64_t i = 0; i < n; ++i) out.push_back(std::exp(row[i] - most) / sum);
    });
  }

  void run(const OnnxNode& node) {
    std::vector<const Value*> in;
    for (const std::string& name : node.inputs) {
      require(values_.count(name), "%s: a value %s that nothing made", node.name, name);
      in.push_back(&values_.at(name));
    }
    require(!values_.count(node.outputs.at(0)), "%s: a value made twice", node.outputs[0]);
    if (node.op == "Split") {
      const int64_t axis = axis_of(node, in[0]->rank(), 0);
      const auto n = static_cast<int64_t>(node.outputs.size()), width = in[0]->dim(axis) / n;
      for (int64_t i = 0; i < n; ++i) values_[node.outputs[at(i)]] = part(*in[0], axis, i * width, width);
      return;
    }
    values_[node.outputs[0]] = result(node, in);
  }

  static Value result(const OnnxNode& node, const std::vector<const Value*>& in) {
    const std::string& op = node.op;
    const Value& x = *in[0];
    if (op == "QuantizeLinear" || op == "DequantizeLinear") {
      const int64_t axis = axis_of(node, x.rank(), 1);
      const Value scale = along(*in[1], x, axis), zero = along(*in[2], x, axis);
      return map({&x, &scale, &zero}, elementwise().at(op));
    }
    if (const auto f = elementwise().find(op); f != elementwise().end()) return map(in, f->second);
    if (op == "MatMul") return matmul(x, *in[1]);
    if (op == "Reshape") return reshape(x, *in[1]);
    if (op == "Transpose") return transpose(x, attribute<std::vector<int64_t>>(node, "perm", {}));
    if (op == "Gather") return gather(x, *in[1], axis_of(node, x.rank(), 0));
    if (op == "Slice") {
      const auto begin = static_cast<int64_t>(in[1]->of[0]), axis = static_cast<int64_t>(in[3]->of[0]);
      return part(x, axis, begin, x.dim(axis) - begin);  // to the end
    }
    if (op == "Pad") return pad(x, *in[1]);
    if (op == "Concat") return concat(in);
    if (op == "ReduceSum") return reduce(node, x, static_cast<int64_t>(in[1]->of[0]));
    if (op.starts_with("Reduce")) return reduce(node, x, attribute<std::vector<int64_t>>(node, "axes", {}).at(0));
    if (op == "Softmax") return softmax(x);
    if (op == "LayerNormalization") return layer_norm(x, *in[1], *in[2], attribute<float>(node, "epsilon", 1e-5f));
    throw Error(format("%s: no such operation", op));
  }

  std::map<std::string, Value> values_;
};

}  // namespace bcq::test
