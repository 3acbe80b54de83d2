#include "quant/calibrate.h"

#include <algorithm>
#include <span>
#include <utility>

#include "engine/core/check.h"
#include "engine/core/ranks.h"
#include "engine/nn/ops.h"
#include "quant/group_sums.h"
#include "quant/operands.h"

namespace bcq {
namespace {

class Calibration {
 public:
  Calibration(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods,
              const CalibrationOptions& options)
      : model_(model),
        methods_(methods),
        options_(options),
        streams_(model, data, options.window_bits, std::any_of(methods.begin(), methods.end(), sees_whole_inputs),
                 result_.seconds) {
    const std::vector<Layer*> all = model.all_layers();
    // The mean output of a layer follows from its mean input only where that is not rounded, now or by a method that
    // looks at operands.
    by_means_ = std::all_of(all.begin(), all.end(), [](Layer* l) { return is_identity(l->left_grid()); }) &&
                std::none_of(methods.begin(), methods.end(), [](Method* m) { return m->needs().operands; });
    phases_ = phases_of(methods, by_means_);
    for (const Phase& phase : phases_) {
      has_real_ |= phase.passes() && phase.sees_float();
      has_quantized_ |= phase.passes() && phase.needs.stream == Stream::Quantized;
    }
    for (const Method* method : methods)
      if (wants_larger_outputs(*method) || method->needs().blocks)
        has_real_ = true, has_quantized_ |= method->needs().stream == Stream::Quantized;
  }

  CalibrationResult run() {
    const int depth = model_.depth(), last = model_.layers(depth).empty() ? depth - 1 : depth;
    int next = -1;  // the first part that is not finished
    while (options_.store && next <= last && (model_.layers(next).empty() || options_.store->has(options_.name, next)))
      ++next;
    if (rank() > 0) next = 0;
    share(next, 0);  // the first rank may be about to finish one
    last_ = last;
    for (int i = -1; i <= last; ++i) {
      report(i + 1, last + 2);
      part_ = model_.part(i);
      if (part_.output.kind == Point::Kind::Block && i == stage_first_ && next <= last) keep_entry();
      result_.parts.emplace_back();
      if (i < next) {
        if (has_real_ && next <= last) streams_.keep_float_outputs(i);
        if (!part_.groups.empty()) options_.store->load(options_.name, model_, i, record());
      } else {
        fit(i);
        if (options_.store && !part_.groups.empty())
          options_.store->done(options_.name, model_, i, result_.parts.back());
      }
      if (part_.ends_stage) stage_ += 1, stage_first_ = i + 1;
      if (i < last && next <= last) streams_.advance(i, has_real_, has_quantized_);
    }
    report(last + 2, last + 2);
    return std::move(result_);
  }

 private:
  static bool sees_whole_inputs(const Method* method) {
    const Needs needs = method->needs();
    return needs.operands || needs.inputs || needs.blocks;
  }

  static bool wants_larger_outputs(const Method& method) {
    for (const auto kind : {Point::Kind::Attention, Point::Kind::Mlp, Point::Kind::Block, Point::Kind::Downsample,
                            Point::Kind::Stage, Point::Kind::Model})
      if (method.wants_output(kind)) return true;
    return false;
  }

  void report(int done, int total) const {
    if (options_.progress) options_.progress(options_.name, done, total);
  }
  PartRecord& record() { return result_.parts.back(); }
  // What this method sees the present part fed.
  const Tensors& inputs_of(const Method& method) const {
    return method.needs().stream == Stream::Float ? streams_.real() : streams_.quantized();
  }

  // ---- A part's layers ---------------------------------------------------------------------------

  void fit(int i) {
    for (Method* method : methods_) {
      method->start(part_);
      if (method->needs().inputs) method->see_inputs(i, inputs_of(*method));
    }
    real_means_.clear();
    for (size_t first = 0, end; first < phases_.size(); first = end) {
      end = first + 1;
      while (end < phases_.size() && phases_[first].needs.sequential && phases_[end].needs.sequential) ++end;
      fit_phases(i, {&phases_[first], end - first});
    }
    for (Method* method : methods_) fit_outputs(i, *method);
  }

  // Sequential phases that follow each other, group by group; or one that is not, all groups at once.
  void fit_phases(int i, std::span<const Phase> phases) {
    for (const Phase& phase : phases)
      if (phase.needs.operands) return fit_operands(i, phases);
    const std::vector<Group> groups = groups_of(part_, phases);
    const bool sequential = phases[0].needs.sequential;
    if (!sequential) streams_.forget_late_start();
    const size_t step = sequential ? 1 : groups.size();
    for (size_t g = 0; g < groups.size(); g += step)
      for (const Phase& phase : phases) fit_groups(i, phase, {&groups[g], step}, g + step == groups.size());
  }

  // `last`: the float network's output may be kept.
  void fit_groups(int i, const Phase& phase, std::span<const Group> groups, bool last) {
    std::vector<GroupSums> sums = sums_of(streams_, i, phase, groups, by_means_, last && needs_float_output(i));
    for (size_t g = 0; g < groups.size(); ++g) fit_group(phase, groups[g], sums[g]);
  }

  void fit_group(const Phase& phase, const Group& group, GroupSums& sums) {
    const Stopwatch watch(result_.seconds.solve);
    for (Method* method : phase.methods) {
      Group wanted;
      for (Layer* layer : group)
        if (method->wants(*layer)) wanted.push_back(layer);
      const Timer solving;
      if (!wanted.empty()) method->fit(wanted, sums.seen, record());
      if (!wanted.empty()) result_.seconds.of_layer[wanted[0]] += solving.seconds();
      if (method == phase.compensation) compensate(phase, group, sums);
    }
  }

  void compensate(const Phase& phase, const Group& group, const GroupSums& sums) {
    const bool one_stream = phase.needs.stream == Stream::Float;
    const HeldOutMean& own = one_stream ? sums.real : sums.quantized;
    if (by_means_ && one_stream) real_means_.push_back(sums.real.all.mean());
    size_t k = 0;
    for (Layer* layer : group) {
      if (!phase.compensates(*layer)) continue;
      const auto error = [&](RunningMean HeldOutMean::*of) {
        const Tensor real = (sums.real.*of).mean();
        return !by_means_     ? (sums.errors[k].*of).mean()
               : real.empty() ? Tensor{}
                              : error_by_means(*layer, real, (own.*of).mean());
      };
      const double share = (by_means_ ? sums.real : sums.errors[k]).actual_share();
      compensate(*phase.compensation, Model::point_of(*layer), error(&HeldOutMean::all), error(&HeldOutMean::held_out),
                 share);
      ++k;
    }
  }

  // Where `held_out`, the mean error of held-out samples, says that it does no harm.
  void compensate(Method& method, const Point& point, const Tensor& error, const Tensor& held_out, double share) {
    if (helps_held_out(error, held_out, share))
      method.fit_output(point, error, record());
    else
      ++record().dropped;
  }
  void compensate(Method& method, const Point& point, const HeldOutMean& error) {
    compensate(method, point, error.all.mean(), error.held_out.mean(), error.actual_share());
  }

  // All methods of phases where one looks at whole operands, group by group; sequential ones while the part runs on the
  // quantized stream.
  void fit_operands(int i, std::span<const Phase> phases) {
    const std::vector<Group> groups = groups_of(part_, phases);
    if (groups.empty()) return;
    std::vector<Fed> real(groups.size()), quantized(groups.size());
    const auto fit = [&](size_t g, const Fed& own) {
      for (const Phase& phase : phases) {
        GroupSums sums = sums_of(streams_, phase, groups[g], real[g], own);
        fit_group(phase, groups[g], sums);
      }
      real[g] = {};
    };
    const bool sees_float = std::any_of(phases.begin(), phases.end(), [](const Phase& p) { return p.sees_float(); });
    if (sees_float)
      streams_.run_together(i, Precision::Float, groups, [&](size_t g, const Fed& fed) { real[g] = fed; });
    if (phases[0].needs.sequential) return streams_.run_together(i, Precision::Fake, groups, fit);
    if (phases[0].needs.stream == Stream::Quantized)
      streams_.run_together(i, Precision::Fake, groups, [&](size_t g, const Fed& fed) { quantized[g] = fed; });
    for (size_t g = 0; g < groups.size(); ++g) fit(g, std::exchange(quantized[g], {}));
  }

  // ---- Larger outputs ----------------------------------------------------------------------------

  void fit_outputs(int i, Method& method) {
    for (const Point& branch : part_.branches)
      if (method.wants_output(branch.kind)) compensate(method, branch, branch_error(streams_, i, method, branch));
    Point output = part_.output;
    const bool is_part = !output.added.empty();
    if (is_part && method.wants_output(output.kind) && is_known_sum(method))
      method.fit_output(output, error_of_sum(streams_, i, method, groups_of(part_, phases_), real_means_), record());
    else if (is_part && method.wants_output(output.kind))
      compensate(method, output, output_error(streams_, inputs_of(method), i, i, method));
    output.kind = Point::Kind::Stage;
    output.name = format("stage.%d", stage_);
    if (part_.ends_stage && method.wants_output(output.kind)) {
      const Tensors& inputs = stage_first_ == i ? inputs_of(method) : entry_;
      compensate(method, output, output_error(streams_, inputs, stage_first_, i, method));
    }
    if (i == model_.depth() && method.wants_output(Point::Kind::Model))
      compensate(method, model_.model_point(), output_error(streams_, {}, -1, i, method));
    if (method.needs().blocks && part_.kind == Part::Kind::Block) fit_block(i, method);
  }

  void fit_block(int i, Method& method) {
    const Tensors& inputs = streams_.quantized();
    streams_.for_batches(
        [&](size_t j) {
          const Tensor y = streams_.run(Precision::Fake, i, j, inputs[j]);
          return add(nullptr, streams_.float_output(i, j), scale(nullptr, y, -1));
        },
        [&](size_t j, const Tensor& error) { method.see_block(inputs[j], error); });
    method.fit_block(i, record());
  }

  bool can_be_known_sum(const Method& method) const {
    return part_.is_sum && by_means_ && method.needs().stream == Stream::Float && methods_.size() == 1 &&
           method.held_out() == 0;
  }

  bool is_known_sum(const Method& method) const {
    if (!can_be_known_sum(method)) return false;
    for (const Tensor* added : part_.output.added)
      if (!added->empty()) return false;
    const std::vector<Group> groups = groups_of(part_, phases_);
    return real_means_.size() == groups.size() && std::count_if(groups.begin(), groups.end(), ends_branch) == 2;
  }

  // Whether somebody will look at what the float network makes of the present part i.
  bool needs_float_output(int i) const {
    if (i < last_) return true;
    for (const Method* method : methods_) {
      if (!part_.output.added.empty() && method->wants_output(part_.output.kind) && !can_be_known_sum(*method))
        return true;
      if ((part_.ends_stage && method->wants_output(Point::Kind::Stage)) || method->needs().blocks) return true;
      if (i == model_.depth() && method->wants_output(Point::Kind::Model)) return true;
    }
    return false;
  }

  // Where a stage begins, for those whose output is that of the whole stage.
  void keep_entry() {
    for (const Method* method : methods_)
      if (method->wants_output(Point::Kind::Stage)) entry_ = inputs_of(*method);
  }

  Model& model_;
  const std::vector<Method*>& methods_;
  const CalibrationOptions& options_;
  CalibrationResult result_;
  Streams streams_;
  std::vector<Phase> phases_;
  bool by_means_ = false, has_real_ = false, has_quantized_ = false;
  int last_ = 0;        // part
  Part part_;           // the present one
  Tensors entry_;       // inputs of the present stage of a Swin
  Tensors real_means_;  // mean inputs of the groups that were compensated, on the float stream
  int stage_ = 0, stage_first_ = 0;
};

void check(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods, const std::string& name) {
  bool has_stages = false, has_branches = false;
  for (int i = 0; i < model.depth(); ++i) {
    const Part part = model.part(i);
    has_stages |= part.ends_stage;
    has_branches |= !part.branches.empty();
  }
  const auto wanted = [&](Point::Kind kind) {
    return std::any_of(methods.begin(), methods.end(), [&](const Method* m) { return m->wants_output(kind); });
  };
  require_usage(has_stages || !(wanted(Point::Kind::Downsample) || wanted(Point::Kind::Stage)),
                "%s has no stages: downsample and stage are outputs of a Swin", model.info().name);
  require_usage(has_branches || !(wanted(Point::Kind::Attention) || wanted(Point::Kind::Mlp)),
                "%s runs attention and MLP in one piece: of a language model, linear layers and block outputs can be "
                "compensated, no others",
                model.info().name);
  require_usage(!model.layers(model.depth()).empty() || !wanted(Point::Kind::Model),
                "the output of %s is not quantized: model cannot be chosen", model.info().name);
  const auto any = [&](auto is) { return std::any_of(methods.begin(), methods.end(), is); };
  require_usage(
      !any([](const Method* m) { return m->needs().folds; }) || !any([](const Method* m) { return m->compensates(); }),
      "a method that folds scales into norms calibrates before products are compensated, not with them");
  for (const Method* method : methods) {
    const Needs needs = method->needs();
    require(!data.empty() || !(needs.moments || needs.operands || method->compensates()), "%s needs calibration data",
            name);
    require_usage(!needs.gradients || model.info().family == Family::Vision,
                  "%s is a language model, of which there are no gradients: choose a metric without them",
                  model.info().name);
    require_usage(!needs.gradients || methods.size() == 1,
                  "gradients go from the head back: a method that needs them calibrates alone, others after it");
  }
}

}  // namespace

CalibrationResult calibrate(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods,
                            const CalibrationOptions& options) {
  check(model, data, methods, options.name);
  const ReceivedFor phase(options.name);
  const Timer all;
  for (Method* method : methods) method->begin(model);
  const bool on_float = methods.size() == 1 && methods[0]->needs().operands && !methods[0]->needs().sequential;
  CalibrationResult result = on_float ? calibrate_on_float(model, data, *methods[0], options)
                                      : Calibration(model, data, methods, options).run();
  result.seconds.total = all.seconds();
  return result;
}

void Method::begin_vision(Model& model, const char* method) {
  require_usage(model.info().family == Family::Vision, "%s is not a vision model: %s is for those", model.info().name,
                method);
  model.clear();
  model.fold_layer_scale();
  model_ = &model;
}

std::vector<Batch> vision_batches(const Model& model, const Tensor& images) {
  constexpr int64_t kBatch = 8;
  require_usage(model.info().family == Family::Vision, "%s is not a vision model: these quantizers are for ViTs",
                model.info().name);
  require_usage(images.rank() == 4 && images.dim(0) >= 1, "calibration needs at least one image");
  std::vector<Batch> batches;
  for (int64_t b = 0; b < images.dim(0); b += kBatch) {
    batches.emplace_back();
    batches.back().pixels = images.slice(b, std::min(images.dim(0), b + kBatch));
  }
  return batches;
}

}  // namespace bcq
