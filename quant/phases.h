// Which methods of a calibration are shown the same passes, in which order, and what for.
#pragma once
#include <span>
#include <vector>

#include "quant/method.h"
#include "quant/passes.h"

namespace bcq {

// Whether the method compensates this layer as it is now.
inline bool wants_output(const Method& method, Layer& layer) {
  return layer.is_quantized() && method.wants_output(Model::point_of(layer).kind);
}

// Methods that follow each other and are shown the same passes.
struct Phase {
  Needs needs;  // of any of them
  std::vector<Method*> methods;
  Method* compensation = nullptr;  // of them, the one that takes errors of products

  bool passes() const { return needs.moments || needs.operands || compensation; }
  bool sees_float() const { return needs.stream == Stream::Float || needs.cross || compensation; }
  BcShape shape() const { return compensation ? compensation->shape() : BcShape::Channel; }
  double held_out() const { return compensation ? compensation->held_out() : 0; }
  bool compensates(Layer& layer) const { return compensation && wants_output(*compensation, layer); }
};

// Methods that look at the same inputs share a phase; but where errors of products are measured (not `by_means`), not
// one that measures them with one that changes them.
std::vector<Phase> phases_of(const std::vector<Method*>& methods, bool by_means);

// Layers of a part that methods of these phases fit or compensate, by the inputs they share.
std::vector<Group> groups_of(const Part& part, std::span<const Phase> phases);

}  // namespace bcq
