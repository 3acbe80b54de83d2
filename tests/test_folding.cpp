// Methods that fold scales into the float network before weights are rounded: AWQ, SmoothQuant and their kind.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "engine/nn/ops.h"
#include "eval/save.h"
#include "quant/awq.h"
#include "quant/bias_comp.h"
#include "quant/dfq.h"
#include "quant/os_plus.h"
#include "quant/passes.h"
#include "quant/smoothquant.h"
#include "tests/golden.h"
#include "tests/gptq_inputs.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const Context kFake{Precision::Fake};

// One pre-norm block of OPT, 64 wide, whose input of 2 windows of 12 tokens is v(1..): each token has its own.
struct GoldenBlock {
  GoldenBlock() {
    config = {{"model_type", "opt"}, {"hidden_size", 64}, {"num_hidden_layers", 1},       {"num_attention_heads", 2},
              {"ffn_dim", 64},       {"vocab_size", 24},  {"max_position_embeddings", 12}};
    std::map<std::string, Tensor> tensors = {{"embed_tokens.weight", golden(1, {24, 64})},
                                             {"embed_positions.weight", Tensor({14, 64})},
                                             {"final_layer_norm.weight", golden(1, {64})},
                                             {"final_layer_norm.bias", golden(1, {64})}};
    int64_t n = 0;
    for (const char* name :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"}) {
      const std::string at = std::string("layers.0.") + name;
      tensors[at + ".bias"] = golden(70001 + 97 * n++, {64}, .1f);
      tensors[at + ".weight"] = golden(10007 * n, {64, 64}, .3f);
    }
    const std::string norm1 = "layers.0.self_attn_layer_norm.", norm2 = "layers.0.final_layer_norm.";
    tensors[norm1 + "weight"] = golden(80001, {64}, .9f, 1);
    tensors[norm1 + "weight"][5] = 6;
    tensors[norm1 + "bias"] = golden(81001, {64}, .3f);
    tensors[norm2 + "weight"] = golden(82001, {64}, .9f, 1);
    tensors[norm2 + "bias"] = golden(83001, {64}, .3f);
    write_text(folder.file("config.json"), config.dump());
    std::map<std::string, Tensor> named;
    for (const auto& [name, tensor] : tensors) named["model.decoder." + name] = tensor;
    write_raw(folder.file("model.safetensors"), named);
    model = load_model(folder.path);
    batch.windows = 2;
    batch.length = 12;
    for (int32_t i = 0; i < 24; ++i) batch.ids.push_back(i);
    x = model->embed(kFloat, batch);
  }
  Layer& layer(const std::string& name) {
    for (Layer* layer : model->layers(0))
      if (layer->name == "layers.0." + name) return *layer;
    throw Error(name);
  }
  // Inputs of the float network, of which every third token.
  Tensor thinned(Layer& of) {
    const Group group = {&of};
    Pass pass({&group, 1}, false);
    model->block({Precision::Float, nullptr, &pass}, 0, x);
    Tensor every = Tensor::uninitialized({1, 8, 64});
    for (int64_t t = 0; t < 8; ++t) std::copy_n(pass.inputs[0].data + 3 * t * 64, 64, every.data + t * 64);
    return every;
  }

  json config;
  Folder folder;
  std::unique_ptr<Model> model;
  Batch batch;
  Tensor x;
};

WeightGrid grid_of(int bits, int64_t groupsize) {
  WeightGrid grid;
  grid.bits = bits;
  grid.groupsize = groupsize;
  return grid;
}

double mean_square(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return sum / static_cast<double>(a.size());
}

// What mean errors of the channels leave of it.
double mean_square_centred(const Tensor& a, const Tensor& b) {
  const int64_t n = a.dim(-1);
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    double mean = 0;
    for (int64_t i = c; i < a.size(); i += n)
      mean += (static_cast<double>(a[i]) - b[i]) / static_cast<double>(a.rows());
    sum += mean * mean;
  }
  return mean_square(a, b) - sum / static_cast<double>(n);
}

// Column c of the weight is this many times what it was.
float column_scale(const Tensor& folded, const Tensor& before, int64_t c) { return folded[c] / before[c]; }

}  // namespace

// The published searches agree with these figures to 5e-7, but for clips at 4 and 3 bits: a clipped group lies
// symmetrically about 0, where the zero point is a tie that the last bit decides, and so some clips differ.
TEST_CASE("AWQ: scales, clips and errors of the golden block") {
  struct Case {
    int bits;
    std::vector<double> ratios, clips, errors, scales, fc2;
  };
  for (const Case& c : {Case{4,
                             {.55, .45, .30, .10},
                             {.407783, .275761, .321052, .32313},
                             {.134728, .092980, .083428},
                             {.96749, .8998, 1.462236, .779609, .767572, 2.754447},
                             {.24227, .13844, -.13844, .03461, .03461, -.17305, .03461, .06922}},
                        Case{3,
                             {.15, .35, .30, .05},
                             {.240204, .212229, .224847, .23705},
                             {.783874, .372073, .329916},
                             {.991027, .971615, 1.109187, .934355, .930398, 1.318285},
                             {.1972, .131467, -.131467, .065733, 0, -.1972, .065733, .065733}},
                        Case{2,
                             {.10, .20, .40, .45},
                             {.25767, .19894, .254698, .190656},
                             {2.685940, 1.605124, 1.460314},
                             {.994009, .980986, 1.071527, .955743, .953043, 1.202282},
                             {.547102, .273551, -.273551, 0, 0, -.273551, 0, 0}}}) {
    CAPTURE(c.bits);
    const bool has_ties = c.bits > 2;
    GoldenBlock block;
    Model& model = *block.model;
    const WeightGrid grid = grid_of(c.bits, 16);
    const Tensor want = model.block(kFloat, 0, block.x), q_before = block.layer("self_attn.q_proj").weight.values();
    std::map<std::string, std::vector<double>> means;
    for (const char* name : {"self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"}) {
      const Group group = {&block.layer(name)};
      Pass pass({&group, 1}, false);
      model.block({Precision::Float, nullptr, &pass}, 0, block.x);
      Moments moments(64);
      moments.add(pass.inputs[0]);
      means[name] = moments.mean_abs();
    }
    std::map<std::string, Tensor> before;
    for (Layer* layer : model.layers(0)) before[layer->name] = layer->weight.values();
    quantize_rtn(model, grid);
    CHECK(std::abs(mean_square(model.block(kFake, 0, block.x), want) - c.errors[0]) < 2e-6);
    model.clear();

    AwqScales scales({grid});
    calibrate(model, {block.batch}, {&scales});
    CHECK(relative_error(model.block(kFloat, 0, block.x), want) < kTight);
    const Tensor q = block.layer("self_attn.q_proj").weight.values();
    for (int64_t k = 0; k < 6; ++k)
      CHECK(std::abs(column_scale(q, q_before, k) - c.scales[static_cast<size_t>(k)]) < 3e-6);
    // All ratios, by a column whose scale the rows' own do not change: column 3 over column 9.
    size_t n = 0;
    for (const auto& entry : means) {
      const std::string& name = entry.first;
      const std::vector<double>& mean = entry.second;
      const size_t of = name == "self_attn.q_proj" ? 0 : name == "self_attn.out_proj" ? 1 : name == "fc1" ? 2 : 3;
      const Tensor w = block.layer(name).weight.values(), &was = before.at("layers.0." + name);
      const std::vector<float> s = awq_scales(mean, c.ratios[of]);
      CAPTURE(name);
      CHECK(std::abs(column_scale(w, was, 3) / column_scale(w, was, 9) / (s[3] / s[9]) - 1) < 1e-5);
      n += 1;
    }
    CHECK(n == 4);

    std::vector<double> clips;
    for (const char* name : {"self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"}) {
      Layer& layer = block.layer(name);
      const Tensor largest = clip_search(layer.weight.values(), hessian_of(block.thinned(layer)), grid);
      if (layer.role == Role::Value && !has_ties) CHECK(begins_with(largest, c.clips));
      const QuantizedWeight rounded = round_to_nearest(clipped(layer.weight.values(), largest, 16), grid);
      if (layer.role == Role::Fc2 && !has_ties) CHECK(begins_with(rounded.values, c.fc2, 1e-5));
      layer.quantize(PackedWeight(rounded.grid, rounded.values.shape, rounded.codes));
    }
    for (const char* name : {"self_attn.q_proj", "self_attn.k_proj"}) {
      const QuantizedWeight rounded = round_to_nearest(block.layer(name).weight.values(), grid);
      block.layer(name).quantize(PackedWeight(rounded.grid, rounded.values.shape, rounded.codes));
    }
    const Tensor y = model.block(kFake, 0, block.x);
    const double within = has_ties ? 6e-3 : 3e-6;
    CHECK(std::abs(mean_square(y, want) - c.errors[1]) < within * c.errors[1]);
    CHECK(std::abs(mean_square_centred(y, want) - c.errors[2]) < within * c.errors[2]);
  }
}

TEST_CASE("SmoothQuant: scales and errors of the golden layer") {
  Tensor x = golden(1, {12, 8}), w = golden(2001, {6, 8});
  const float by[] = {1, 1, 1, 12, 1, 1, .5f, 1}, plus[] = {0, 0, 0, 3, 0, -9, 0, 0};
  std::vector<float> largest(8);
  for (int64_t i = 0; i < x.size(); ++i) {
    x[i] = x[i] * by[i % 8] + plus[i % 8];
    largest[static_cast<size_t>(i % 8)] = std::max(largest[static_cast<size_t>(i % 8)], std::abs(x[i]));
  }
  const auto scales = [&](double alpha) {
    const std::vector<float> s = smoothing_scales(largest, {w}, alpha);
    return Tensor({8}, s);
  };
  CHECK(begins_with(scales(.5), {1.067744, .907517, 1.083421, 4.422015, 1.249872, 3.603572, .789196, 1.12083}));
  CHECK(begins_with(scales(.75), {.964456, .864535, .985774, 8.001015, 1.065791, 5.979729, .60405, .973417}));
  // Two layers that read one input count as one of all their rows.
  const Tensor top = w.slice(0, 2), rest = w.slice(2, 6);
  CHECK(smoothing_scales(largest, {top, rest}, .5) == smoothing_scales(largest, {w}, .5));
}

TEST_CASE("OS+: shifts, thresholds, scales and losses of the golden layer") {
  Tensor x = golden(1, {12, 8});
  const Tensor w = golden(2001, {6, 8});
  const float by[] = {1, 1, 1, 12, 1, 1, .5f, 1}, plus[] = {0, 0, 0, 3, 0, -9, 0, 0};
  std::vector<float> least(8, 1e9f), largest(8, -1e9f);
  for (int64_t i = 0; i < x.size(); ++i) {
    const auto c = static_cast<size_t>(i % 8);
    x[i] = x[i] * by[c] + plus[c];
    least[c] = std::min(least[c], x[i]), largest[c] = std::max(largest[c], x[i]);
  }
  const Centred channels = centre(least, largest);
  CHECK(begins_with(Tensor({8}, channels.shift),
                    {.03667, .305253, -.296333, 3.475718, .010902, -8.974232, -.040139, .104063}));
  struct Case {
    int bits, step;
    double t, loss, scale;
  };
  for (const Case& c : {Case{6, 90, 2.000099, .018362, 5.500223}, Case{4, 86, 2.400139, .298759, 4.583481}}) {
    CAPTURE(c.bits);
    const Tensor y = linear(nullptr, x, w, {});
    const Threshold best = search_threshold(channels.half, [&](float t, const std::vector<float>& scales) {
      const Tensor q = rounded_scaled(w, scales, {c.bits});
      const Tensor own = linear(nullptr, round_within(x, channels.shift, scales, t, c.bits), q, {});
      double sum = 0;  // the golden program's outputs have no shift: it cancels
      Tensor shift({1, 8}, channels.shift);
      const Tensor moved = linear(nullptr, shift, w, {}), rounded_moved = linear(nullptr, shift, q, {});
      for (int64_t i = 0; i < y.size(); ++i) {
        const double e = own[i] - rounded_moved[i % 6] - (y[i] - moved[i % 6]);
        sum += e * e;
      }
      return sum / 12;
    });
    CHECK(best.step == c.step);
    CHECK(best.t == doctest::Approx(c.t).epsilon(1e-6));
    CHECK(best.loss == doctest::Approx(c.loss).epsilon(2e-5));
    CHECK(best.scales[3] == doctest::Approx(c.scale).epsilon(1e-6));
    CHECK(std::count(best.scales.begin(), best.scales.end(), 1.f) == 7);
  }
}

TEST_CASE("OS+: channels behind norms are centred, those beyond the threshold end at it, and the network stays") {
  GoldenBlock block;
  const Tensor before = block.model->forward(kFloat, block.batch);
  const auto ends = [&](const char* name) {  // least and largest of each channel
    const Group group = {&block.layer(name)};
    Pass pass({&group, 1}, false);
    block.model->block({Precision::Float, nullptr, &pass}, 0, block.x);
    std::vector<std::pair<float, float>> of(64, {1e9f, -1e9f});
    for (int64_t i = 0; i < pass.inputs[0].size(); ++i) {
      auto& [lo, hi] = of[static_cast<size_t>(i % 64)];
      lo = std::min(lo, pass.inputs[0][i]), hi = std::max(hi, pass.inputs[0][i]);
    }
    return of;
  };
  const auto fed = ends("self_attn.q_proj");
  OutlierSuppression method(grid_of(8, -1), 6, {});
  calibrate(*block.model, {block.batch}, {&method});
  CHECK(relative_error(block.model->forward(kFloat, block.batch), before) < 1e-5);
  float widest = 0, limit = 0;
  for (const auto& [lo, hi] : fed) widest = std::max(widest, (hi - lo) / 2);
  for (const char* name : {"self_attn.q_proj", "fc1"})
    for (const auto& [lo, hi] : ends(name)) CHECK(std::abs(lo + hi) < 2e-5 * widest);
  const auto folded = ends("self_attn.q_proj");
  for (const auto& [lo, hi] : folded) limit = std::max(limit, hi);
  CHECK(limit < 0.9f * widest);  // channel 5, six times as wide as others, is scaled
  for (size_t c = 0; c < 64; ++c) {
    const float half = (fed[c].second - fed[c].first) / 2;
    CHECK(folded[c].second == doctest::Approx(std::min(half, limit)).epsilon(1e-4));
  }
  for (const Layer* layer : block.model->all_layers()) CHECK_FALSE(layer->is_quantized());
}

TEST_CASE("DFQ: scales, ranges and mean of ReLU of the golden pair") {
  Tensor w1 = golden(1, {6, 4}), w2 = golden(201, {3, 6});
  const float by[] = {1, 4, .2f, 1, 9, .5f};
  for (int64_t i = 0; i < w1.size(); ++i) w1[i] *= by[i / 4];
  const std::vector<float> scales = equalizing_scales(w1, w2);
  Tensor inverse({6});
  for (int64_t i = 0; i < 6; ++i) inverse[i] = 1 / scales[static_cast<size_t>(i)];
  CHECK(begins_with(inverse, {.844049, .202999, 1.719659, .909637, .310368, 1.459421}));
  for (int64_t i = 0; i < w1.size(); ++i) w1[i] *= inverse[i / 4];
  for (int64_t i = 0; i < w2.size(); ++i) w2[i] /= inverse[i % 6];
  for (const float s : equalizing_scales(w1, w2)) CHECK(std::abs(s - 1) < 1e-6);  // ranges are equal afterwards
  CHECK(equalizing_scales(Tensor({2, 2}), Tensor({2, 2})) == std::vector<float>{1, 1});

  const Tensor beta = golden(601, {6}, 1, 1), gamma = golden(501, {6});
  Tensor mean({6});
  for (int64_t i = 0; i < 6; ++i) mean[i] = static_cast<float>(relu_mean(beta[i], std::abs(gamma[i]) + .2));
  CHECK(begins_with(mean, {.411272, 1.535131, .454261, .332836, 1.402733, .474741}));
  CHECK(relu_mean(-3, 0) == 0);
  CHECK(relu_mean(3, 0) == 3);
}

TEST_CASE("folding leaves the float network as it is, and clear() undoes it") {
  for (const std::string& fixture : {kOpt, kOptPost, kOptPlain, kBloom, kBloomResidual}) {
    const auto model = load_model(fixture);
    const Batch batch = ids_of(fixture);
    const Tensor want = model->forward(kFloat, batch);
    AwqOptions awq{grid_of(3, -1)}, corrected = awq;
    corrected.official_bloom = false;
    AwqScales scales(awq), scales_corrected(corrected);
    Smoothing smoothing(.5);
    Equalization equalization;
    const std::initializer_list<Method*> methods = {&scales, &scales_corrected, &smoothing, &equalization};
    for (Method* method : methods) {
      CAPTURE(fixture);
      CAPTURE(method - *methods.begin());
      calibrate(*model, {batch}, {method});
      CHECK(relative_error(model->forward(kFloat, batch), want) < kTight);
      CHECK(same_bits(model->forward(kFloat, batch), model->forward(kFake, batch)));
      // Norms behind which the residual branches off, and those without parameters, take nothing.
      const bool norms = fixture == kOpt || fixture == kBloom, equalizes = method == &equalization;
      CHECK(model->is_folded() ==
            (norms || equalizes || (method != &smoothing && fixture != kBloomResidual) || method == &scales_corrected));
      model->clear();
      CHECK(same_bits(model->forward(kFloat, batch), want));
    }
  }
  CHECK_THROWS_AS(AwqScales({}).begin(*load_model(kVit)), UsageError);
}

TEST_CASE("a folded model is compensated against the folded float network, saved and loaded") {
  for (const std::string fixture : {"data/mini/opt", "data/mini/bloom", "data/mini/llama"}) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    Batch batch;
    batch.windows = 2;
    batch.length = 8;
    batch.ids = {5, 3, 9, 2, 7, 1, 8, 4, 6, 11, 13, 12, 50, 17, 21, 33};
    WeightGrid grid = grid_of(4, 32);
    grid.half = true;
    AwqScales scales({grid});
    RoundToNearest rounding(grid, {}, {}, clipped_weight);
    calibrate(*model, {batch}, {&scales});
    calibrate(*model, {batch}, {&rounding});
    const Tensor want = model->forward(kFloat, batch), before = model->forward(kFake, batch);
    compensate(*model, {batch}, BcOptions{}, kSilent);
    CHECK(mean_square(model->forward(kFake, batch), want) < mean_square(before, want));
    for (const char* format : {"bcq", "gptq"}) {
      CAPTURE(format);
      const Folder folder;
      save_model(*model, {folder.file("saved"), format, false}, {{"wbits", 4}, {"groupsize", 32}, {"method", "awq"}});
      const auto loaded = load_model(folder.file("saved"));
      const int64_t given = std::string(format) == "gptq" ? added_values(*model) : 0;  // biases there were none of
      CHECK(loaded->info().parameters == model->info().parameters + given);
      CHECK(same_bits(loaded->forward(kFake, batch), model->forward(kFake, batch)));
    }
  }
}

TEST_CASE("AWQ, clips: never worse than none, and of groups of any width") {
  const Tensor x = correlated(2, 40, 20, 5), w = random({6, 20}, 6);
  const std::vector<double> second = hessian_of(x);
  for (const int64_t group : {-1, 8, 20}) {
    const WeightGrid grid = grid_of(2, group);
    const int64_t each = group < 0 ? 20 : group;
    const Tensor largest = clip_search(w, second, grid), narrow = clipped(w, largest, each);
    CHECK(largest.dim(1) == (20 + each - 1) / each);
    // The error of each group alone.
    for (int64_t first = 0; first < 20; first += each) {
      Tensor part = x.clone();
      for (int64_t i = 0; i < part.size(); ++i)
        if (i % 20 < first || i % 20 >= first + each) part[i] = 0;
      CHECK(output_error(part, w, round_to_nearest(narrow, grid).values) <=
            output_error(part, w, round_to_nearest(w, grid).values) * (1 + 1e-6));
    }
  }
}

TEST_CASE("data-free bias correction: what mean inputs make of the error, of norms, values and ReLU") {
  const auto model = load_model("data/mini/opt");
  quantize_rtn(*model, grid_of(3, -1));
  const Part part = model->part(1);
  const int64_t D = 128, F = 512;
  CHECK(correct_biases(*model) == model->depth() * (3 * D + D + F + D));
  // Normal inputs with the norms' parameters, through the float layers.
  const auto normal_inputs = [](const Norm& norm, int64_t samples) {
    std::mt19937 words(7);
    std::normal_distribution<double> normal;
    Tensor x = Tensor::uninitialized({samples, norm.weight.size()});
    for (int64_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>(normal(words) * norm.weight[i % x.dim(1)] + norm.bias.loaded[i % x.dim(1)]);
    return x;
  };
  const auto check = [&](const Layer& layer, const Tensor& inputs, double within) {
    CAPTURE(layer.name);
    const Tensor w = layer.weight.values(), q = layer.weight_in(Precision::Fake).values();
    const Tensor error =
        add(nullptr, linear(nullptr, inputs, w, {}), scale(nullptr, linear(nullptr, inputs, q, {}), -1));
    Tensor want({w.dim(0)});
    for (int64_t i = 0; i < error.size(); ++i) want[i % w.dim(0)] += error[i] / static_cast<float>(inputs.rows());
    CHECK(relative_error(add(nullptr, layer.bias.compensated, scale(nullptr, layer.bias.loaded, -1)), want) < within);
  };
  const Norm &first = *part.groups[0].source.norm, &second = *part.groups[2].source.norm;
  const Layer &v = *part.groups[0].layers[2], &fc1 = *part.groups[2].layers[0];
  const Tensor shift = first.bias.loaded.reshaped({1, D});
  check(v, shift, kTight);
  check(*part.groups[1].layers[0], linear(nullptr, shift, v.weight, v.bias.loaded), kTight);
  check(fc1, second.bias.loaded.reshaped({1, D}), kTight);
  const Tensor h = relu(linear(nullptr, normal_inputs(second, 5000), fc1.weight, fc1.bias.loaded));
  check(*part.groups[3].layers[0], h, 0.05);
}
