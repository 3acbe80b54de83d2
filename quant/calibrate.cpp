#include "quant/calibrate.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/ops.h"
#include "quant/operands.h"

namespace bcq {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

using Group = std::vector<Layer*>;
using Means = std::vector<RunningMean>;
using Tensors = std::vector<Tensor>;

// Adds the time until it goes out of scope.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += timer_.seconds(); }

 private:
  double& seconds_;
  Timer timer_;
};

// ---- One pass through a part ---------------------------------------------------------------------

// Sees the inputs of groups [begin, end) and the products of some layers, and is done with the last of them, unless the
// part's output is wanted, too.
class Pass : public Observer {
 public:
  using OnProduct = std::function<void(const Layer&, const Tensor& a, const Tensor& b, const Tensor& y)>;
  Pass(const std::vector<Group>& groups, size_t begin, size_t end, bool to_output)
      : groups_(groups), next_(begin), end_(end), to_output_(to_output) {}

  // Products of these layers, in the order they run.
  void watch(const Group& layers, OnProduct on_product) {
    watched_ = layers;
    on_product_ = std::move(on_product);
  }
  void input(const Layer& layer, const Tensor& x, const Tensor&) override {
    if (next_ == end_ || &layer != groups_[next_].front()) return;
    require(kernels().all_finite(x.data, x.size()), "%s: its input is not finite (NaN or infinity)", layer.name);
    inputs.push_back(x);
    ++next_;
  }
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (seen_ == watched_.size() || &layer != watched_[seen_]) return;
    ++seen_;
    on_product_(layer, a, b, y);
  }
  bool is_done() const override { return next_ == end_ && seen_ == watched_.size() && !to_output_; }

  Tensors inputs;

 private:
  const std::vector<Group>& groups_;
  size_t next_, end_;
  bool to_output_;
  Group watched_;
  size_t seen_ = 0;
  OnProduct on_product_;
};

// Sees one residual branch.
class BranchPass : public Observer {
 public:
  using OnBranch = std::function<void(const Tensor& x, const Tensor& y, const Branch&)>;
  BranchPass(const Layer* last, OnBranch on_branch) : last_(last), on_branch_(std::move(on_branch)) {}
  void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch& branch) override {
    if (&last != last_) return;
    on_branch_(x, y, branch);
    done_ = true;
  }
  bool is_done() const override { return done_; }

 private:
  const Layer* last_;
  OnBranch on_branch_;
  bool done_ = false;
};

// What the layers of a group are fed: an input of linear ones, or both operands of a product.
struct Fed {
  Tensor a, b;
};

// Hands what each group is fed to a function, before the first of its layers runs.
class FeedPass : public Observer {
 public:
  using OnGroup = std::function<void(size_t group, const Fed& fed)>;
  FeedPass(const std::vector<Group>& groups, OnGroup on_group) : groups_(groups), on_group_(std::move(on_group)) {}
  void input(const Layer& layer, const Tensor& a, const Tensor& b) override {
    if (next_ == groups_.size() || &layer != groups_[next_].front()) return;
    for (const Tensor* x : {&a, &b})
      require(x->empty() || kernels().all_finite(x->data, x->size()), "%s: its input is not finite (NaN or infinity)",
              layer.name);
    on_group_(next_++, {a, b});
  }

 private:
  const std::vector<Group>& groups_;
  OnGroup on_group_;
  size_t next_ = 0;
};

// ---- Samples together ----------------------------------------------------------------------------

Tensor join(const Tensors& parts) {
  int64_t n = 0;
  for (const Tensor& part : parts) {
    n += part.dim(0);
    require(part.size() / part.dim(0) == parts[0].size() / parts[0].dim(0),
            "calibration batches need samples of one shape, got %s and %s", to_string(parts[0].shape),
            to_string(part.shape));
  }
  if (parts.size() == 1) return parts[0];
  Shape shape = parts[0].shape;
  shape[0] = n;
  Tensor all = Tensor::uninitialized(shape);
  float* to = all.data;
  for (const Tensor& part : parts) to = std::copy_n(part.data, part.size(), to);
  return all;
}

Batch join(const std::vector<Batch>& batches) {
  Batch all;
  Tensors pixels;
  for (const Batch& batch : batches) {
    if (!batch.pixels.empty()) {
      pixels.push_back(batch.pixels);
      continue;
    }
    require(all.ids.empty() || batch.length == all.length, "calibration windows of %d and of %d tokens", all.length,
            batch.length);
    all.length = batch.length;
    all.windows += batch.windows;
    all.ids.insert(all.ids.end(), batch.ids.begin(), batch.ids.end());
  }
  if (!pixels.empty()) all.pixels = join(pixels);
  return all;
}

// ---- Means ---------------------------------------------------------------------------------------

RunningMean mean_of_one(BcShape shape, const Tensor& f, const Tensor& q = {}) {
  RunningMean mean(shape);
  mean.update(f, q);
  return mean;
}

Means means_of(BcShape shape, const Tensors& inputs) {
  Means means;
  for (const Tensor& x : inputs) means.push_back(mean_of_one(shape, x));
  return means;
}

void add_means(Means& into, const Means& more) {
  for (size_t i = 0; i < more.size(); ++i) into[i].add(more[i]);
}

// Mean output of a linear layer whose mean input is mean [in] or, per position, [T, in]; in the same form.
Tensor mean_output(const Layer& layer, Precision precision, const Tensor& mean) {
  const int64_t rows = mean.rows(), in = mean.dim(-1);
  const Tensor y = layer.product({precision}, mean.reshaped({1, rows, in}), {});
  return y.reshaped(mean.rank() == 1 ? Shape{y.dim(-1)} : Shape{rows, y.dim(-1)});
}

// Mean error of a linear layer's output, from its mean inputs in the float network and in the quantized one: the mean
// of a product is that of its input times the weight, so no layer need be run twice.
Tensor error_by_means(const Layer& layer, const Tensor& real, const Tensor& quantized) {
  const Tensor y = mean_output(layer, Precision::Fake, quantized);
  return add(nullptr, mean_output(layer, Precision::Float, real), scale(nullptr, y, -1));
}

// ---- What methods need at once -------------------------------------------------------------------

// Methods that are shown the same passes.
struct Stage {
  Needs needs;
  std::vector<Method*> methods;
  Method* compensation = nullptr;  // of them, the one that takes errors of products

  bool passes() const { return needs.moments || needs.operands || compensation; }
  bool sees_float() const { return needs.stream == Stream::Float || needs.cross || compensation; }
};

// What is seen of a group of layers over all samples.
struct GroupSums {
  Seen seen;
  HeldOutMean real, quantized;      // mean inputs on the two streams
  std::vector<HeldOutMean> errors;  // of the outputs of its layers that are compensated
};

// What one sample adds.
struct Observed {
  Tensors real, quantized;  // inputs of groups
  Means real_means, quantized_means, errors;
};

class Calibration {
 public:
  Calibration(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods,
              const CalibrationOptions& options)
      : model_(model), data_(data), methods_(methods), options_(options) {
    const std::vector<Layer*> all = model.all_layers();
    // The mean output of a layer follows from its mean input only where that is not rounded, now or by a method that
    // looks at operands.
    by_means_ = std::all_of(all.begin(), all.end(), [](Layer* l) { return is_identity(l->left_grid()); }) &&
                std::none_of(methods.begin(), methods.end(), [](Method* m) { return m->needs().operands; });
    for (Method* method : methods) add_to_stages(method);
    for (const Stage& stage : stages_) {
      has_real_ |= stage.passes() && stage.sees_float();
      has_quantized_ |= stage.passes() && stage.needs.stream == Stream::Quantized;
    }
    for (Method* method : methods)
      if (wants_some_output(*method) || method->needs().blocks)
        has_real_ = true, has_quantized_ |= stream_of(*method) == Stream::Quantized;
  }

  CalibrationResult run() {
    const int depth = model_.depth(), last = model_.layers(depth).empty() ? depth - 1 : depth;
    int next = -1;
    for (PartRecord record; next <= last && options_.store; ++next, record = {}) {
      const bool nothing = model_.layers(next).empty();
      if (!nothing && !options_.store->load(options_.name, model_, next, record)) break;
      result_.parts.push_back(std::move(record));
    }
    if (next > last) return std::move(result_);
    for (const Batch& batch : data_) first_sample_.push_back(first_sample_.back() + batch.size());
    real_.resize(data_.size());
    quantized_.resize(data_.size());
    outputs_.resize(data_.size());
    last_ = last;
    for (int i = -1; i <= last; ++i) {
      report(i + 1, last + 2);
      part_ = model_.part(i);
      if (part_.output.kind == Point::Kind::Block && i == stage_first_) keep_entry();
      if (i >= next) {
        result_.parts.emplace_back();
        fit(i);
        if (options_.store && !part_.groups.empty())
          options_.store->done(options_.name, model_, i, result_.parts.back());
      }
      if (part_.ends_stage) stage_ += 1, stage_first_ = i + 1;
      if (i < last) advance(i);
    }
    report(last + 2, last + 2);
    return std::move(result_);
  }

 private:
  Context context(Precision precision, Observer* observer = nullptr) const {
    Context ctx{precision, nullptr, observer};
    ctx.window_bits = options_.window_bits;
    return ctx;
  }
  static Stream stream_of(const Method& method) { return method.needs().stream; }
  void report(int done, int total) const {
    if (options_.progress) options_.progress(options_.name, done, total);
  }
  PartRecord& record() { return result_.parts.back(); }

  bool wants_some_output(const Method& method) {
    for (const auto kind : {Point::Kind::Attention, Point::Kind::Mlp, Point::Kind::Block, Point::Kind::Downsample,
                            Point::Kind::Stage, Point::Kind::Model}) {
      Point point;
      point.kind = kind;
      if (method.wants(point)) return true;
    }
    return false;
  }

  // Methods that follow each other and look at the same inputs share passes; but not one that measures products with
  // one that changes them.
  void add_to_stages(Method* method) {
    const Needs needs = method->needs();
    Stage* stage = stages_.empty() ? nullptr : &stages_.back();
    const bool compensates = method->compensates();
    const bool shares = stage && stage->needs.stream == needs.stream && stage->needs.sequential == needs.sequential &&
                        (by_means_ || !compensates) && !stage->compensation;
    if (!shares) {
      stages_.push_back({needs, {}, nullptr});
      stage = &stages_.back();
    }
    stage->needs.moments |= needs.moments;
    stage->needs.held_out = std::max(stage->needs.held_out, needs.held_out);
    stage->needs.cross |= needs.cross;
    stage->needs.operands |= needs.operands;
    stage->needs.outputs |= needs.outputs;
    stage->methods.push_back(method);
    if (compensates) stage->compensation = method;
  }

  // ---- A part's layers ---------------------------------------------------------------------------

  void fit(int i) {
    for (Method* method : methods_) method->start(part_);
    real_means_.clear();
    for (size_t first = 0; first < stages_.size();) {
      size_t end = first + 1;
      while (end < stages_.size() && stages_[end].needs.sequential == stages_[first].needs.sequential) ++end;
      if (stages_[first].needs.sequential)
        fit_sequentially(i, first, end);
      else
        for (size_t s = first; s < end; ++s) fit_in_parallel(i, s);
      first = end;
    }
    for (Method* method : methods_) fit_outputs(i, *method);
  }

  void fit_sequentially(int i, size_t first, size_t end) {
    for (size_t s = first; s < end; ++s)
      if (stages_[s].needs.operands) return fit_operands(i, first, end);
    const std::vector<Group> groups = groups_of(first, end);
    for (size_t g = 0; g < groups.size(); ++g)
      for (size_t s = first; s < end; ++s) fit_groups(i, stages_[s], groups, g, g + 1);
  }

  void fit_in_parallel(int i, size_t s) {
    if (stages_[s].needs.operands) return fit_operands(i, s, s + 1);
    const std::vector<Group> groups = groups_of(s, s + 1);
    if (!groups.empty()) fit_groups(i, stages_[s], groups, 0, groups.size());
  }

  // Layers of the part that methods of these stages fit or compensate, by the inputs they share.
  std::vector<Group> groups_of(size_t first, size_t end) const {
    std::vector<Group> groups;
    for (const LayerGroup& group : part_.groups) {
      Group wanted;
      for (Layer* layer : group.layers) {
        bool is_wanted = false;
        for (size_t s = first; s < end; ++s)
          for (const Method* method : stages_[s].methods)
            is_wanted |= method->wants(*layer) || method->wants(Model::point_of(*layer));
        if (is_wanted) wanted.push_back(layer);
      }
      if (!wanted.empty()) groups.push_back(wanted);
    }
    return groups;
  }

  void fit_groups(int i, const Stage& stage, const std::vector<Group>& groups, size_t begin, size_t end) {
    std::vector<GroupSums> sums = observe(i, stage, groups, begin, end);
    for (size_t g = begin; g < end; ++g) fit_group(stage, groups[g], sums[g - begin]);
  }

  void fit_group(const Stage& stage, const Group& group, GroupSums& sums) {
    const Stopwatch watch(result_.seconds.solve);
    for (Method* method : stage.methods) {
      Group wanted;
      for (Layer* layer : group)
        if (method->wants(*layer)) wanted.push_back(layer);
      const Timer solving;
      if (!wanted.empty()) method->fit(wanted, sums.seen, record());
      if (!wanted.empty()) result_.seconds.of_layer[wanted[0]] += solving.seconds();
      if (method == stage.compensation) compensate(stage, group, sums);
    }
  }

  void compensate(const Stage& stage, const Group& group, const GroupSums& sums) {
    const bool one_stream = stage.needs.stream == Stream::Float;
    const HeldOutMean& own = one_stream ? sums.real : sums.quantized;
    if (by_means_ && one_stream) real_means_.push_back(sums.real.all.mean());
    size_t k = 0;
    for (Layer* layer : group) {
      const Point point = Model::point_of(*layer);
      if (!stage.compensation->wants(point)) continue;
      const auto error = [&](RunningMean HeldOutMean::*of) {
        const Tensor real = (sums.real.*of).mean();
        return !by_means_     ? (sums.errors[k].*of).mean()
               : real.empty() ? Tensor{}
                              : error_by_means(*layer, real, (own.*of).mean());
      };
      const double share = (by_means_ ? sums.real : sums.errors[k]).actual_share();
      compensate(*stage.compensation, point, error(&HeldOutMean::all), error(&HeldOutMean::held_out), share);
      ++k;
    }
  }

  // Where `held_out`, the mean error of held-out samples, says that it does no harm.
  void compensate(Method& method, const Point& point, const Tensor& error, const Tensor& held_out, double share) {
    if (helps_held_out(error, held_out, share))
      method.fit(point, error, record());
    else
      ++record().dropped;
  }
  void compensate(Method& method, const Point& point, const HeldOutMean& error) {
    compensate(method, point, error.all.mean(), error.held_out.mean(), error.actual_share());
  }

  // Sums over all samples of what groups [begin, end) of part i are fed.
  std::vector<GroupSums> observe(int i, const Stage& stage, const std::vector<Group>& groups, size_t begin,
                                 size_t end) {
    std::vector<GroupSums> sums(end - begin);
    if (!stage.needs.moments && !stage.compensation) return sums;
    const BcShape shape = stage.compensation ? stage.compensation->shape() : BcShape::Channel;
    const bool by_means = stage.compensation && by_means_;
    Group watched;  // whose outputs are looked at
    for (size_t g = begin; g < end; ++g) {
      GroupSums& sum = sums[g - begin];
      const double held_out = stage.compensation ? stage.compensation->held_out() : 0;
      sum.real = sum.quantized = HeldOutMean(shape, held_out);
      for (Layer* layer : groups[g])
        if (stage.compensation && !by_means_ && stage.compensation->wants(Model::point_of(*layer))) {
          watched.push_back(layer);
          sum.errors.emplace_back(shape, held_out);
        }
    }
    for_samples(
        [&](size_t j) {
          Observed x = observe_one(i, j, stage, groups, begin, end, watched);
          if (by_means) x.real_means = means_of(shape, x.real), x.quantized_means = means_of(shape, x.quantized);
          if (!stage.needs.moments) x.real.clear(), x.quantized.clear();
          return x;
        },
        [&](size_t j, const Observed& x) {
          size_t k = 0;
          for (size_t g = 0; g < sums.size(); ++g) {
            if (stage.needs.moments)
              add_moments(stage, j, (stage.needs.stream == Stream::Float ? x.real : x.quantized)[g],
                          stage.needs.cross ? x.real[g] : Tensor{}, sums[g].seen);
            if (!x.real_means.empty()) sums[g].real.add(j, x.real_means[g]);
            if (!x.quantized_means.empty()) sums[g].quantized.add(j, x.quantized_means[g]);
            for (HeldOutMean& error : sums[g].errors) error.add(j, x.errors[k++]);
          }
        });
    return sums;
  }

  static void add_moments(const Stage& stage, size_t j, const Tensor& own, const Tensor& real, Seen& seen) {
    std::unique_ptr<Moments>& into = is_held_out(static_cast<int64_t>(j), stage.needs.held_out) ? seen.held_out
                                     : stage.needs.cross && j % 2                               ? seen.odd
                                                                                                : seen.moments;
    if (!into) into = std::make_unique<Moments>(own.dim(-1));
    into->add(own, stage.needs.cross ? real : Tensor{});
  }

  Observed observe_one(int i, size_t j, const Stage& stage, const std::vector<Group>& groups, size_t begin, size_t end,
                       const Group& watched) {
    const BcShape shape = stage.compensation ? stage.compensation->shape() : BcShape::Channel;
    const bool same_inputs = stage.needs.stream == Stream::Float;
    Observed x;
    Tensors float_outputs;  // of the watched layers
    if (stage.sees_float()) {
      // Where this is the one float pass there is, it keeps the output that is needed later.
      const bool to_output = same_inputs && needs_float_output(i);
      Pass pass(groups, begin, end, to_output);
      pass.watch(watched, [&](const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) {
        if (same_inputs)
          x.errors.push_back(mean_of_one(shape, y, layer.product({Precision::Fake}, a, b)));
        else
          float_outputs.push_back(y);
      });
      const Tensor y = model_.run(context(Precision::Float, &pass), i, data_[j], real_[j]);
      if (to_output) outputs_[j] = y;
      x.real = std::move(pass.inputs);
    }
    if (!same_inputs) {
      Pass pass(groups, begin, end, false);
      pass.watch(watched, [&](const Layer&, const Tensor&, const Tensor&, const Tensor& y) {
        x.errors.push_back(mean_of_one(shape, float_outputs[x.errors.size()], y));
      });
      model_.run(context(Precision::Fake, &pass), i, data_[j], quantized_[j]);
      x.quantized = std::move(pass.inputs);
    }
    return x;
  }

  // ---- A part whose methods look at whole operands -------------------------------------------------

  // What samples of batch j are in x, which holds all samples. A Swin has several (windows) an image.
  Tensor samples_of(size_t j, const Tensor& x) const {
    if (x.empty()) return x;
    const int64_t each = x.dim(0) / first_sample_.back();
    return x.slice(first_sample_[j] * each, first_sample_[j + 1] * each);
  }

  // Part i on all samples at once, showing what each group is fed. Of the float network it keeps the output.
  void run_together(int i, Precision precision, const std::vector<Group>& groups, const FeedPass::OnGroup& on_group) {
    const bool is_float = precision == Precision::Float;
    const double solved = result_.seconds.solve;
    const Timer timer;
    FeedPass pass(groups, on_group);
    const Tensor y = model_.run(context(precision, &pass), i, i < 0 ? join(data_) : Batch{},
                                i < 0 ? Tensor{} : join(is_float ? real_ : quantized_));
    for (size_t j = 0; is_float && j < data_.size(); ++j) outputs_[j] = samples_of(j, y);
    result_.seconds.passes += timer.seconds() - (result_.seconds.solve - solved);
  }

  // All methods of stages [first, end), group by group; sequential ones while the part runs on the quantized stream.
  void fit_operands(int i, size_t first, size_t end) {
    const std::vector<Group> groups = groups_of(first, end);
    if (groups.empty()) return;
    std::vector<Fed> real(groups.size()), quantized(groups.size());
    const auto fit = [&](size_t g, const Fed& own) {
      for (size_t s = first; s < end; ++s) fit_group(stages_[s], groups[g], real[g], own);
      real[g] = {};
    };
    bool sees_float = false;
    for (size_t s = first; s < end; ++s) sees_float |= stages_[s].sees_float();
    if (sees_float) run_together(i, Precision::Float, groups, [&](size_t g, const Fed& fed) { real[g] = fed; });
    if (stages_[first].needs.sequential) return run_together(i, Precision::Fake, groups, fit);
    if (stages_[first].needs.stream == Stream::Quantized)
      run_together(i, Precision::Fake, groups, [&](size_t g, const Fed& fed) { quantized[g] = fed; });
    for (size_t g = 0; g < groups.size(); ++g) fit(g, std::exchange(quantized[g], {}));
  }

  // One group, from what its layers are fed on the two streams.
  void fit_group(const Stage& stage, const Group& group, const Fed& real, const Fed& quantized) {
    const Fed& own = stage.needs.stream == Stream::Float ? real : quantized;
    GroupSums sums;
    if (stage.needs.operands)
      for (const Layer* layer : group) {
        Operands x{own.a, own.b, {}, {}, {}};
        if (stage.needs.outputs) x.y = layer->product({Precision::Float}, own.a, own.b);
        if (stage.needs.cross) x.f = real.a;
        sums.seen.operands.push_back(std::move(x));
      }
    for (size_t j = 0; stage.needs.moments && j < data_.size(); ++j)
      add_moments(stage, j, samples_of(j, own.a), samples_of(j, real.a), sums.seen);
    if (stage.compensation) {
      const Method& method = *stage.compensation;
      sums.real = sums.quantized = HeldOutMean(method.shape(), method.held_out());
      for (Layer* layer : group) {
        if (!method.wants(Model::point_of(*layer))) continue;
        sums.errors.emplace_back(method.shape(), method.held_out());
        const Tensor f = layer->product({Precision::Float}, real.a, real.b);
        const Tensor q = layer->product({Precision::Fake}, own.a, own.b);
        for (size_t j = 0; j < data_.size(); ++j)
          sums.errors.back().add(j, mean_of_one(method.shape(), samples_of(j, f), samples_of(j, q)));
      }
    }
    fit_group(stage, group, sums);
  }

  // ---- Larger outputs ----------------------------------------------------------------------------

  void fit_outputs(int i, Method& method) {
    for (const Point& branch : part_.branches)
      if (method.wants(branch)) compensate(method, branch, branch_error(i, method, branch));
    Point output = part_.output;
    const bool is_part = !output.added.empty();
    if (is_part && method.wants(output) && is_known_sum(method))
      method.fit(output, error_of_sum(i, method), record());
    else if (is_part && method.wants(output))
      compensate(method, output, output_error(i, i, method));
    output.kind = Point::Kind::Stage;
    output.name = format("stage.%d", stage_);
    if (part_.ends_stage && method.wants(output)) compensate(method, output, output_error(stage_first_, i, method));
    if (i == model_.depth() && method.wants(model_.model_point()))
      compensate(method, model_.model_point(), output_error(-1, i, method));
    if (method.needs().blocks && part_.kind == Part::Kind::Block) fit_block(i, method);
  }

  void fit_block(int i, Method& method) {
    for_samples(
        [&](size_t j) {
          const Tensor y = model_.run(context(Precision::Fake), i, data_[j], quantized_[j]);
          return add(nullptr, float_output(i, j), scale(nullptr, y, -1));
        },
        [&](size_t j, const Tensor& error) { method.see_block(quantized_[j], error); });
    method.fit_block(i, record());
  }

  HeldOutMean branch_error(int i, const Method& method, const Point& branch) {
    const bool same_inputs = stream_of(method) == Stream::Float;
    HeldOutMean error(method.shape(), method.held_out());
    for_samples(
        [&](size_t j) {
          RunningMean one(method.shape());
          Tensor f;
          BranchPass real(branch.layer, [&](const Tensor& x, const Tensor& y, const Branch& run) {
            f = y;
            if (same_inputs) one.update(y, run({Precision::Fake, nullptr, nullptr, method.masked_branches()}, x));
          });
          model_.run(context(Precision::Float, &real), i, data_[j], real_[j]);
          if (same_inputs) return one;
          BranchPass quantized(branch.layer, [&](const Tensor&, const Tensor& y, const Branch&) { one.update(f, y); });
          model_.run(context(Precision::Fake, &quantized), i, data_[j], quantized_[j]);
          return one;
        },
        [&](size_t j, const RunningMean& one) { error.add(j, one); });
    return error;
  }

  // Of the output of part i, parts [first, i] run quantized from the input of the first.
  HeldOutMean output_error(int first, int i, const Method& method) {
    const bool is_float = stream_of(method) == Stream::Float;
    HeldOutMean error(method.shape(), method.held_out());
    for_samples(
        [&](size_t j) {
          Tensor x = first == i ? (is_float ? real_[j] : quantized_[j]) : first < 0 ? Tensor{} : entry_[j];
          for (int k = first; k <= i; ++k) x = model_.run(context(Precision::Fake), k, data_[j], x);
          return mean_of_one(method.shape(), float_output(i, j), x);
        },
        [&](size_t j, const RunningMean& one) { error.add(j, one); });
    return error;
  }

  // On one stream the mean error of a sum is that of what attention and the MLP add, and theirs a product of mean
  // inputs: the last product, a third of the work, need not be computed for every token.
  Tensor error_of_sum(int i, const Method& method) {
    const std::vector<Group> groups = groups_of(0, stages_.size());
    Means own(groups.size(), RunningMean(method.shape()));
    for_samples(
        [&](size_t j) {
          Pass pass(groups, 0, groups.size(), false);
          model_.run(context(Precision::Fake, &pass), i, data_[j], real_[j]);
          return means_of(method.shape(), pass.inputs);
        },
        [&](size_t, const Means& one) { add_means(own, one); });
    Tensor error;
    for (size_t g = 0; g < groups.size(); ++g) {
      if (!ends_branch(groups[g])) continue;
      const Tensor one = error_by_means(*groups[g].front(), real_means_[g], own[g].mean());
      error = error.empty() ? one : add(nullptr, error, one);
    }
    return error;
  }

  static bool ends_branch(const Group& group) {
    return group.front()->role == Role::Proj || group.front()->role == Role::Fc2;
  }

  bool can_be_known_sum(const Method& method) const {
    return part_.is_sum && by_means_ && stream_of(method) == Stream::Float && methods_.size() == 1 &&
           method.held_out() == 0;
  }

  bool is_known_sum(const Method& method) const {
    if (!can_be_known_sum(method)) return false;
    for (const Tensor* added : part_.output.added)
      if (!added->empty()) return false;
    const std::vector<Group> groups = groups_of(0, stages_.size());
    return real_means_.size() == groups.size() && std::count_if(groups.begin(), groups.end(), ends_branch) == 2;
  }

  // ---- Streams -----------------------------------------------------------------------------------

  bool needs_float_output(int i) const {
    if (i < last_) return true;
    for (const Method* method : methods_) {
      Point stage = part_.output;
      stage.kind = Point::Kind::Stage;
      if (!part_.output.added.empty() && method->wants(part_.output) && !can_be_known_sum(*method)) return true;
      if ((part_.ends_stage && method->wants(stage)) || method->needs().blocks) return true;
      if (i == model_.depth() && method->wants(model_.model_point())) return true;
    }
    return false;
  }

  // What the float network makes of sample j in part i; computed once.
  const Tensor& float_output(int i, size_t j) {
    if (outputs_[j].empty()) outputs_[j] = model_.run(context(Precision::Float), i, data_[j], real_[j]);
    return outputs_[j];
  }

  void advance(int i) {
    if (!has_real_ && !has_quantized_) return;
    const bool same = model_.layers(i).empty();  // an embedding that is not quantized
    for_samples(
        [&](size_t j) {
          if (has_real_ || same) real_[j] = float_output(i, j);
          if (has_quantized_)
            quantized_[j] = same ? real_[j] : model_.run(context(Precision::Fake), i, data_[j], quantized_[j]);
          if (!has_real_) real_[j] = Tensor{};
          outputs_[j] = Tensor{};
          return j;
        },
        [](size_t, size_t) {});
  }

  // Where a stage begins, for those whose output is that of the whole stage.
  void keep_entry() {
    Point stage;
    stage.kind = Point::Kind::Stage;
    for (const Method* method : methods_)
      if (method->wants(stage)) entry_ = stream_of(*method) == Stream::Float ? real_ : quantized_;
  }

  // make(j) for every sample j, some for each thread at a time; use(j, what was made) in order.
  template <class Make, class Use>
  void for_samples(Make make, Use use) {
    const size_t n = data_.size(), together = 4 * at(threads());
    for (size_t first = 0; first < n; first += together) {
      std::vector<decltype(make(first))> made(std::min(together, n - first));
      {
        const Stopwatch watch(result_.seconds.passes);
        const auto one = [&](int64_t k) { made[at(k)] = make(first + at(k)); };
        if (made.size() >= at(threads()))
          parallel_for(static_cast<int64_t>(made.size()), one);
        else  // few samples leave the threads to what is inside
          for (size_t k = 0; k < made.size(); ++k) one(static_cast<int64_t>(k));
      }
      const Stopwatch watch(result_.seconds.sums);
      for (size_t k = 0; k < made.size(); ++k) use(first + k, made[k]);
    }
  }

  Model& model_;
  const std::vector<Batch>& data_;
  const std::vector<Method*>& methods_;
  const CalibrationOptions& options_;
  std::vector<Stage> stages_;
  bool by_means_ = false, has_real_ = false, has_quantized_ = false;
  std::vector<int64_t> first_sample_{0};  // of each batch, and their number
  int last_ = 0;                          // part
  Part part_;                             // the present one
  Tensors real_, quantized_;        // what the present part is fed on the two streams, as far as somebody needs them
  Tensors outputs_;                 // of the float network there, as far as they are known
  Tensors entry_;                   // inputs of the present stage of a Swin
  std::vector<Tensor> real_means_;  // mean inputs of the groups that were compensated, on the float stream
  int stage_ = 0, stage_first_ = 0;
  CalibrationResult result_;
};

void check(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods, const std::string& name) {
  bool has_stages = false, has_branches = false;
  for (int i = 0; i < model.depth(); ++i) {
    const Part part = model.part(i);
    has_stages |= part.ends_stage;
    has_branches |= !part.branches.empty();
  }
  const auto wanted = [&](Point::Kind kind) {
    Point point;
    point.kind = kind;
    return std::any_of(methods.begin(), methods.end(), [&](const Method* m) { return m->wants(point); });
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

int64_t CalibrationResult::fitted() const {
  int64_t sum = 0;
  for (const PartRecord& part : parts) sum += part.fitted;
  return sum;
}

CalibrationResult calibrate(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods,
                            const CalibrationOptions& options) {
  check(model, data, methods, options.name);
  const Timer all;
  for (Method* method : methods) method->begin(model);
  const bool on_float = methods.size() == 1 && methods[0]->needs().operands && !methods[0]->needs().sequential;
  CalibrationResult result = on_float ? calibrate_on_float(model, data, *methods[0], options)
                                      : Calibration(model, data, methods, options).run();
  result.seconds.total = all.seconds();
  return result;
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
