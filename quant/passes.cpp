#include "quant/passes.h"

#include <numeric>
#include <utility>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/kernels/kernels.h"

namespace bcq {

void Pass::watch(const Group& layers, OnProduct on_product) {
  watched_ = layers;
  on_product_ = std::move(on_product);
}

void Pass::input(const Layer& layer, const Tensor& a, const Tensor& b) {
  if (next_ == groups_.size() || &layer != groups_[next_].front()) return;
  for (const Tensor& x : {a, b})
    require(x.empty() || kernels().all_finite(x.data, x.size()), "%s: its input is not finite (NaN or infinity)",
            layer.name);
  if (on_group_)
    on_group_(next_, {a, b});
  else
    inputs.push_back(a);
  ++next_;
}

void Pass::product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y) {
  if (seen_ == watched_.size() || &layer != watched_[seen_]) return;
  ++seen_;
  on_product_(layer, a, b, y);
}

Tensor input_of(const Model& model, int i, Layer& layer, const Tensor& x) {
  const Group one{&layer};
  Pass pass({&one, 1}, false);
  model.block({Precision::Float, nullptr, &pass}, i, x);
  return pass.inputs.at(0);
}

double squared_errors(const Tensors& real, const std::function<Tensor(size_t j)>& make) {
  std::vector<double> sums(real.size());
  parallel_for(static_cast<int64_t>(real.size()), [&](int64_t item) {
    const auto j = static_cast<size_t>(item);
    const Tensor y = make(j);
    for (int64_t i = 0; i < y.size(); ++i) {
      const double e = static_cast<double>(y[i]) - real[j][i];
      sums[j] += e * e;
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace bcq
