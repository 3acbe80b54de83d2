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

bool is_quantized(const Site& site) { return !is_identity(site.a) || !is_identity(site.b); }

bool is_selected(const Site& site, const BcOptions& options) {
  if (!is_quantized(site)) return false;
  return site.role == Role::Patch ? options.conv : site.is_linear() ? options.linear : options.matmul;
}

// Feeds each selected site's float inputs to its quantized form, and averages what is missing.
class SiteErrors : public Observer {
 public:
  SiteErrors(const std::vector<Site*>& sites, const BcOptions& options) {
    for (Site* site : sites)
      if (is_selected(*site, options)) errors_.emplace(site, MeanError(options.shape));
  }
  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor& y) override {
    const auto found = errors_.find(const_cast<Site*>(&site));
    if (found != errors_.end()) found->second.update(y, site.product(Precision::Fake, nullptr, a, b));
  }
  int64_t attach() {
    int64_t values = 0;
    for (auto& [site, error] : errors_) {
      const Tensor b = error.mean();
      require(!b.empty(), "bias compensation: %s was never run", site->name.c_str());
      compensate(*site, b);
      values += b.size();
    }
    return values;
  }

 private:
  std::map<Site*, MeanError> errors_;
};

}  // namespace

void compensate(Site& site, const Tensor& b) {
  if (site.is_linear() && b.rank() == 1)
    site.bias_hat = sum(site.bias_hat.empty() ? site.bias : site.bias_hat, b);
  else
    site.bc = sum(site.bc, b);
}

void compensate_block(Model& model, int i, const Tensor& b) {
  if (b.rank() == 1) return compensate(*model.sites(i).back(), b);
  model.block_bc.resize(static_cast<size_t>(model.depth()));
  Tensor& bc = model.block_bc[static_cast<size_t>(i)];
  bc = sum(bc, b);
}

int64_t compensate(Model& model, const std::vector<Batch>& batches, const BcOptions& options,
                   const Progress& progress) {
  const int depth = model.depth();
  int64_t values = 0;
  std::vector<Tensor> x(batches.size());  // the float stream
  for (int i = -1; i <= depth; ++i) {
    progress("bias compensation", i + 1, depth + 2);
    SiteErrors errors(model.sites(i), options);
    const Context watched{Precision::Float, nullptr, &errors};
    std::vector<Tensor> y(batches.size());
    for (size_t j = 0; j < batches.size(); ++j)
      y[j] = i < 0                    ? model.embed(watched, batches[j])
             : i < depth              ? model.block(watched, i, x[j])
             : model.sites(i).empty() ? Tensor{}
                                      : model.head(watched, x[j]);
    values += errors.attach();
    if (options.block && i >= 0 && i < depth) {
      MeanError error(options.shape);
      for (size_t j = 0; j < batches.size(); ++j) error.update(y[j], model.block({Precision::Fake}, i, x[j]));
      const Tensor b = error.mean();
      compensate_block(model, i, b);
      values += b.size();
    }
    x = std::move(y);
  }
  progress("bias compensation", depth + 2, depth + 2);
  return values;
}

}  // namespace bcq
