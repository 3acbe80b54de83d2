#include "quant/bias_comp.h"

#include <algorithm>
#include <functional>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"

namespace bcq {

void MeanError::update(const Tensor& f, const Tensor& q) {
  require((q.empty() || f.shape == q.shape) && f.rank() >= 2, "bias compensation: shapes %s and %s", to_string(f.shape),
          to_string(q.shape));
  // Seen as [B, H, N, C]: only heads keep an axis of their own when positions are shared.
  const int64_t C = f.dim(-1), H = f.rank() == 4 ? f.dim(1) : 1, B = f.dim(0), N = f.size() / (B * H * C);
  const int64_t kept_rows = shape_ == BcShape::Position ? N : 1;
  const Shape kept = shape_ == BcShape::Position ? Shape(f.shape.begin() + 1, f.shape.end())
                     : f.rank() == 4             ? Shape{H, 1, C}
                                                 : Shape{C};
  if (batches_ == 0) {
    mean_shape_ = kept;
    mean_.assign(static_cast<size_t>(numel(kept)), 0.0);
  }
  require(kept == mean_shape_, "bias compensation: all batches need outputs of one shape, got %s", to_string(f.shape));

  std::vector<double> sum(mean_.size(), 0.0);
  for (int64_t row = 0; row < B * H * N; ++row) {
    const int64_t h = row / N % H, n = row % N;
    double* into = &sum[static_cast<size_t>((h * kept_rows + (kept_rows == 1 ? 0 : n)) * C)];
    const float *fr = f.data + row * C, *qr = q.empty() ? nullptr : q.data + row * C;
    kernels().accumulate(fr, qr, into, C);
  }
  ++batches_;
  const double shared = static_cast<double>(B * N / kept_rows);
  for (size_t i = 0; i < sum.size(); ++i) mean_[i] += (sum[i] / shared - mean_[i]) / static_cast<double>(batches_);
}

void MeanError::add(const MeanError& more) {
  if (batches_ == 0) {
    *this = more;
    return;
  }
  require(more.mean_shape_ == mean_shape_, "bias compensation: all batches need outputs of one shape, got %s",
          to_string(more.mean_shape_));
  batches_ += more.batches_;
  const double part = static_cast<double>(more.batches_), all = static_cast<double>(batches_);
  for (size_t i = 0; i < mean_.size(); ++i) mean_[i] += (more.mean_[i] - mean_[i]) * part / all;
}

Tensor MeanError::mean() const {
  if (batches_ == 0) return {};
  return Tensor(mean_shape_, std::vector<float>(mean_.begin(), mean_.end()));
}

namespace {

// a + b, where an empty tensor is zero.
Tensor sum(const Tensor& a, const Tensor& b) {
  require(a.empty() || a.shape == b.shape, "bias compensation: a bias of shape %s on top of one of shape %s",
          to_string(b.shape), to_string(a.shape));
  Tensor y = b.clone();
  if (!a.empty()) kernels().add(a.data, b.data, y.data, y.size());
  return y;
}

void fold(const Tensor& bias, Tensor& bias_hat, const Tensor& b) {
  bias_hat = sum(bias_hat.empty() ? bias : bias_hat, b);
}

bool is_selected(const Site& site, const BcOptions& options) {
  if (!site.is_quantized()) return false;
  return site.role == Role::Patch ? options.conv : site.is_linear() ? options.linear : options.matmul;
}

// Which outputs are measured together: of these sites, or of the chains that end in them.
struct Outputs {
  std::function<bool(const Site&)> wanted;
  bool chains = false;
};

// Averages what is missing from outputs, each of which a site can give back.
class Errors : public Observer {
 public:
  Errors(const Outputs& outputs, const BcOptions& options) : outputs_(outputs), options_(options) {}

  // What runs next: the float network, every output of which is compared with a quantized one from the same inputs;
  // or the float, then the quantized network on inputs of its own.
  enum class Mode { SameInputs, Float, Fake };
  void start(Mode mode) { mode_ = mode; }

  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (!outputs_.chains && outputs_.wanted(site))
      see(site, y, [&] { return site.product(Precision::Fake, nullptr, a, b); });
  }
  void chain(const Site& last, const Tensor& x, const Tensor& y, const Body& body) override {
    if (outputs_.chains && outputs_.wanted(last))
      see(last, y, [&] { return body({Precision::Fake, nullptr, nullptr, options_.masked_attention}, x); });
  }
  int64_t attach() {
    int64_t values = 0;
    for (auto& [site, error] : errors_) {
      const Tensor b = error.mean();
      compensate(*site, b);
      values += b.size();
    }
    return values;
  }

 private:
  template <class F>
  void see(const Site& site, const Tensor& y, F quantized) {
    if (mode_ == Mode::Float)
      float_outputs_[&site] = y;
    else
      update(site, mode_ == Mode::Fake ? float_outputs_.at(&site) : y, mode_ == Mode::Fake ? y : quantized());
  }
  void update(const Site& site, const Tensor& f, const Tensor& q) {
    errors_.try_emplace(const_cast<Site*>(&site), options_.shape).first->second.update(f, q);
  }

  const Outputs& outputs_;
  const BcOptions& options_;
  Mode mode_ = Mode::SameInputs;
  std::map<const Site*, Tensor> float_outputs_;
  std::map<Site*, MeanError> errors_;
};

// Part -1: embedding.  Part i: block i.  Part depth(): head, which a language model's walk leaves out.
Tensor run_part(const Model& model, const Context& ctx, int i, const Batch& batch, const Tensor& x) {
  return i < 0 ? model.embed(ctx, batch) : i < model.depth() ? model.block(ctx, i, x) : model.head(ctx, x);
}

using Stream = std::vector<Tensor>;  // one tensor a batch

Stream run_part(const Model& model, const Context& ctx, int i, const std::vector<Batch>& batches, const Stream& x) {
  Stream y(x.size());
  for (size_t j = 0; j < x.size(); ++j) y[j] = run_part(model, ctx, i, batches[j], x[j]);
  return y;
}

Tensor mean_error(BcShape shape, const Stream& f, const Stream& q) {
  MeanError error(shape);
  for (size_t j = 0; j < f.size(); ++j) error.update(f[j], q[j]);
  return error.mean();
}

// Parts [first, last] run quantized from their float input x.
Stream run_quantized(const Model& model, int first, int last, const std::vector<Batch>& batches, Stream x) {
  for (int i = first; i <= last; ++i) x = run_part(model, {Precision::Fake}, i, batches, x);
  return x;
}

bool has_merges(const Model& model) {
  for (int i = 0; i < model.depth(); ++i)
    if (model.is_merge(i)) return true;
  return false;
}

}  // namespace

void compensate(Site& site, const Tensor& b) {
  if (site.is_linear() && b.rank() == 1)
    fold(site.bias, site.bias_hat, b);
  else
    site.bc = sum(site.bc, b);
}

void compensate_block(Model& model, int i, const Tensor& b) {
  if (b.rank() == 1) {
    const Model::BlockEnd end = model.block_end(i);
    return fold(*end.bias, *end.bias_hat, b);
  }
  model.block_bc.resize(static_cast<size_t>(model.depth()));
  Tensor& bc = model.block_bc[static_cast<size_t>(i)];
  bc = sum(bc, b);
}

int64_t compensate(Model& model, const std::vector<Batch>& batches, const BcOptions& o, const Progress& progress) {
  const int depth = model.depth();
  const bool staged = has_merges(model);
  require_usage(staged || !(o.downsample || o.stage), "%s has no stages: downsample and stage are outputs of a Swin",
                model.info().name);
  require_usage(!o.model || !model.sites(depth).empty(), "the output of %s is not quantized: model cannot be chosen",
                model.info().name);
  require_usage(o.masked_attention || !o.attention || !o.quantized_stream,
                "attention is measured without its mask on the float stream only, as in the official scripts");
  int64_t values = 0;
  // The float stream, and the one whose outputs are measured; where that one entered the stage.
  Stream x(batches.size()), seen(batches.size()), entry;
  int stage = 0;  // first block of the stage
  for (int i = -1; i <= depth; ++i) {
    progress("bias compensation", i + 1, depth + 2);
    const std::vector<Site*> sites = model.sites(i);
    if (i == depth && sites.empty()) break;
    const auto fit_outputs = [&](const Outputs& outputs) {
      Errors errors(outputs, o);
      Stream y(x.size());
      for (size_t j = 0; j < x.size(); ++j) {
        errors.start(o.quantized_stream ? Errors::Mode::Float : Errors::Mode::SameInputs);
        y[j] = run_part(model, {Precision::Float, nullptr, &errors}, i, batches[j], x[j]);
        if (!o.quantized_stream) continue;
        errors.start(Errors::Mode::Fake);
        run_part(model, {Precision::Fake, nullptr, &errors}, i, batches[j], seen[j]);
      }
      values += errors.attach();
      return y;
    };
    // On the float stream products do not see one another; on the quantized one each sees those before it.
    const Stream y = o.quantized_stream ? run_part(model, {Precision::Float}, i, batches, x)
                                        : fit_outputs({[&](const Site& s) { return is_selected(s, o); }});
    for (const Site* one : sites)
      if (o.quantized_stream && is_selected(*one, o)) fit_outputs({[=](const Site& s) { return &s == one; }});
    if (o.attention) fit_outputs({[](const Site& s) { return s.role == Role::Proj; }, true});
    if (o.mlp) fit_outputs({[](const Site& s) { return s.role == Role::Fc2; }, true});
    const bool is_block = i >= 0 && i < depth;
    const auto fit_part = [&](int first, const Stream& from) {
      const Tensor b = mean_error(o.shape, y, run_quantized(model, first, i, batches, from));
      compensate_block(model, i, b);
      values += b.size();
    };
    if (is_block && (model.is_merge(i) ? o.downsample : o.block)) fit_part(i, seen);
    if (is_block && i == stage) entry = seen;
    if (is_block && (model.is_merge(i) || i + 1 == depth)) {
      if (o.stage) fit_part(stage, entry);
      stage = i + 1;
    }
    seen = o.quantized_stream ? run_part(model, {Precision::Fake}, i, batches, seen) : y;
    x = y;
  }
  if (o.model) {  // x holds the float logits
    const Tensor b = mean_error(o.shape, x, run_quantized(model, -1, depth, batches, Stream(batches.size())));
    for (Site* head : model.sites(depth)) compensate(*head, b);  // two heads are averaged: each takes it
    values += b.size();
  }
  progress("bias compensation", depth + 2, depth + 2);
  return values;
}

int64_t added_values(Model& model) {
  int64_t values = 0;
  for (const Site* site : model.all_sites()) {
    if (!site->bc.empty()) values += site->bc.size();
    if (!site->bias_hat.empty() && site->bias.empty()) values += site->bias_hat.size();
  }
  for (const Tensor& b : model.block_bc)
    if (!b.empty()) values += b.size();
  return values;
}

namespace {

struct Sums {
  double signal = 0, error = 0, n = 0;

  void add(const Tensor& y, const Tensor& q) {
    for (int64_t i = 0; i < y.size(); ++i) {
      const double f = y[i], d = f - q[i];
      signal += f * f;
      error += d * d;
    }
    n += static_cast<double>(y.size());
  }
  void add(const Stream& y, const Stream& q) {
    for (size_t j = 0; j < y.size(); ++j) add(y[j], q[j]);
  }
};

// Of sites and of the chains that end in them.
struct ErrorSums : Observer {
  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (site.is_quantized()) sites[&site].add(y, site.product(Precision::Fake, nullptr, a, b));
  }
  void chain(const Site& last, const Tensor& x, const Tensor& y, const Body& body) override {
    if (last.is_quantized()) chains[&last].add(y, body({Precision::Fake}, x));
  }
  std::map<const Site*, Sums> sites, chains;
};

std::string parent_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

// What the names of all sites of a part begin with: "blocks.0"; a part of one site: its parent.
std::string part_name(const std::vector<Site*>& sites) {
  std::string name = parent_of(sites[0]->name);
  for (const Site* site : sites)
    while (site->name.rfind(name + ".", 0) != 0) name = parent_of(name);
  return name;
}

}  // namespace

std::vector<OutputError> output_errors(Model& model, const std::vector<Batch>& batches, const Progress& progress) {
  const int depth = model.depth();
  const bool staged = has_merges(model);
  std::vector<OutputError> result;
  const auto report = [&](const std::string& name, const std::string& kind, const Site* site, const Sums& s) {
    result.push_back({name, kind, site, s.signal / s.n, s.error / s.n});
  };
  const auto report_part = [&](const std::string& name, const std::string& kind, const Stream& y, const Stream& q) {
    Sums sums;
    sums.add(y, q);
    report(name, kind, nullptr, sums);
  };
  Stream x(batches.size()), entry;
  int stage = 0, stages = 0;
  for (int i = -1; i <= depth && !batches.empty(); ++i) {
    progress("measuring outputs", i + 1, depth + 2);
    const std::vector<Site*> sites = model.sites(i);
    if (i == depth && sites.empty()) break;
    ErrorSums sums;
    const Stream y = run_part(model, {Precision::Float, nullptr, &sums}, i, batches, x);
    for (const Site* site : sites)
      if (sums.sites.count(site))
        report(site->name,
               site->role == Role::Patch ? "conv"
               : site->is_linear()       ? "linear"
                                         : "matmul",
               site, sums.sites[site]);
    for (const Site* site : sites)
      if (sums.chains.count(site))
        report(parent_of(site->name), site->role == Role::Proj ? "attention" : "mlp", nullptr, sums.chains[site]);
    if (i >= 0 && i < depth) {
      const bool is_merge = model.is_merge(i);
      if (i == stage) entry = x;
      report_part(part_name(sites), is_merge ? "downsample" : "block", y, run_quantized(model, i, i, batches, x));
      if (staged && (is_merge || i + 1 == depth)) {
        report_part(format("stage.%d", stages++), "stage", y, run_quantized(model, stage, i, batches, entry));
        stage = i + 1;
      }
    }
    if (i == depth) report_part("model", "model", y, run_quantized(model, -1, depth, batches, Stream(batches.size())));
    x = y;
  }
  progress("measuring outputs", depth + 2, depth + 2);
  return result;
}

}  // namespace bcq
