#include "quant/walk.h"

#include <map>
#include <memory>

#include "engine/check.h"
#include "engine/kernels.h"
#include "quant/moments.h"

namespace bcq {
namespace {

long long ll(int64_t i) { return static_cast<long long>(i); }

// ---- Hessians -----------------------------------------------------------------------------------

// The Hessians of a block's linear sites. Sites that get the same tensor one after the other (query, key,
// value) share one; the tensor is held until the next comes, so that its address identifies it.
class Hessians : public Observer {
 public:
  void site(const Site& site, const Tensor& a, const Tensor&, const Tensor&) override {
    if (!site.is_linear()) return;
    if (a.data != input_.data) {
      require(kernels().all_finite(a.data, a.size()), "%s: its input is not finite (NaN or infinity)",
              site.name.c_str());
      input_ = a;
      first_ = &site;
    }
    std::shared_ptr<Moments>& moments = of_[&site];
    if (!moments) moments = first_ == &site ? std::make_shared<Moments>(a.dim(-1)) : of_[first_];
    if (first_ == &site) moments->add(a);
  }

  const Moments& of(const Site& site) const {
    const auto found = of_.find(&site);
    require(found != of_.end(), "GPTQ: %s was never run", site.name.c_str());
    return *found->second;
  }

 private:
  Tensor input_;
  const Site* first_ = nullptr;  // the first site that got input_
  std::map<const Site*, std::shared_ptr<Moments>> of_;
};

// ---- Walks --------------------------------------------------------------------------------------

void attach(Site& site, const QuantizedWeight& q) {
  for (const Tensor& w : {site.weight, q.values})  // a weight that is NaN would round to code 0
    require(kernels().all_finite(w.data, w.size()), "%s: its weight is not finite (NaN or infinity)",
            site.name.c_str());
  site.b = q.grid;
  site.weight_hat = q.values;
}

std::vector<Site*> linear_sites(Model& model, int block) {
  std::vector<Site*> sites;
  for (Site* site : model.sites(block))
    if (site->is_linear()) sites.push_back(site);
  return sites;
}

}  // namespace

void quantize_rtn(Model& model, int bits, int64_t groupsize) {
  for (int i = 0; i < model.depth(); ++i)
    for (Site* site : linear_sites(model, i)) attach(*site, round_to_nearest(site->weight, bits, groupsize));
}

void quantize_gptq(Model& model, const std::vector<Batch>& windows, const GptqOptions& options,
                   const Progress& progress, const Warn& warn) {
  require_options(options);
  require(!windows.empty(), "GPTQ needs calibration windows");
  std::vector<Tensor> x(windows.size());  // the one stream: what block i is fed
  for (size_t j = 0; j < windows.size(); ++j) x[j] = model.embed({Precision::Fake}, windows[j]);

  bool warned = false;
  for (int i = 0; i < model.depth(); ++i) {
    progress("GPTQ", i, model.depth());
    Hessians hessians;
    for (const Tensor& input : x) model.block({Precision::Float, nullptr, &hessians}, i, input);
    for (Site* site : linear_sites(model, i)) {
      const Moments& moments = hessians.of(*site);
      if (!warned && moments.tokens() < moments.columns()) {
        warned = true;
        warn(
            format("%lld calibration tokens are fewer than the %lld columns of %s: its Hessian is singular, damping "
                   "decides the rest; use more or longer windows",
                   ll(moments.tokens()), ll(moments.columns()), site->name.c_str()));
      }
      attach(*site, gptq(site->weight, moments.second(), options, site->name, warn));
    }
    for (Tensor& stream : x) stream = model.block({Precision::Fake}, i, stream);
  }
  progress("GPTQ", model.depth(), model.depth());
}

}  // namespace bcq
