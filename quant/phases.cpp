#include "quant/phases.h"

#include <algorithm>

namespace bcq {

std::vector<Phase> phases_of(const std::vector<Method*>& methods, bool by_means) {
  std::vector<Phase> phases;
  for (Method* method : methods) {
    const Needs needs = method->needs();
    const bool compensates = method->compensates();
    const bool shares = !phases.empty() && phases.back().needs.stream == needs.stream &&
                        phases.back().needs.sequential == needs.sequential && (by_means || !compensates) &&
                        !phases.back().compensation;
    if (!shares) phases.push_back({needs, {}, nullptr});
    Phase& phase = phases.back();
    phase.needs.moments |= needs.moments;
    phase.needs.held_out = std::max(phase.needs.held_out, needs.held_out);
    phase.needs.cross |= needs.cross;
    phase.needs.operands |= needs.operands;
    phase.needs.outputs |= needs.outputs;
    phase.methods.push_back(method);
    if (compensates) phase.compensation = method;
  }
  return phases;
}

std::vector<Group> groups_of(const Part& part, std::span<const Phase> phases) {
  std::vector<Group> groups;
  for (const LayerGroup& group : part.groups) {
    Group wanted;
    for (Layer* layer : group.layers) {
      bool is_wanted = false;
      for (const Phase& phase : phases)
        for (const Method* method : phase.methods) is_wanted |= method->wants(*layer) || wants_output(*method, *layer);
      if (is_wanted) wanted.push_back(layer);
    }
    if (!wanted.empty()) groups.push_back(wanted);
  }
  return groups;
}

}  // namespace bcq
