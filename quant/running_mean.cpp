#include "quant/running_mean.h"

#include <cmath>

#include "engine/core/check.h"
#include "engine/kernels/kernels.h"

namespace bcq {

void RunningMean::update(const Tensor& f, const Tensor& q) {
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
    double* into = &sum[at((h * kept_rows + (kept_rows == 1 ? 0 : n)) * C)];
    const float *fr = f.data + row * C, *qr = q.empty() ? nullptr : q.data + row * C;
    kernels().accumulate(fr, qr, into, C);
  }
  ++batches_;
  const double shared = static_cast<double>(B * N / kept_rows);
  for (size_t i = 0; i < sum.size(); ++i) mean_[i] += (sum[i] / shared - mean_[i]) / static_cast<double>(batches_);
}

void RunningMean::add(const RunningMean& more) {
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

Tensor RunningMean::mean() const {
  if (batches_ == 0) return {};
  return Tensor(mean_shape_, std::vector<float>(mean_.begin(), mean_.end()));
}

bool is_held_out(int64_t sample, double share) { return share > 0 && sample % std::lround(1 / share) == 1; }

void HeldOutMean::add(size_t sample, const RunningMean& one) {
  all.add(one);
  ++samples;
  if (!is_held_out(static_cast<int64_t>(sample), share)) return;
  held_out.add(one);
  ++samples_held_out;
}

bool helps_held_out(const Tensor& all, const Tensor& held_out, double share) {
  if (held_out.empty() || !(share < 1)) return true;
  double change = 0;
  for (int64_t i = 0; i < all.size(); ++i) {
    const double b = (all[i] - share * held_out[i]) / (1 - share);
    change += b * (b - 2 * static_cast<double>(held_out[i]));
  }
  return change < 0;
}

}  // namespace bcq
