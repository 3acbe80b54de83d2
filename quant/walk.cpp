#include "quant/walk.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/ops.h"
#include "quant/moments.h"
#include "quant/refine.h"
#include "quant/refit.h"

namespace bcq {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

void attach(Site& site, const QuantizedWeight& q) {
  for (const Tensor& w : {site.weight.values(), q.values})  // a weight that is NaN would round to code 0
    require(kernels().all_finite(w.data, w.size()), "%s: its weight is not finite (NaN or infinity)", site.name);
  site.set_packed(PackedWeight(q.grid, q.values.shape, q.codes));
}

// Options with the bits that are this site's own.
template <class Options>
Options options_of(const Site& site, Options options, const SiteBits& bits) {
  const auto own = bits.find(&site);
  if (own != bits.end()) options.bits = own->second;
  return options;
}

bool is_to_quantize(const Site& site, const SiteBits& bits) {
  const auto own = bits.find(&site);
  return site.is_linear() && (own == bits.end() || own->second > 0);
}

bool is_quantized(const Site& site) { return site.is_linear() && site.is_quantized(); }

// ---- A block's inputs ---------------------------------------------------------------------------

// Sites that are fed one tensor (query, key, value), in the order they run.
using Group = std::vector<Site*>;

// Follows a pass for the inputs of groups [begin, end). With the last it ends the pass, unless it goes on to the
// output: what nobody needs is not computed.
class Capture : public Observer {
 public:
  struct Done {};
  Capture(const std::vector<Group>& groups, size_t begin, size_t end, bool to_output)
      : groups_(groups), begin_(begin), end_(end), to_output_(to_output) {}

  void input(const Site& site, const Tensor& x) override {
    const size_t next = begin_ + inputs.size();
    if (next == end_ || &site != groups_[next].front()) return;
    require(kernels().all_finite(x.data, x.size()), "%s: its input is not finite (NaN or infinity)", site.name);
    inputs.push_back(x);
    if (next + 1 == end_ && !to_output_) throw Done{};
  }
  std::vector<Tensor> inputs;

 private:
  const std::vector<Group>& groups_;
  size_t begin_, end_;
  bool to_output_;
};

// Groups the sites of a pass that `is_wanted`: a tensor is held until the next comes, so that its address
// identifies it.
struct FindGroups : Observer {
  explicit FindGroups(std::function<bool(const Site&)> is_wanted) : is_wanted(std::move(is_wanted)) {}
  void input(const Site& site, const Tensor& x) override {
    if (!is_wanted(site)) return;
    if (groups.empty() || x.data != held.data) groups.emplace_back();
    groups.back().push_back(const_cast<Site*>(&site));
    held = x;
  }
  std::function<bool(const Site&)> is_wanted;
  std::vector<Group> groups;
  Tensor held;
};

// ---- The walk -----------------------------------------------------------------------------------

// Adds the time until it goes out of scope.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += timer_.seconds(); }

 private:
  double& seconds_;
  Timer timer_;
};

using Stream = std::vector<Tensor>;  // what a block is fed, one tensor a window
using Inputs = std::vector<Tensor>;  // of consecutive groups
using Means = std::vector<MeanError>;

// What a group is fed, over all windows.
struct GroupSums {
  std::unique_ptr<Moments> moments, odd;  // on the quantized stream; of every other window for a refit
  MeanError own, real;                    // means on the quantized, if there is one, and on the float stream
};

// What one window adds to them: inputs where products are wanted, and means.
struct Observed {
  Inputs own, real;
  Means own_means, real_means;
};

MeanError mean_of_one(BcShape shape, const Tensor& f, const Tensor& q = {}) {
  MeanError mean(shape);
  mean.update(f, q);
  return mean;
}

Means means_of(BcShape shape, const Inputs& inputs) {
  Means means;
  for (const Tensor& x : inputs) means.push_back(mean_of_one(shape, x));
  return means;
}

// Mean output of a site whose mean input is mean [in] or, per position, [T, in]; in the same form.
Tensor mean_output(const Site& site, Precision precision, const Tensor& mean) {
  const int64_t rows = mean.rows(), in = mean.dim(-1);
  const Tensor y = site.product(precision, nullptr, mean.reshaped({1, rows, in}), {});
  return y.reshaped(mean.rank() == 1 ? Shape{y.dim(-1)} : Shape{rows, y.dim(-1)});
}

// Mean error of a site's output, from the mean inputs of the float network and of the quantized one.
Tensor output_error(const Site& site, const Tensor& real, const Tensor& own) {
  const Tensor y = mean_output(site, Precision::Fake, own);
  return add(nullptr, mean_output(site, Precision::Float, real), scale(nullptr, y, -1));
}

class Walk {
 public:
  // With `solver` weights are quantized; with `bc` outputs are compensated on that stream.
  Walk(Model& model, const WalkOptions* solver, const BcOptions* bc, BcStream stream, const Warn& warn)
      : model_(model), solver_(solver), bc_(bc), stream_(stream), warn_(warn) {}

  WalkResult run(const char* name, const std::vector<Batch>& windows, const Progress& progress, BlockStore* store) {
    require(!windows.empty(), "%s needs calibration windows", name);
    const int depth = model_.depth(), restored = restore_blocks(store, name, model_, result_.blocks);
    if (restored < depth)
      for (const Batch& batch : windows) own_.push_back(model_.embed({Precision::Fake}, batch));
    if (has_real()) real_ = own_;
    outputs_.resize(own_.size());
    for (int i = 0; i < depth && restored < depth; ++i) {
      progress(name, i, depth);
      if (i >= restored) {
        result_.blocks.emplace_back();
        fit_sites(i);
        if (bc_ && bc_->block) fit_output(i);
        if (store) store->done(name, model_, i, result_.blocks.back());
      }
      if (i + 1 < depth) advance(i);
    }
    progress(name, depth, depth);
    return std::move(result_);
  }

 private:
  bool has_real() const { return bc_ || solver_->float_target; }

  void fit_sites(int i) {
    if (solver_)
      for (Site* site : model_.sites(i)) site->clear();
    FindGroups found(
        [&](const Site& site) { return solver_ ? is_to_quantize(site, solver_->bits) : is_quantized(site); });
    model_.block({Precision::Fake, nullptr, &found}, i, own_[0]);
    groups_ = found.groups;
    real_means_.clear();
    const size_t n = groups_.size();
    if (n == 0) return;
    const bool means = bc_ && bc_->linear;
    if (stream_ == BcStream::Float) {
      if (means) fit(0, n, observe(i, 0, n, false, true));
    } else if (solver_ && !solver_->sequential) {
      fit(0, n, observe(i, 0, n, true, false));
      for (size_t g = 0; g < n && means; ++g) fit(g, g + 1, observe(i, g, g + 1, false, true));
    } else if (solver_ || means) {
      for (size_t g = 0; g < n; ++g) fit(g, g + 1, observe(i, g, g + 1, solver_, means));
    }
  }

  // What groups [begin, end) of block i are fed by window j, x; the block's output where the pass goes on to it.
  Inputs inputs(Precision precision, int i, size_t j, const Tensor& x, size_t begin, size_t end, bool to_output) {
    Capture capture(groups_, begin, end, to_output);
    try {
      outputs_[j] = model_.block({precision, nullptr, &capture}, i, x);
    } catch (const Capture::Done&) {
    }
    return std::move(capture.inputs);
  }

  // Sums of what groups [begin, end) of block i are fed.
  std::vector<GroupSums> observe(int i, size_t begin, size_t end, bool moments, bool means) {
    // Of float inputs alone this is the one float pass there is, and so keeps the outputs somebody needs.
    const bool is_float = stream_ == BcStream::Float;
    const bool to_output = is_float && (i + 1 < model_.depth() || (bc_->block && !is_known_sum(i)));
    const bool pairs = moments && solver_->float_target;
    const BcShape shape = bc_ ? bc_->shape : BcShape::Channel;
    std::vector<GroupSums> sums;
    for (size_t g = begin; g < end; ++g) sums.push_back({nullptr, nullptr, MeanError(shape), MeanError(shape)});
    for_windows(
        [&](size_t j) {
          Observed x;
          const auto of = [&](Precision precision, const Tensor& from) {
            return inputs(precision, i, j, from, begin, end, to_output);
          };
          if (means || pairs) x.real = of(Precision::Float, real_[j]);
          if (!is_float) x.own = of(Precision::Fake, own_[j]);
          if (means) x.own_means = means_of(shape, x.own), x.real_means = means_of(shape, x.real);
          if (!moments) x.own.clear(), x.real.clear();
          return x;
        },
        [&](size_t j, const Observed& x) {
          for (size_t g = 0; g < sums.size(); ++g) {
            std::unique_ptr<Moments>& into = pairs && j % 2 ? sums[g].odd : sums[g].moments;
            if (moments && !into) into = std::make_unique<Moments>(x.own[g].dim(-1));
            if (moments) into->add(x.own[g], pairs ? x.real[g] : Tensor{});
            if (means) sums[g].real.add(x.real_means[g]);
            if (means && !is_float) sums[g].own.add(x.own_means[g]);
          }
        });
    return sums;
  }

  void fit(size_t begin, size_t end, const std::vector<GroupSums>& sums) {
    const Stopwatch watch(result_.seconds.solve);
    for (size_t g = begin; g < end; ++g) {
      const GroupSums& sum = sums[g - begin];
      if (sum.moments) quantize(groups_[g], *sum.moments, sum.odd.get());
      const Tensor real = sum.real.mean(), own = stream_ == BcStream::Float ? real : sum.own.mean();
      if (stream_ == BcStream::Float) real_means_.push_back(real);
      for (Site* site : groups_[g]) {
        if (real.empty()) continue;
        const Tensor b = output_error(*site, real, own);
        compensate(*site, b);
        result_.blocks.back().fitted += b.size();
      }
    }
  }

  // `moments` are of all windows, or where there are others in `odd` of the rest.
  void quantize(const Group& group, Moments& moments, const Moments* odd) {
    std::vector<Tensor> weights;
    for (const Site* site : group) weights.push_back(site->weight.values());
    double ridge = std::numeric_limits<double>::infinity();
    if (odd) {
      Refit refitted = refit(weights, moments, *odd, solver_->centred);
      weights = std::move(refitted.weights);
      ridge = refitted.ridge;
    }
    if (!warned_ && moments.tokens() < moments.columns()) {
      warned_ = true;
      warn_(
          format("%d calibration tokens are fewer than the %d columns of %s: its Hessian is singular, damping "
                 "decides the rest; use more or longer windows",
                 moments.tokens(), moments.columns(), group.front()->name));
    }
    const std::vector<double> hessian = moments.second(solver_->centred), means = moments.mean();
    for (size_t i = 0; i < group.size(); ++i) {
      Site& site = *group[i];
      const Tensor& v = weights[i];
      const GptqOptions options = options_of(site, solver_->gptq, solver_->bits);
      // Products are 2 / samples Σ: of windows of one length, 2 T times the mean over tokens.
      const double mean =
          static_cast<double>(moments.samples()) / (2. * static_cast<double>(moments.tokens() * v.dim(0)));
      QuantizedWeight q = gptq(v, hessian, options, site.name, warn_);
      LayerRecord record{site.name, options.bits, q.grid.group, q.damp, ridge};
      record.signal = mean * quadratic_error(v, {}, hessian);
      record.rounded = mean * quadratic_error(round_to_nearest(v, options).values, v, hessian);
      record.solved = mean * quadratic_error(q.values, v, hessian);
      record.refined = record.solved;
      if (solver_->refine > 0) {
        refine(q, v, hessian, solver_->refine);
        record.refined = mean * quadratic_error(q.values, v, hessian);
      }
      record.compensated = record.refined - (solver_->centred ? 0 : squared_error(q.values, v, means));
      attach(site, q);
      result_.blocks.back().layers.push_back(record);
    }
  }

  // The error of block i's output, its sites compensated, from the block's input to its end.
  void fit_output(int i) {
    const Tensor b = is_known_sum(i) ? error_of_sum(i) : error_of_output(i);
    compensate_block(model_, i, b);
    result_.blocks.back().fitted += b.size();
  }

  Tensor error_of_output(int i) {
    MeanError error(bc_->shape);
    for_windows(
        [&](size_t j) {
          return mean_of_one(bc_->shape, float_output(i, j), model_.block({Precision::Fake}, i, own_[j]));
        },
        [&](size_t, const MeanError& one) { error.add(one); });
    return error.mean();
  }

  // On one stream the mean error of a sum is that of what attention and the MLP add, and theirs a product of mean
  // inputs: the last product, a third of the work, need not be computed for every token.
  Tensor error_of_sum(int i) {
    Means own(groups_.size(), MeanError(bc_->shape));
    for_windows(
        [&](size_t j) {
          return means_of(bc_->shape, inputs(Precision::Fake, i, j, own_[j], 0, groups_.size(), false));
        },
        [&](size_t, const Means& one) {
          for (size_t g = 0; g < own.size(); ++g) own[g].add(one[g]);
        });
    Tensor error;
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (!ends_branch(groups_[g])) continue;
      const Tensor one = output_error(*groups_[g].front(), real_means_[g], own[g].mean());
      error = error.empty() ? one : add(nullptr, error, one);
    }
    return error;
  }

  static bool ends_branch(const Group& group) {
    return group.front()->role == Role::Proj || group.front()->role == Role::Fc2;
  }

  bool is_known_sum(int i) const {
    const bool has_bc = !model_.block_bc.empty() && !model_.block_bc[at(i)].empty();
    return model_.is_sum() && !has_bc && stream_ == BcStream::Float && bc_->linear &&
           std::count_if(groups_.begin(), groups_.end(), ends_branch) == 2;
  }

  void advance(int i) {
    for_windows(
        [&](size_t j) {
          if (has_real()) real_[j] = float_output(i, j);
          own_[j] = stream_ == BcStream::Float ? real_[j] : model_.block({Precision::Fake}, i, own_[j]);
          outputs_[j] = Tensor{};
          return j;
        },
        [](size_t, size_t) {});
  }

  // What the float network makes of window j in block i; computed once.
  const Tensor& float_output(int i, size_t j) {
    if (outputs_[j].empty()) outputs_[j] = model_.block({Precision::Float}, i, real_[j]);
    return outputs_[j];
  }

  // make(j) for every window j, some for each thread at a time; use(j, what was made) in order.
  template <class Make, class Use>
  void for_windows(Make make, Use use) {
    const size_t n = own_.size(), together = 4 * at(threads());
    for (size_t first = 0; first < n; first += together) {
      std::vector<decltype(make(first))> made(std::min(together, n - first));
      {
        const Stopwatch watch(result_.seconds.passes);
        parallel_for(static_cast<int64_t>(made.size()), [&](int64_t k) { made[at(k)] = make(first + at(k)); });
      }
      const Stopwatch watch(result_.seconds.moments);
      for (size_t k = 0; k < made.size(); ++k) use(first + k, made[k]);
    }
  }

  Model& model_;
  const WalkOptions* solver_;
  const BcOptions* bc_;
  BcStream stream_;
  const Warn& warn_;
  bool warned_ = false;
  Stream own_, real_;          // what the next block is fed on that stream and, where outputs are compensated, in float
  Stream outputs_;             // of the present block for real_, as far as they are known
  std::vector<Group> groups_;  // of the present block
  std::vector<Tensor> real_means_;  // their mean inputs, on the float stream
  WalkResult result_;
};

void require_bc(const BcOptions& o) {
  require_usage(!(o.attention || o.mlp || o.downsample || o.stage || o.model),
                "of a language model, linear sites and block outputs can be compensated, no others");
}

}  // namespace

int64_t WalkResult::fitted() const {
  int64_t sum = 0;
  for (const BlockRecord& block : blocks) sum += block.fitted;
  return sum;
}

void quantize_rtn(Model& model, const WeightGrid& grid, const SiteBits& bits) {
  for (int i = 0; i < model.depth(); ++i)
    for (Site* site : model.sites(i))
      if (is_to_quantize(*site, bits))
        attach(*site, round_to_nearest(site->weight.values(), options_of(*site, grid, bits)));
}

WalkResult quantize_gptq(Model& model, const std::vector<Batch>& windows, const WalkOptions& options,
                         const Progress& progress, const Warn& warn, BlockStore* store) {
  require_options(options.gptq);
  require_usage(options.refine >= 0, "the number of refining sweeps is 0 or more, not %d", options.refine);
  if (options.bc) require_bc(*options.bc);
  return Walk(model, &options, options.bc ? &*options.bc : nullptr, BcStream::Quantized, warn)
      .run("GPTQ", windows, progress, store);
}

WalkResult compensate_blocks(Model& model, const std::vector<Batch>& windows, const BcOptions& options, BcStream stream,
                             const Progress& progress, BlockStore* store) {
  require_bc(options);
  const Warn none;
  return Walk(model, nullptr, &options, stream, none).run("bias compensation", windows, progress, store);
}

}  // namespace bcq
