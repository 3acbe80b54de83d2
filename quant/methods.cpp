#include <span>

#include "engine/core/check.h"
#include "quant/apq_like.h"
#include "quant/awq.h"
#include "quant/billm.h"
#include "quant/dfq.h"
#include "quant/erq.h"
#include "quant/minmax.h"
#include "quant/noisyquant.h"
#include "quant/os_plus.h"
#include "quant/recipe.h"
#include "quant/repq.h"
#include "quant/smoothquant.h"
#include "quant/weight_methods.h"

namespace bcq {
namespace {

constexpr Family kVision = Family::Vision, kLanguage = Family::Language;

template <PtqOptions (*preset)(int, int)>
void ptq_defaults(Recipe& r) {
  r.ptq = preset(r.ptq.wbits, r.ptq.abits);
}
// The joint solve: all of the options below that lower the error of a layer's output, on by one name.
void joint_defaults(Recipe& r) {
  r.samples = 128;
  r.sequential = r.centred = r.weights.weighted = true;
  r.target = Target::Float;
  r.refine = 10;
  r.scale_rounds = 3;
  r.bc = BcForm::Channel;
  r.bc_stream = Stream::Quantized;
  r.bc_held_out = 0.25;
  if (r.family == kVision) r.bc_sites = kJointSites;
}

PtqOptions search_options(const Recipe& r) {
  PtqOptions options = r.ptq;
  options.seed = static_cast<uint32_t>(r.seed);
  return options;
}
template <class T>
std::unique_ptr<Method> make_search(const Recipe& r, const LayerBits&, const Warn& warn) {
  return std::make_unique<T>(search_options(r), warn);
}
std::unique_ptr<Method> make_apq(const Recipe& r, const LayerBits&, const Warn& warn) {
  return std::make_unique<bcq::ApqLike>(search_options(r), r.error_share, warn);
}
template <class T>
std::unique_ptr<Method> make_bits(const Recipe& r, const LayerBits&, const Warn&) {
  return std::make_unique<T>(r.ptq.wbits, r.ptq.abits);
}
std::unique_ptr<Method> make_erq(const Recipe& r, const LayerBits&, const Warn&) {
  return std::make_unique<bcq::Erq>(r.ptq.wbits, r.ptq.abits, r.coe);
}
std::unique_ptr<Method> make_joint(const Recipe& r, const LayerBits&, const Warn& warn) {
  JointOptions options{r.ptq.wbits, r.ptq.abits};
  options.bias = in_one_walk(r);
  options.grid = r.act_grid;
  options.held_out = r.bc_held_out;
  options.refine = static_cast<int>(r.refine);
  options.scale_rounds = static_cast<int>(r.scale_rounds);
  return std::make_unique<bcq::Joint>(options, warn);
}
ActivationGrid activations_of(const Recipe& r) { return {static_cast<int>(r.abits), r.fixed}; }
std::unique_ptr<Method> make_rtn(const Recipe& r, const LayerBits& bits, const Warn&) {
  require_usage(row_of(r).calibrates || r.abits == 32 || !r.fixed,
                "round to nearest looks at no data: its activations can be rounded per token only");
  return std::make_unique<RoundToNearest>(r.weights, bits, activations_of(r));
}
std::unique_ptr<Method> make_gptq(const Recipe& r, const LayerBits& bits, const Warn& warn) {
  GptqMethodOptions options{
      r.weights, bits, r.sequential, r.centred, r.target, static_cast<int>(r.refine), static_cast<int>(r.scale_rounds)};
  options.activations = activations_of(r);
  if (measures_errors(r)) options.held_out = r.bc_held_out;
  return std::make_unique<bcq::Gptq>(options, warn);
}
// Weights alone: grids of activations come with the methods that look for them.
void vision_gptq_defaults(Recipe& r) { r.ptq.abits = 32; }
std::unique_ptr<Method> make_vision_gptq(const Recipe& r, const LayerBits&, const Warn& warn) {
  require_usage(r.ptq.abits == 32, "gptq quantizes the weights of a vision model alone: --abits 32");
  GptqMethodOptions options{r.weights};
  options.gptq.bits = r.ptq.wbits;
  options.packed = false;  // as vision models are saved
  return std::make_unique<bcq::Gptq>(options, warn);
}
AwqOptions awq_options(const Recipe& r, const LayerBits& bits) {
  return {r.weights, bits, static_cast<int>(r.fold_steps), !r.corrected_bloom};
}
std::unique_ptr<Method> make_awq_scales(const Recipe& r, const LayerBits& bits, const Warn&) {
  return std::make_unique<AwqScales>(awq_options(r, bits));
}
std::unique_ptr<Method> make_rounding(const Recipe& r, const LayerBits& bits, const Warn& warn) {
  return r.gptq_rounding ? make_gptq(r, bits, warn) : make_rtn(r, bits, warn);
}
std::unique_ptr<Method> make_awq_rounding(const Recipe& r, const LayerBits& bits, const Warn& warn) {
  if (r.gptq_rounding) return make_gptq(r, bits, warn);
  return std::make_unique<RoundToNearest>(r.weights, bits, activations_of(r), r.clip ? clipped_weight : nullptr);
}
std::unique_ptr<Method> make_smoothing(const Recipe& r, const LayerBits&, const Warn&) {
  return std::make_unique<Smoothing>(r.alpha);
}
std::unique_ptr<Method> make_os_plus(const Recipe& r, const LayerBits& bits, const Warn&) {
  require_usage(r.abits < 32, "os-plus moves outliers of inputs that are rounded: --abits 8 or less");
  return std::make_unique<OutlierSuppression>(r.weights, static_cast<int>(r.abits), bits);
}
std::unique_ptr<Method> make_equalization(const Recipe& r, const LayerBits&, const Warn&) {
  require_usage(!r.gptq_rounding, "--rounding gptq looks at data, dfq does without");
  return std::make_unique<Equalization>();
}
std::unique_ptr<Method> make_noisyquant(const Recipe& r, const LayerBits&, const Warn&) {
  return std::make_unique<bcq::NoisyQuant>(r.ptq.wbits, r.ptq.abits, static_cast<uint32_t>(r.seed));
}
std::unique_ptr<Method> make_billm(const Recipe& r, const LayerBits& bits, const Warn& warn) {
  require_usage(r.abits == 32, "billm leaves activations float: no --abits");
  BillmOptions options{static_cast<BillmInside>(r.billm_inside), r.billm_hessian};
  options.percdamp = r.weights.percdamp;
  options.sequential = r.sequential;
  options.centred = r.centred;
  options.float_target = r.target == Target::Float;
  options.half = r.weights.half;
  return std::make_unique<bcq::Billm>(options, bits, warn);
}
void smooth_defaults(Recipe& r) {
  r.weights.bits = 8;
  r.weights.sym = true;
  r.abits = 8;
}

void billm_defaults(Recipe& r) {
  r.weights.bits = 1;
  r.weights.half = true;
}
void os_plus_defaults(Recipe& r) {
  r.weights.bits = 8;
  r.abits = 8;
  r.fixed = true;
}

using enum MethodName;
const MethodRow kMethods[] = {
    {Float, kVision, "fp32", "FP32", false, nullptr, nullptr},
    {MethodName::MinMax, kVision, "minmax", "min-max", true, nullptr, make_bits<bcq::MinMax>},
    {BasePtq, kVision, "base-ptq", "BasePTQ", true, ptq_defaults<base_ptq>, make_search<Ptq>},
    {EasyQuant, kVision, "easyquant", "EasyQuant", true, ptq_defaults<easy_quant>, make_search<Ptq>},
    {Ptq4Vit, kVision, "ptq4vit", "PTQ4ViT", true, nullptr, make_search<Ptq>},
    {MethodName::ApqLike, kVision, "apq-like", "APQ-like", true, ptq_defaults<apq_like>, make_apq},
    {Repq, kVision, "repq-vit", "RepQ-ViT", true, nullptr, make_bits<RepqVit>},
    {MethodName::Erq, kVision, "erq", "ERQ", true, nullptr, make_erq},
    {MethodName::NoisyQuant, kVision, "noisyquant", "NoisyQuant", true, nullptr, make_noisyquant},
    {MethodName::NoisyPtq4vit, kVision, "noisyquant-ptq4vit", "NoisyQuant-PTQ4ViT", true, nullptr,
     make_search<bcq::NoisyPtq4vit>},
    {MethodName::Gptq, kVision, "gptq", "GPTQ", true, vision_gptq_defaults, make_vision_gptq},
    {MethodName::Joint, kVision, "joint", "joint", true, joint_defaults, make_joint},
    {Stored, kVision, "stored", "stored", false, nullptr, nullptr},
    {Float, kLanguage, "fp", "FP", false, nullptr, nullptr},
    {Rtn, kLanguage, "rtn", "RTN", false, nullptr, make_rtn},
    {MethodName::Gptq, kLanguage, "gptq", "GPTQ", true, nullptr, make_gptq},
    {MethodName::Joint, kLanguage, "joint", "joint", true, joint_defaults, make_gptq},
    {Awq, kLanguage, "awq", "AWQ", true, nullptr, make_awq_rounding, make_awq_scales},
    {SmoothQuant, kLanguage, "smoothquant", "SmoothQuant", true, smooth_defaults, make_rounding, make_smoothing},
    {OsPlus, kLanguage, "os-plus", "OS+", true, os_plus_defaults, make_rounding, make_os_plus},
    {Dfq, kLanguage, "dfq", "DFQ", false, [](Recipe& r) { r.bc = BcForm::DataFree; }, make_rtn, make_equalization},
    {Billm, kLanguage, "billm", "BiLLM", true, billm_defaults, make_billm},
    {Stored, kLanguage, "stored", "stored", false, nullptr, nullptr},
};

}  // namespace

std::span<const MethodRow> method_rows() { return kMethods; }

const MethodRow& row_of(const Recipe& recipe) {
  for (const MethodRow& row : kMethods)
    if (row.method == recipe.method && row.family == recipe.family) return row;
  throw Error("a method of the other family");
}

}  // namespace bcq
