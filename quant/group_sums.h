// What methods are shown of a group of layers: sums over all samples, or whole operands.
#pragma once
#include <span>
#include <vector>

#include "quant/mean_errors.h"
#include "quant/phases.h"

namespace bcq {

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
