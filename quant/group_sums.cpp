#include "quant/group_sums.h"

#include <algorithm>
#include <utility>

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
        for (const Method* method : phase.methods) is_wanted |= method->wants(*layer) || compensates(*method, *layer);
      if (is_wanted) wanted.push_back(layer);
    }
    if (!wanted.empty()) groups.push_back(wanted);
  }
  return groups;
}

namespace {

// What one batch adds.
struct Observed {
  Tensors real, quantized;  // inputs of groups
  Means real_means, quantized_means, errors;

  void fields(auto visit) { visit(real, quantized, real_means, quantized_means, errors); }
};

// `watched`: layers whose outputs are looked at.
Observed observe(Streams& streams, int i, size_t j, const Phase& phase, std::span<const Group> groups,
                 const Group& watched, bool keeps_output) {
  const BcShape shape = phase.shape();
  const bool same_inputs = phase.needs.stream == Stream::Float;
  Observed x;
  Tensors float_outputs;  // of the watched layers
  if (phase.sees_float()) {
    const bool to_output = keeps_output && !streams.has_float_output(j);
    Pass pass(groups, to_output);
    pass.watch(watched, [&](const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) {
      if (same_inputs)
        x.errors.push_back(mean_of_one(shape, y, layer.product({Precision::Fake}, a, b)));
      else
        float_outputs.push_back(y);
    });
    const Tensor y = streams.run(Precision::Float, i, j, streams.real()[j], &pass);
    if (to_output) streams.keep_float_output(j, y);
    x.real = std::move(pass.inputs);
  }
  if (!same_inputs) {
    Pass pass(groups, false);
    pass.watch(watched, [&](const Layer&, const Tensor&, const Tensor&, const Tensor& y) {
      x.errors.push_back(mean_of_one(shape, float_outputs[x.errors.size()], y));
    });
    streams.run(Precision::Fake, i, j, streams.quantized()[j], &pass);
    x.quantized = std::move(pass.inputs);
  }
  return x;
}

// Held-out samples apart; with the float network's inputs beside them, the others in two halves.
void add_moments(const Phase& phase, size_t j, const Tensor& own, const Tensor& real, Seen& seen) {
  std::unique_ptr<Moments>& into = is_held_out(static_cast<int64_t>(j), phase.needs.held_out) ? seen.held_out
                                   : phase.needs.cross && j % 2                               ? seen.odd
                                                                                              : seen.moments;
  if (!into) into = std::make_unique<Moments>(own.dim(-1), rank(), ranks());
  into->add(own, phase.needs.cross ? real : Tensor{});
}

void gather(Seen& seen) {
  for (Moments* moments : {seen.moments.get(), seen.odd.get(), seen.held_out.get()})
    if (moments) moments->gather();
}

// Whether all that precedes this group in its part stays as it is: later passes may begin with what attention makes,
// two thirds of a block's work where windows are long.
bool is_late_start(const Phase& phase, std::span<const Group> groups) {
  const auto folds = [](const Method* method) { return method->needs().folds; };
  return phase.needs.sequential && groups.size() == 1 && groups[0].front()->role == Role::Proj &&
         std::none_of(phase.methods.begin(), phase.methods.end(), folds);
}

}  // namespace

std::vector<GroupSums> sums_of(Streams& streams, int i, const Phase& phase, std::span<const Group> groups,
                               bool by_means, bool keeps_output) {
  std::vector<GroupSums> sums(groups.size());
  if (!phase.needs.moments && !phase.compensation) return sums;
  const BcShape shape = phase.shape();
  const bool late_start = is_late_start(phase, groups);
  Group watched;
  for (size_t g = 0; g < groups.size(); ++g) {
    sums[g].real = sums[g].quantized = HeldOutMean(shape, phase.held_out());
    for (Layer* layer : groups[g])
      if (!by_means && phase.compensates(*layer)) {
        watched.push_back(layer);
        sums[g].errors.emplace_back(shape, phase.held_out());
      }
  }
  streams.for_batches(
      [&](size_t j) {
        Observed x = observe(streams, i, j, phase, groups, watched, keeps_output);
        if (phase.compensation && by_means)
          x.real_means = means_of(shape, x.real), x.quantized_means = means_of(shape, x.quantized);
        if (!phase.needs.moments && !late_start) x.real.clear(), x.quantized.clear();
        return x;
      },
      [&](size_t j, const Observed& x) {
        const auto first = [](const Tensors& inputs) { return inputs.empty() ? Tensor{} : inputs[0]; };
        if (late_start && streams.owns(j)) streams.start_late(*groups[0][0], j, first(x.real), first(x.quantized));
        size_t k = 0;
        for (size_t g = 0; g < sums.size(); ++g) {
          if (phase.needs.moments)
            add_moments(phase, j, (phase.needs.stream == Stream::Float ? x.real : x.quantized)[g],
                        phase.needs.cross ? x.real[g] : Tensor{}, sums[g].seen);
          if (!x.real_means.empty()) sums[g].real.add(j, x.real_means[g]);
          if (!x.quantized_means.empty()) sums[g].quantized.add(j, x.quantized_means[g]);
          for (HeldOutMean& error : sums[g].errors) error.add(j, x.errors[k++]);
        }
      });
  for (GroupSums& of_group : sums) gather(of_group.seen);
  return sums;
}

GroupSums sums_of(Streams& streams, const Phase& phase, const Group& group, const Fed& real, const Fed& quantized) {
  const Stopwatch watch(streams.seconds.sums);
  const Fed& own = phase.needs.stream == Stream::Float ? real : quantized;
  GroupSums sums;
  sums.real = sums.quantized = HeldOutMean(phase.shape(), phase.held_out());
  if (phase.needs.operands)
    for (const Layer* layer : group) {
      Operands x{own.a, own.b, {}, {}, {}};
      if (phase.needs.outputs) x.y = layer->product({Precision::Float}, own.a, own.b);
      if (phase.needs.cross) x.f = real.a;
      sums.seen.operands.push_back(std::move(x));
    }
  for (size_t j = 0; phase.needs.moments && j < streams.batches(); ++j)
    add_moments(phase, j, streams.samples_of(j, own.a), streams.samples_of(j, real.a), sums.seen);
  gather(sums.seen);
  for (Layer* layer : group) {
    if (!phase.compensates(*layer)) continue;
    sums.errors.emplace_back(phase.shape(), phase.held_out());
    const Tensor f = layer->product({Precision::Float}, real.a, real.b);
    const Tensor q = layer->product({Precision::Fake}, own.a, own.b);
    for (size_t j = 0; j < streams.batches(); ++j)
      sums.errors.back().add(j, mean_of_one(phase.shape(), streams.samples_of(j, f), streams.samples_of(j, q)));
  }
  return sums;
}

}  // namespace bcq
