#include "quant/bias_comp.h"

#include <algorithm>

#include "engine/check.h"
#include "engine/kernels.h"

namespace bcq {

void MeanError::update(const Tensor& f, const Tensor& q) {
  require(f.shape == q.shape && f.rank() >= 2, "bias compensation: shapes %s and %s", to_string(f.shape).c_str(),
          to_string(q.shape).c_str());
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
  require(kept == mean_shape_, "bias compensation: all batches need outputs of one shape, got %s",
          to_string(f.shape).c_str());

  std::vector<double> sum(mean_.size(), 0.0);
  for (int64_t row = 0; row < B * H * N; ++row) {
    const int64_t h = row / N % H, n = row % N;
    double* into = &sum[static_cast<size_t>((h * kept_rows + (kept_rows == 1 ? 0 : n)) * C)];
    const float *fr = f.data + row * C, *qr = q.data + row * C;
    for (int64_t c = 0; c < C; ++c) into[c] += static_cast<double>(fr[c]) - qr[c];
  }
  ++batches_;
  const double shared = static_cast<double>(B * N / kept_rows);
  for (size_t i = 0; i < sum.size(); ++i) mean_[i] += (sum[i] / shared - mean_[i]) / static_cast<double>(batches_);
}

Tensor MeanError::mean() const {
  if (batches_ == 0) return {};
  return Tensor(mean_shape_, std::vector<float>(mean_.begin(), mean_.end()));
}

namespace {

// a + b, where an empty tensor is zero.
Tensor sum(const Tensor& a, const Tensor& b) {
  require(a.empty() || a.shape == b.shape, "bias compensation: a bias of shape %s on top of one of shape %s",
          to_string(b.shape).c_str(), to_string(a.shape).c_str());
  Tensor y = b.clone();
  if (!a.empty()) kernels().add(a.data, b.data, y.data, y.size());
  return y;
}

void fold(const Tensor& bias, Tensor& bias_hat, const Tensor& b) {
  bias_hat = sum(bias_hat.empty() ? bias : bias_hat, b);
}

bool is_quantized(const Site& site) { return !is_identity(site.a) || !is_identity(site.b); }

bool is_selected(const Site& site, const BcOptions& options) {
  if (!is_quantized(site)) return false;
  return site.role == Role::Patch ? options.conv : site.is_linear() ? options.linear : options.matmul;
}

// Averages what is missing from outputs, each of which a site can give back.
class Errors : public Observer {
 public:
  explicit Errors(BcShape shape) : shape_(shape) {}
  int64_t attach() {
    int64_t values = 0;
    for (auto& [site, error] : errors_) {
      const Tensor b = error.mean();
      compensate(*site, b);
      values += b.size();
    }
    return values;
  }

 protected:
  void update(const Site& site, const Tensor& f, const Tensor& q) {
    errors_.try_emplace(const_cast<Site*>(&site), shape_).first->second.update(f, q);
  }

 private:
  BcShape shape_;
  std::map<Site*, MeanError> errors_;
};

// Feeds each selected site's float inputs to its quantized form.
struct SiteErrors : Errors {
  explicit SiteErrors(const BcOptions& o) : Errors(o.shape), options(o) {}
  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (is_selected(site, options)) update(site, y, site.product(Precision::Fake, nullptr, a, b));
  }
  const BcOptions& options;
};

// The same for the chains that end in a site of this role.
struct ChainErrors : Errors {
  ChainErrors(BcShape shape, Role r) : Errors(shape), role(r) {}
  void chain(const Site& last, const Tensor& x, const Tensor& y, const Body& body) override {
    if (last.role == role) update(last, y, body({Precision::Fake}, x));
  }
  Role role;
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
                model.info().name.c_str());
  require_usage(!o.model || !model.sites(depth).empty(), "the output of %s is not quantized: model cannot be chosen",
                model.info().name.c_str());
  int64_t values = 0;
  Stream x(batches.size()), entry;  // the float stream; where it entered the stage
  int stage = 0;                    // first block of the stage
  for (int i = -1; i <= depth; ++i) {
    progress("bias compensation", i + 1, depth + 2);
    if (i == depth && model.sites(i).empty()) break;
    SiteErrors sites(o);
    const Stream y = run_part(model, {Precision::Float, nullptr, &sites}, i, batches, x);
    values += sites.attach();
    for (const auto& [wanted, role] : {std::pair{o.attention, Role::Proj}, std::pair{o.mlp, Role::Fc2}}) {
      if (!wanted) continue;
      ChainErrors chains(o.shape, role);
      run_part(model, {Precision::Float, nullptr, &chains}, i, batches, x);
      values += chains.attach();
    }
    const bool is_block = i >= 0 && i < depth;
    const auto fit_part = [&](int first, const Stream& from) {
      const Tensor b = mean_error(o.shape, y, run_quantized(model, first, i, batches, from));
      compensate_block(model, i, b);
      values += b.size();
    };
    if (is_block && (model.is_merge(i) ? o.downsample : o.block)) fit_part(i, x);
    if (is_block && i == stage) entry = x;
    if (is_block && (model.is_merge(i) || i + 1 == depth)) {
      if (o.stage) fit_part(stage, entry);
      stage = i + 1;
    }
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

struct ErrorSums : Observer {
  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (!is_quantized(site)) return;
    const Tensor q = site.product(Precision::Fake, nullptr, a, b);
    Sums& s = sums[&site];
    for (int64_t i = 0; i < y.size(); ++i) {
      const double f = y[i], d = f - q[i];
      s.signal += f * f;
      s.error += d * d;
    }
    s.n += static_cast<double>(y.size());
  }
  struct Sums {
    double signal = 0, error = 0, n = 0;
  };
  std::map<const Site*, Sums> sums;
};

}  // namespace

std::vector<SiteReport> site_errors(Model& model, const std::vector<Batch>& batches, const Progress& progress) {
  ErrorSums observer;
  for (size_t j = 0; j < batches.size(); ++j) {
    progress("measuring outputs", static_cast<double>(j), static_cast<double>(batches.size()));
    model.forward({Precision::Float, nullptr, &observer}, batches[j]);
  }
  progress("measuring outputs", 1, 1);
  std::vector<SiteReport> result;
  for (const Site* site : model.all_sites()) {
    const auto found = observer.sums.find(site);
    if (found == observer.sums.end()) continue;
    const auto& s = found->second;
    result.push_back({site, s.signal / s.n, s.error / s.n});
  }
  return result;
}

}  // namespace bcq
