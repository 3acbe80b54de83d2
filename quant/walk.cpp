#include "quant/walk.h"

#include <map>
#include <memory>

#include "engine/check.h"
#include "engine/kernels.h"
#include "quant/moments.h"

namespace bcq {
namespace {

long long ll(int64_t i) { return static_cast<long long>(i); }

bool is_quantized(const Site& site, const SiteBits& bits) {
  const auto own = bits.find(&site);
  return site.is_linear() && (own == bits.end() || own->second > 0);
}

// ---- Hessians -----------------------------------------------------------------------------------

// The Hessians of a block's sites that are to be quantized. Sites that get the same tensor one after the other (query,
// key, value) share one; the tensor is held until the next comes, so that its address identifies it.
class Hessians : public Observer {
 public:
  explicit Hessians(const SiteBits& bits) : bits_(bits) {}

  void site(const Site& site, const Tensor& a, const Tensor&, const Tensor&) override {
    if (!is_quantized(site, bits_)) return;
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
  const SiteBits& bits_;
  Tensor input_;
  const Site* first_ = nullptr;  // the first site that got input_
  std::map<const Site*, std::shared_ptr<Moments>> of_;
};

// ---- Walks --------------------------------------------------------------------------------------

void attach(Site& site, const QuantizedWeight& q) {
  for (const Tensor& w : {site.weight.values(), q.values})  // a weight that is NaN would round to code 0
    require(kernels().all_finite(w.data, w.size()), "%s: its weight is not finite (NaN or infinity)",
            site.name.c_str());
  site.b = q.grid;
  site.weight_hat = q.values;
}

std::vector<Site*> quantized_sites(Model& model, int block, const SiteBits& bits) {
  std::vector<Site*> sites;
  for (Site* site : model.sites(block))
    if (is_quantized(*site, bits)) sites.push_back(site);
  return sites;
}

// Options with the bits that are this site's own.
template <class Options>
Options options_of(const Site& site, Options options, const SiteBits& bits) {
  const auto own = bits.find(&site);
  if (own != bits.end()) options.bits = own->second;
  return options;
}

}  // namespace

void quantize_rtn(Model& model, const WeightGrid& grid, const SiteBits& bits) {
  for (int i = 0; i < model.depth(); ++i)
    for (Site* site : quantized_sites(model, i, bits))
      attach(*site, round_to_nearest(site->weight.values(), options_of(*site, grid, bits)));
}

void quantize_gptq(Model& model, const std::vector<Batch>& windows, const GptqOptions& options,
                   const Progress& progress, const Warn& warn, const SiteBits& bits) {
  require_options(options);
  require(!windows.empty(), "GPTQ needs calibration windows");
  std::vector<Tensor> x(windows.size());  // the one stream: what block i is fed
  for (size_t j = 0; j < windows.size(); ++j) x[j] = model.embed({Precision::Fake}, windows[j]);

  bool warned = false;
  for (int i = 0; i < model.depth(); ++i) {
    progress("GPTQ", i, model.depth());
    Hessians hessians(bits);
    for (const Tensor& input : x) model.block({Precision::Float, nullptr, &hessians}, i, input);
    for (Site* site : quantized_sites(model, i, bits)) {
      const Moments& moments = hessians.of(*site);
      if (!warned && moments.tokens() < moments.columns()) {
        warned = true;
        warn(
            format("%lld calibration tokens are fewer than the %lld columns of %s: its Hessian is singular, damping "
                   "decides the rest; use more or longer windows",
                   ll(moments.tokens()), ll(moments.columns()), site->name.c_str()));
      }
      attach(*site, gptq(site->weight.values(), moments.second(), options_of(*site, options, bits), site->name, warn));
    }
    for (Tensor& stream : x) stream = model.block({Precision::Fake}, i, stream);
  }
  progress("GPTQ", model.depth(), model.depth());
}

}  // namespace bcq
