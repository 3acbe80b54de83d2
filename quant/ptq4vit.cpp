#include "quant/ptq4vit.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <random>

#include "engine/core/check.h"
#include "engine/core/timer.h"
#include "engine/grid/twin_gelu.h"
#include "engine/grid/twin_softmax.h"
#include "engine/grid/uniform.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace {

constexpr int64_t kBatch = 8;                       // images that are on one tape
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
    float& unit = top[static_cast<size_t>(i % units)];
    unit = std::max(unit, kernels().max_abs(x.data + i * part, part));
  }
  return {multipliers(options), units, [=](const std::vector<float>& c) {
            Uniform grid{bits, axis, {}};
            for (size_t u = 0; u < c.size(); ++u) grid.delta.push_back(c[u] * first_step(top[u], bits));
            return Grid{grid};
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

Operand left_operand(const Site& site, const SiteData& data, const PtqOptions& o) {
  Operand operand{Side::Left, data.a, {}, false, {}, {}};
  if (o.abits == kFloatBits || (site.role == Role::Patch && !o.quantize_pixels)) return operand;
  if (site.role == Role::AV && o.softmax_twin != SoftmaxTwin::None) {
    operand.candidates = twin_softmax(o.abits, o.softmax_twin == SoftmaxTwin::Official);
    operand.alone = true;
  } else if (site.role == Role::Fc2 && o.gelu_twin != GeluTwin::None) {
    operand.candidates = twin_gelu(data.a, o.abits, o);
  } else if (site.is_linear()) {
    operand.candidates = uniform(data.a, 0, 1, o.abits, o);
  } else {
    operand.candidates = uniform(data.a, 1, o.head_intervals ? data.a.dim(1) : 1, o.abits, o);
  }
  operand.chosen.assign(static_cast<size_t>(operand.candidates.units), 1.f);
  return operand;
}

Operand right_operand(const Site& site, const SiteData& data, const PtqOptions& o) {
  const bool weight = site.is_linear();
  const int bits = weight ? o.wbits : o.abits;
  Operand operand{Side::Right, weight ? site.weight.values() : data.b, {}, false, {}, {}};
  if (bits == kFloatBits) return operand;
  const int64_t units = !weight                                      ? (o.head_intervals ? data.b.dim(1) : 1)
                        : site.role == Role::QKV                     ? 3
                        : site.role == Role::Patch && o.channel_conv ? site.weight.dim(0)
                                                                     : 1;
  operand.candidates = uniform(operand.value, weight ? 0 : 1, units, bits, o);
  operand.chosen.assign(static_cast<size_t>(units), 1.f);
  return operand;
}

void check(const Site& site, const SiteData& data) {
  const char* name = site.name.c_str();
  for (const Tensor* t : {&data.a, &data.y})
    require(!t->empty() && t->size() > 0, "%s: calibration needs operands and outputs", name);
  require(site.is_linear() || !data.b.empty(), "%s: calibration needs both operands", name);
  require(data.g2.empty() || data.g2.size() == data.y.size(), "%s: weights of shape %s for an output of shape %s", name,
          to_string(data.g2.shape), to_string(data.y.shape));
  for (const Tensor* t : {&data.a, &data.b, &data.y})
    require(t->empty() || kernels().all_finite(t->data, t->size()), "%s: its %s are not finite in the float network",
            name, t == &data.y ? "outputs" : "inputs");
}

}  // namespace

PtqOptions ptq4vit(int wbits, int abits) {
  PtqOptions options;
  options.wbits = wbits;
  options.abits = abits;
  return options;
}

PtqOptions base_ptq(int wbits, int abits) {
  PtqOptions options = ptq4vit(wbits, abits);
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

void calibrate_site(Site& site, const SiteData& data, const PtqOptions& options) {
  check(options);
  check(site, data);
  Operand left = left_operand(site, data, options), right = right_operand(site, data, options);
  // A weight comes before its input, the left operand of a product before the right one.
  Operand* order[] = {site.is_linear() ? &right : &left, site.is_linear() ? &left : &right};
  for (int round = 0; round < options.rounds; ++round)
    for (Operand* operand : order) {
      if (!operand->is_searched()) continue;
      const Operand& other = operand == &left ? right : left;
      // A search is a function of the other operand's grid alone: once that stands, so does the result.
      const std::vector<float> given = operand->alone ? std::vector<float>{} : other.chosen;
      if (operand->seen == given) continue;
      operand->seen = given;
      const Grid fixed = operand->alone ? Grid{Identity{}} : other.grid();
      const std::vector<int> best = search(site, data, options.metric, operand->side, fixed, operand->candidates);
      for (size_t u = 0; u < best.size(); ++u)
        operand->chosen[u] = operand->candidates.multipliers[static_cast<size_t>(best[u])];
    }
  site.a = left.grid();
  site.b = right.grid();
  site.weight_hat = site.is_linear() && right.is_searched() ? fake_quantize(site.b, right.value) : Tensor{};
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

// ---- The walk from the head to the embedding ----------------------------------------------------------

// Calibrate one site and note what it took.
void calibrate_timed(Site& site, const SiteData& data, const PtqOptions& options, PtqCost& cost) {
  const Timer watch;
  calibrate_site(site, data, options);
  cost.search[&site] = watch.seconds();
}

// Multiplications of each site, to tell how far the calibration is; finds values that are not finite.
struct Survey : Observer {
  std::map<const Site*, double> products;
  double total = 0;

  void site(const Site& site, const Tensor& a, const Tensor&, const Tensor& y) override {
    for (const Tensor* t : {&a, &y})
      require(kernels().all_finite(t->data, t->size()), "%s: its %s are not finite in the float network", site.name,
              t == &a ? "inputs" : "outputs");
    const double n = static_cast<double>(y.size()) * static_cast<double>(a.dim(-1));
    products[&site] += n;
    total += n;
  }
};

// Copy a batch of `count` images to its place among all; a Swin has several samples (windows) an image.
void put(Tensor& all, const Tensor& batch, int64_t first, int64_t count, int64_t images) {
  const int64_t per_image = batch.dim(0) / count;
  if (all.empty()) {
    Shape shape = batch.shape;
    shape[0] = images * per_image;
    all = Tensor::uninitialized(shape);
  }
  const Tensor place = all.slice(first * per_image, (first + count) * per_image);
  std::memcpy(place.data, batch.data, static_cast<size_t>(batch.size()) * sizeof(float));
}

// Gathers the data of the sites of one part of the model, batch by batch and draw by draw.
class Capture : public Observer {
 public:
  explicit Capture(int64_t images) : images_(images) {}

  // What runs next: `count` images from `first` on; keep_data: the operands and outputs are wanted.
  void start(Tape* tape, int64_t first, int64_t count, bool keep_data) {
    tape_ = tape;
    first_ = first;
    count_ = count;
    keep_data_ = keep_data;
    outputs_.clear();
  }
  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor& y) override {
    if (keep_data_) {
      SiteData& data = sites_[&site].data;
      put(data.a, a, first_, count_, images_);
      if (!site.is_linear()) put(data.b, b, first_, count_, images_);
      put(data.y, y, first_, count_, images_);
    }
    if (tape_) outputs_.emplace_back(&site, y);
  }
  // After backward(): add the squares of this draw's gradients.
  void add_gradients() {
    for (const auto& [site, y] : outputs_) add(sites_[site], tape_->grad(y));
  }
  SiteData take(const Site* site) {
    const auto found = sites_.find(site);
    require(found != sites_.end(), "%s was never run", site->name);
    SiteData data = std::move(found->second.data);
    sites_.erase(found);
    return data;
  }

 private:
  struct Entry {
    SiteData data;
    int exponent = 0;  // g2 is the sum of (G / 2^exponent)²
  };

  // Gradients may be as small as 1e-20. They are scaled by a power of two that follows the largest seen
  // at the site, so that squares stay normal and a change of scale is exact; scores do not see the factor.
  void add(Entry& e, const Tensor& g) {
    const float top = kernels().max_abs(g.data, g.size());
    Tensor& g2 = e.data.g2;
    const bool first = g2.empty();
    if (first) {
      g2 = Tensor(e.data.y.shape);
      e.exponent = FLT_MIN_EXP;
    }
    if (std::isfinite(top) && top > 0 && std::ilogb(top) > e.exponent) {
      const int exponent = std::ilogb(top);
      if (!first) kernels().scale(g2.data, std::ldexp(1.f, 2 * (e.exponent - exponent)), g2.data, g2.size());
      e.exponent = exponent;
    }
    const float down = std::ldexp(1.f, -e.exponent);
    float* into = g2.data + first_ * (g2.size() / images_);
    for (int64_t i = 0; i < g.size(); ++i) into[i] += (g[i] * down) * (g[i] * down);
  }

  int64_t images_;
  Tape* tape_ = nullptr;
  int64_t first_ = 0, count_ = 0;
  bool keep_data_ = true;
  std::vector<std::pair<const Site*, Tensor>> outputs_;
  std::map<const Site*, Entry> sites_;
};

// Part -1: pixels -> [B, N, D].  Part i: block i.  Part depth(): -> logits.
Tensor run_part(const Model& model, const Context& ctx, int i, const Tensor& x) {
  if (i < 0) return model.embed(ctx, Batch{x, {}, 0, 0});
  return i < model.depth() ? model.block(ctx, i, x) : model.head(ctx, x);
}

// Data of the sites of part i from its inputs. `gradients` [draw][batch] are those of its outputs and
// become those of its inputs; without any, g2 stays empty.
Capture capture_part(const Model& model, int i, const std::vector<Tensor>& inputs, int64_t samples,
                     std::vector<std::vector<Tensor>>& gradients) {
  Capture capture(samples);
  int64_t first = 0;
  for (size_t j = 0; j < inputs.size(); ++j) {
    for (size_t draw = 0; draw < std::max<size_t>(1, gradients.size()); ++draw) {
      Tape tape;
      Tape* recording = gradients.empty() ? nullptr : &tape;
      Tensor x = inputs[j];
      if (recording && i >= 0) tape.watch(x);
      capture.start(recording, first, inputs[j].dim(0), draw == 0);
      const Tensor y = run_part(model, {Precision::Float, recording, &capture}, i, x);
      if (!recording) continue;
      tape.backward(y, gradients[draw][j]);
      capture.add_gradients();
      gradients[draw][j] = i >= 0 ? tape.grad(x) : Tensor{};
    }
    first += inputs[j].dim(0);
  }
  return capture;
}

// EasyQuant's order: site after site as the network runs, each on what the sites before it, already
// quantized, make of the images. Its own grids are not chosen yet, so its output is that of its float weight.
void calibrate_in_sequence(Model& model, const Tensor& images, const PtqOptions& options, const Progress& progress,
                           PtqCost& cost) {
  const int64_t samples = images.dim(0);
  std::vector<Tensor> x;
  for (int64_t b = 0; b < samples; b += kBatch) x.push_back(images.slice(b, std::min(samples, b + kBatch)));
  for (int i = -1; i <= model.depth(); ++i) {
    for (Site* site : model.sites(i)) {
      progress("calibration", i + 1, model.depth() + 2);
      Capture capture(samples);
      int64_t first = 0;
      for (const Tensor& batch : x) {
        capture.start(nullptr, first, batch.dim(0), true);
        run_part(model, {Precision::Fake, nullptr, &capture}, i, batch);
        first += batch.dim(0);
      }
      calibrate_timed(*site, capture.take(site), options, cost);
    }
    for (Tensor& batch : x) batch = run_part(model, {Precision::Fake}, i, batch);
  }
  progress("calibration", 1, 1);
}

}  // namespace

PtqCost quantize_ptq(Model& model, const Tensor& images, const PtqOptions& options, const Progress& progress,
                     const Warn& warn) {
  check(options);
  const Timer watch;
  PtqCost cost;
  require_usage(model.info().family == Family::Vision, "%s is not a vision model: these quantizers are for ViTs",
                model.info().name);
  require_usage(images.rank() == 4 && images.dim(0) >= 1, "calibration needs at least one image");
  model.clear();
  const auto report = [&](const std::string& what, double done, double total) {
    if (progress) progress(what, done, total);
  };
  if (options.sequential) {
    calibrate_in_sequence(model, images, options, report, cost);
    cost.total = watch.seconds();
    return cost;
  }
  const int64_t samples = images.dim(0);
  const int depth = model.depth();

  report("running the float network", 0, 1);
  Survey survey;
  std::vector<std::vector<Tensor>> inputs(static_cast<size_t>(depth) + 2);  // of parts -1 ... depth, in batches
  std::vector<Tensor> logits;
  for (int64_t b = 0; b < samples; b += kBatch) {
    Tensor x = images.slice(b, std::min(samples, b + kBatch));
    for (int i = -1; i <= depth; ++i) {
      inputs[static_cast<size_t>(i + 1)].push_back(x);
      x = run_part(model, {Precision::Float, nullptr, &survey}, i, x);
    }
    logits.push_back(x);
  }
  std::vector<std::vector<Tensor>> gradients;
  if (options.metric == Metric::Hessian) gradients = probe_gradients(logits, options, warn);

  double done = 0;
  for (int i = depth; i >= -1; --i) {
    std::vector<Tensor> x = std::move(inputs[static_cast<size_t>(i + 1)]);
    Capture capture = capture_part(model, i, x, samples, gradients);
    for (Site* site : model.sites(i)) {
      report("calibration", done, survey.total);
      calibrate_timed(*site, capture.take(site), options, cost);
      done += survey.products[site];
    }
  }
  report("calibration", survey.total, survey.total);
  cost.total = watch.seconds();
  return cost;
}

}  // namespace bcq
