#include "quant/ptq4vit.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <random>

#include "engine/core/check.h"
#include "engine/grid/twin.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

constexpr double kFewImages = 8;                    // fewer contributing images than this make a poor estimate
constexpr int kExponents = 20;                      // powers of two to try: splits of softmax 2^0 ... 2^-19
constexpr float kTiny = 1e-30f;                     // a range below this has no normal numbers for steps
constexpr double kGeluDepth = 0.16997124254703522;  // minus the minimum of GELU

void check(const PtqOptions& o) {
  for (const int bits : {o.wbits, o.abits})
    require_usage((bits >= 2 && bits <= 16) || bits == kFloatBits,
                  "%d bits: weights and activations take 2 to 16 bits, or %d to stay float", bits, kFloatBits);
  require_usage(o.eq_n >= 1 && o.eq_alpha > 0 && o.eq_beta > o.eq_alpha,
                "the search needs 0 < alpha < beta and at least one candidate, got %g, %g, %d", o.eq_alpha, o.eq_beta,
                o.eq_n);
  require_usage(!o.sequential || o.metric != Metric::Hessian,
                "calibration in sequence has no gradients of the float network: use --metric cosine or l2");
  require_usage(o.rounds >= 1 && o.draws >= 1, "rounds and draws must be at least 1, got %d and %d", o.rounds, o.draws);
}

// ---- What the grid of an operand may be (the table of PTQ4ViT's wrapped layers) ---------------------

// One operand of a site during its calibration.
struct Operand {
  Side side;
  Tensor value;           // float
  Candidates candidates;  // no multipliers: stays float
  bool alone = false;     // is searched while the other operand is float

  std::vector<float> chosen;               // multipliers, one a unit
  std::optional<std::vector<float>> seen;  // the other operand's when this one was searched last

  bool is_searched() const { return !candidates.multipliers.empty(); }
  Grid grid() const { return is_searched() ? candidates.grid(chosen) : Grid{Identity{}}; }
};

std::vector<float> multipliers(const PtqOptions& o) {
  std::vector<float> c;
  for (int i = 0; i < o.eq_n; ++i) c.push_back(static_cast<float>(o.eq_alpha + i * (o.eq_beta - o.eq_alpha) / o.eq_n));
  return c;
}

// The step at which `top` just fits a signed grid. A part without values gets a step of 1: any will do.
float first_step(float top, int bits) { return top > kTiny ? top / (std::ldexp(1.f, bits - 1) - 0.5f) : 1.f; }

Candidates uniform(const Tensor& x, int axis, int64_t units, int bits, const PtqOptions& options) {
  int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= x.dim(i);
  const int64_t part = x.size() / outer / units;
  std::vector<float> top(static_cast<size_t>(units), 0.f);
  for (int64_t i = 0; i < outer * units; ++i) {
    float& unit = top[at(i % units)];
    unit = std::max(unit, kernels().max_abs(x.data + i * part, part));
  }
  return {multipliers(options), units, [=](const std::vector<float>& c) {
            std::vector<float> steps;
            for (size_t u = 0; u < c.size(); ++u) steps.push_back(c[u] * first_step(top[u], bits));
            return Grid{Uniform{bits, axis, steps}};
          }};
}

// Multipliers are of the step at which the largest value just fits, rounded up to 2^m Δ⁻ when aligned.
Candidates twin_gelu(const Tensor& x, int bits, const PtqOptions& options) {
  float pos = first_step(*std::max_element(x.data, x.data + x.size()), bits);
  const float neg = static_cast<float>(kGeluDepth / std::ldexp(1.0, bits - 1));
  std::vector<float> c = multipliers(options);
  if (options.gelu_twin == GeluTwin::Aligned) {
    int m = 0;
    while (m < kExponents - 1 && std::ldexp(neg, m) < pos) ++m;
    pos = std::ldexp(neg, m);
    c.clear();
    for (int down = 0; down <= m; ++down) c.push_back(std::ldexp(1.f, -down));
  }
  return {c, 1, [=](const std::vector<float>& scale) { return Grid{TwinGelu{bits, scale[0] * pos, neg}}; }};
}

Candidates twin_softmax(int bits, bool official) {
  std::vector<float> splits;
  for (int i = 0; i < kExponents; ++i) splits.push_back(std::ldexp(1.f, -i));
  return {splits, 1, [=](const std::vector<float>& c) { return Grid{TwinSoftmax{bits, c[0], official}}; }};
}

// The one grid from 0 to the largest value.
Candidates from_zero(const Tensor& x, int bits) {
  const float top = std::max(kernels().max_abs(x.data, x.size()), kTiny), step = top / (std::ldexp(1.f, bits) - 1);
  return {{1.f}, 1, [=](const std::vector<float>&) { return Grid{Asymmetric(bits, step, 0)}; }};
}

Operand left_operand(const Layer& layer, const Operands& data, const PtqOptions& o) {
  Operand operand{Side::Left, data.a, {}, false, {}, {}};
  if (o.abits == kFloatBits || (layer.role == Role::Patch && !o.quantize_pixels)) return operand;
  if (layer.role == Role::AV && o.softmax_twin == SoftmaxTwin::Unsigned) {
    operand.candidates = from_zero(data.a, o.abits);
  } else if (layer.role == Role::AV && o.softmax_twin != SoftmaxTwin::None) {
    operand.candidates = twin_softmax(o.abits, o.softmax_twin == SoftmaxTwin::Official);
    operand.alone = true;
  } else if (layer.role == Role::Fc2 && o.gelu_twin != GeluTwin::None) {
    operand.candidates = twin_gelu(data.a, o.abits, o);
  } else if (layer.is_linear()) {
    operand.candidates = uniform(data.a, 0, 1, o.abits, o);
  } else {
    operand.candidates = uniform(data.a, 1, o.head_intervals ? data.a.dim(1) : 1, o.abits, o);
  }
  operand.chosen.assign(static_cast<size_t>(operand.candidates.units), 1.f);
  return operand;
}

Operand right_operand(const Layer& layer, const Operands& data, const PtqOptions& o) {
  const bool weight = layer.is_linear();
  const int bits = weight ? o.wbits : o.abits;
  Operand operand{Side::Right, weight ? layer.weight.values() : data.b, {}, false, {}, {}};
  if (bits == kFloatBits) return operand;
  const int64_t units = !weight                                       ? (o.head_intervals ? data.b.dim(1) : 1)
                        : layer.role == Role::QKV                     ? 3
                        : layer.role == Role::Patch && o.channel_conv ? layer.weight.dim(0)
                                                                      : 1;
  operand.candidates = uniform(operand.value, weight ? 0 : 1, units, bits, o);
  operand.chosen.assign(static_cast<size_t>(units), 1.f);
  return operand;
}

void check(const Layer& layer, const Operands& data) {
  const std::string& name = layer.name;
  for (const Tensor* t : {&data.a, &data.y})
    require(!t->empty() && t->size() > 0, "%s: calibration needs operands and outputs", name);
  require(layer.is_linear() || !data.b.empty(), "%s: calibration needs both operands", name);
  require(data.g2.empty() || data.g2.size() == data.y.size(), "%s: weights of shape %s for an output of shape %s", name,
          to_string(data.g2.shape), to_string(data.y.shape));
  for (const Tensor* t : {&data.a, &data.b, &data.y})
    require(t->empty() || kernels().all_finite(t->data, t->size()), "%s: its %s are not finite in the float network",
            name, t == &data.y ? "outputs" : "inputs");
}

}  // namespace

PtqOptions base_ptq(int wbits, int abits) {
  PtqOptions options{wbits, abits};
  options.softmax_twin = SoftmaxTwin::None;
  options.gelu_twin = GeluTwin::None;
  options.channel_conv = false;
  options.metric = Metric::Cosine;
  options.eq_alpha = 0.5;
  options.rounds = 1;
  return options;
}

PtqOptions easy_quant(int wbits, int abits) {
  PtqOptions options = base_ptq(wbits, abits);
  options.sequential = true;
  options.rounds = 10;
  return options;
}

void calibrate_layer(Layer& layer, const Operands& data, const PtqOptions& options, const Search& by) {
  check(options);
  check(layer, data);
  Operand left = left_operand(layer, data, options), right = right_operand(layer, data, options);
  // A weight comes before its input, the left operand of a product before the right one.
  Operand* order[] = {layer.is_linear() ? &right : &left, layer.is_linear() ? &left : &right};
  for (int round = 0; round < options.rounds; ++round)
    for (Operand* operand : order) {
      if (!operand->is_searched()) continue;
      const Operand& other = operand == &left ? right : left;
      // A search is a function of the other operand's grid alone: once that stands, so does the result.
      const std::vector<float> given = operand->alone ? std::vector<float>{} : other.chosen;
      if (operand->seen == given) continue;
      operand->seen = given;
      const Grid fixed = operand->alone ? Grid{Identity{}} : other.grid();
      const std::vector<int> best = by ? by(operand->side, fixed, operand->candidates)
                                       : search(layer, data, options.metric, operand->side, fixed, operand->candidates);
      for (size_t u = 0; u < best.size(); ++u) operand->chosen[u] = operand->candidates.multipliers[at(best[u])];
    }
  layer.quantize(left.grid(), right.grid());
}

// ---- Probe gradients at the logits -----------------------------------------------------------------

namespace {

// Uniform in (0, 1): the raw output of the generator is the same in every standard library.
double uniform01(std::mt19937& random) { return (static_cast<double>(random()) + 0.5) * 0x1p-32; }

std::vector<double> probabilities(const float* logits, int64_t n) {
  const double max = *std::max_element(logits, logits + n);
  std::vector<double> p;
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    p.push_back(std::exp(logits[c] - max));
    sum += p.back();
  }
  for (double& v : p) v /= sum;
  return p;
}

// dL/dz of one image and draw, from its class probabilities.
void probe(const std::vector<double>& p, Probe kind, std::mt19937& random, float* dz) {
  if (kind == Probe::Noise) {
    for (size_t c = 0; c < p.size(); ++c) dz[c] = static_cast<float>(p[c] * (2 * uniform01(random) - 1));
    return;
  }
  const double u = uniform01(random);
  size_t label = 0;  // inverse of the cumulative distribution; the last class if rounding leaves a gap
  for (double below = p[0]; below < u && label + 1 < p.size(); below += p[label]) ++label;
  for (size_t c = 0; c < p.size(); ++c) dz[c] = static_cast<float>(c == label ? p[c] - 1 : p[c]);
}

// The gradients of all draws for logits given in batches [b, classes]: [draw][batch].
std::vector<std::vector<Tensor>> probe_gradients(const std::vector<Tensor>& logits, const PtqOptions& options,
                                                 const Warn& warn) {
  std::mt19937 random(options.seed);
  std::vector<std::vector<Tensor>> gradients(static_cast<size_t>(options.draws));
  for (const Tensor& z : logits)
    for (auto& draw : gradients) draw.push_back(Tensor::uninitialized(z.shape));
  double sum = 0, sum_of_squares = 0;
  for (size_t j = 0; j < logits.size(); ++j)
    for (int64_t b = 0; b < logits[j].dim(0); ++b) {
      const int64_t classes = logits[j].dim(1);
      const std::vector<double> p = probabilities(logits[j].data + b * classes, classes);
      double power = 0;  // of this image
      for (auto& draw : gradients) {
        float* dz = draw[j].data + b * classes;
        probe(p, options.probe, random, dz);
        power += kernels().dot(dz, dz, classes);
      }
      sum += power;
      sum_of_squares += power * power;
    }
  const double images = sum_of_squares > 0 ? sum * sum / sum_of_squares : 0;
  if (images < kFewImages && warn)
    warn(
        format("only about %.1f images carry the gradients that weigh the errors (the network is certain of the "
               "others): use more calibration images or more draws",
               images));
  return gradients;
}

}  // namespace

// ---- The method ------------------------------------------------------------------------------------

Ptq::Ptq(const PtqOptions& options, const Warn& warn) : options_(options), warn_(warn) { check(options); }

void Ptq::fit(const std::vector<Layer*>& group, Seen& seen, PartRecord&) {
  for (size_t i = 0; i < group.size(); ++i) calibrate_layer(*group[i], seen.operands[i], options_);
}

std::vector<std::vector<Tensor>> Ptq::logit_gradients(const std::vector<Tensor>& logits) {
  return probe_gradients(logits, options_, warn_);
}

}  // namespace bcq
