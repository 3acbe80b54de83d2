// Which methods of a calibration are shown the same passes, in which order, and what they are shown of a group of
// layers: sums over all samples, or whole operands.
#pragma once
#include <span>
#include <vector>

#include "quant/mean_errors.h"

namespace bcq {

// Whether the method compensates this layer as it is now.
inline bool compensates(const Method& method, Layer& layer) {
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
  bool compensates(Layer& layer) const { return compensation && bcq::compensates(*compensation, layer); }
};

// Methods that look at the same inputs share a phase; but where errors of products are measured (not `by_means`), not
// one that measures them with one that changes them.
std::vector<Phase> phases_of(const std::vector<Method*>& methods, bool by_means);

// Layers of a part that methods of these phases fit or compensate, by the inputs they share.
std::vector<Group> groups_of(const Part& part, std::span<const Phase> phases);

struct GroupSums {
  Seen seen;
  HeldOutMean real, quantized;      // mean inputs on the two streams
  std::vector<HeldOutMean> errors;  // of the outputs of its layers that are compensated
};

// Of groups of the present part i, batch by batch. `by_means`: mean inputs in place of errors. `keeps_output`: the
// float pass goes on to the part's output, which is wanted later.
std::vector<GroupSums> sums_of(Streams& streams, int i, const Phase& phase, std::span<const Group> groups,
                               bool by_means, bool keeps_output);

// Of one group, from what its layers are fed on the two streams, all samples together.
GroupSums sums_of(Streams& streams, const Phase& phase, const Group& group, const Fed& real, const Fed& quantized);

}  // namespace bcq
