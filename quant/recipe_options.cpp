#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "quant/bias_comp.h"
#include "quant/recipe.h"

namespace bcq {
namespace {

constexpr Family kVision = Family::Vision, kLanguage = Family::Language;

using Words = std::vector<std::string>;
std::string braced(const Words& words) {
  std::string text = "{";
  for (const std::string& word : words) text += (text.size() > 1 ? "," : "") + word;
  return text + "}";
}

Words method_names(Family family) {
  Words names;
  for (const MethodRow& row : method_rows())
    if (row.family == family && row.method != MethodName::Stored) names.push_back(row.name);
  return names;
}

// ---- Kinds of values ----------------------------------------------------------------------------------------------

#define OF(member) \
  [](Recipe & r) -> auto& { return r.member; }

constexpr InTable kKeys = InTable::Keys, kDrawn = InTable::Drawn;

template <class Of>
auto value_of(Of of, const Recipe& r) {
  return of(const_cast<Recipe&>(r));
}

// A number from min to max; a whole one where the member is an integer.
template <class Of>
Option number(Option o, Of of, double min, double max, const char* type = "N") {
  o.type = type;
  o.set = [=](Recipe& r, const json& value) -> std::string {
    using T = std::remove_cvref_t<decltype(of(r))>;
    const bool whole = std::is_integral_v<T>;
    const double x = value.is_number() ? value.get<double>() : NAN;
    if (whole ? !value.is_number_integer() : !std::isfinite(x)) return whole ? "not a whole number" : "not a number";
    if (x < min || x > max) return format("it must be %.15g to %.15g", min, max);
    of(r) = value.get<T>();
    return "";
  };
  o.get = [=](const Recipe& r) { return json(value_of(of, r)); };
  return o;
}

template <class Of>
Option flag(Option o, Of of) {
  o.set = [=](Recipe& r, const json& value) -> std::string {
    if (!value.is_boolean()) return "neither true nor false";
    of(r) = value.get<bool>();
    return "";
  };
  o.get = [=](const Recipe& r) { return json(value_of(of, r)); };
  return o;
}

// One of several: an enumeration, a bool or a number counted from 0, whose values are named in their order.
template <class Of>
Option word(Option o, Words words, Of of) {
  o.type = braced(words);
  o.is_text = true;
  o.set = [=](Recipe& r, const json& value) -> std::string {
    const auto found = std::find(words.begin(), words.end(), value.is_string() ? value.get<std::string>() : "");
    if (found == words.end()) return "not one of " + braced(words);
    of(r) = static_cast<std::remove_cvref_t<decltype(of(r))>>(found - words.begin());
    return "";
  };
  o.get = [=](const Recipe& r) { return json(words[static_cast<size_t>(value_of(of, r))]); };
  return o;
}

template <class Of>
Option list(Option o, Of of, const char* type) {
  o.type = type;
  o.is_list = true;
  o.set = [=](Recipe& r, const json& value) -> std::string {
    if (!value.is_array() || !std::all_of(value.begin(), value.end(), [](const json& v) { return v.is_string(); }))
      return "not a list of texts";
    of(r) = value.get<Words>();
    return "";
  };
  o.get = [=](const Recipe& r) { return json(value_of(of, r)); };
  return o;
}

// ---- The table ----------------------------------------------------------------------------------------------------

constexpr double kMany = 1 << 24, kSeeds = 4294967295.0, kInfinity = std::numeric_limits<double>::max();
const char* const kBcForms =
    "none, channel (folded into the biases), position (as the paper's tables), or data-free: DFQ's bias correction, "
    "from the norms' parameters alone";

bool always(const Recipe&) { return true; }
bool searches(const Recipe& r) {
  return r.method == MethodName::BasePtq || r.method == MethodName::EasyQuant || r.method == MethodName::Ptq4Vit ||
         r.method == MethodName::ApqLike || r.method == MethodName::NoisyPtq4vit;
}
bool has_metric(const Recipe& r) { return searches(r) && r.method != MethodName::ApqLike; }
bool fits_apart(const Recipe& r) { return measures_errors(r) && !(joins(r) && in_one_walk(r)); }
bool aims_as_gptaq(const Recipe& r) { return solves(r) && r.target == Target::Gptaq; }
bool is_awq(const Recipe& r) { return r.method == MethodName::Awq; }
bool clips(const Recipe& r) { return is_awq(r) && !r.gptq_rounding; }
bool rounds_to_grids(const Recipe& r) { return quantizes(r) && !is_billm(r); }  // of scales and zero points
bool rounds_inputs(const Recipe& r) { return quantizes(r) && r.abits < 32; }
bool aligns(const Recipe& r) { return calibrates(r) && r.align; }

Option method_option(Family family) {
  Option o{"method", "--method", "What quantizes", always, kQuantization, kKeys, braced(method_names(family))};
  o.is_text = true;
  o.set = [family](Recipe& r, const json& value) -> std::string {
    for (const MethodRow& row : method_rows())
      if (row.family == family && value == row.name) {
        r.method = row.method;
        if (row.defaults) row.defaults(r);
        return "";
      }
    return "not one of " + braced(method_names(family));
  };
  o.get = [](const Recipe& r) { return json(name_of(r)); };
  return o;
}

Option held_out_option() {
  return number(
      {"bc_held_out", "--bc-held-out",
       "Share of the data, at most half, that decides for each output whether its compensation is kept: where "
       "the error falls there, too. The paper's: 0",
       measures_errors, kBc},
      OF(bc_held_out), 0, 0.5, "X");
}

Option bc_sites_option(bool vision) {
  std::string all;
  for (const BcSite& site : kBcSites) all += (all.empty() ? "" : ", ") + std::string(site.name);
  Option o{"bc_sites", "--bc-sites",
           vision
               ? "Outputs to compensate, of " + all +
                     ". The paper's script also compensates model: its code reads --n-align-model the other way round"
               : "Outputs to compensate: linear,block",
           measures_errors, kBc};
  o.type = "LIST";
  o.is_text = true;
  o.set = [](Recipe& r, const json& value) -> std::string {
    if (!value.is_string()) return "not a text";
    for (const std::string& name : split(value.get<std::string>()))
      if (std::none_of(std::begin(kBcSites), std::end(kBcSites), [&](const BcSite& site) { return name == site.name; }))
        return format("%s is not an output that can be compensated", quoted(name));
    r.bc_sites = value.get<std::string>();
    return "";
  };
  o.get = [](const Recipe& r) { return json(r.bc_sites); };
  return o;
}

Option separators_option() {
  const char* help = "Tokens documents begin with, such as 31,32 (none: the tokenizer's, if any)";
  Option o{"calib_separator", "--calib-separator", help, aligns, kQuantization, kDrawn};
  o.type = "IDS";
  o.is_text = true;
  o.set = [](Recipe& r, const json& value) -> std::string {
    if (!value.is_string()) return "not a text of ids with commas between them";
    for (const std::string& id : split(value.get<std::string>()))
      if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != std::string::npos)
        return format("%s is not the id of a token", quoted(id));
    r.separators = value.get<std::string>();
    return "";
  };
  o.get = [](const Recipe& r) { return json(r.separators); };
  return o;
}

std::vector<Option> vision_compensation() {
  return {
      word({"bc", "--bc", kBcForms, always, kBc, kKeys}, {"none", "channel", "position", "data-free"}, OF(bc)),
      bc_sites_option(true),
      word({"bc_stream", "--bc-stream",
            "Inputs of what is compensated: float, those of the float network as in the code; quantized, those it "
            "gets once all before it is quantized and compensated",
            measures_errors, kBc},
           {"float", "quantized"}, OF(bc_stream)),
      held_out_option(),
      number({"bc_images", "--bc-images,--n-bc-samples", "Images to compensate on", fits_apart, kBc, kDrawn},
             OF(bc_images), 1, kMany),
      number({"bc_seed", "--bc-seed", "Seed of their draw", fits_apart, kBc, kDrawn}, OF(bc_seed), 0, kSeeds),
      number({"bc_batch", "--bc-batch",
              "Images averaged first: batches weigh equally as in the code, so a short last one counts for more",
              fits_apart, kBc, kDrawn},
             OF(bc_batch), 1, kMany),
      word({"swin_mask", "--swin-mask",
            "Mask of a Swin's shifted windows while --bc-sites attention is measured: applied; official, not to the "
            "quantized attention, as in the code, which loses it. Evaluation always applies it",
            measures_errors, kBc},
           {"applied", "official"}, OF(official_mask)),
  };
}

std::vector<Option> vision_quantization() {
  return {
      method_option(kVision),
      number({"wbits", "--wbits", "Bits of the weights", quantizes, kQuantization, kKeys}, OF(ptq.wbits), 2, 32, "K"),
      number({"abits", "--abits", "Bits of the activations", quantizes, kQuantization, kKeys}, OF(ptq.abits), 2, 32,
             "K"),
      number({"calib_images", "--calib-images,--nsamples", "Images to calibrate on", calibrates, kQuantization, kDrawn},
             OF(samples), 1, kMany),
      number({"seed", "--seed", "Seed of their draw (NumPy's) and of the probe", calibrates, kQuantization, kDrawn},
             OF(seed), 0, kSeeds),
  };
}

// Of methods that try grids: PTQ4ViT and its kin.
std::vector<Option> vision_search() {
  return {
      word({"metric", "--metric",
            "Similarity of outputs. base-ptq: cosine as in its configuration; the published test script overrides it "
            "with hessian",
            has_metric},
           {"hessian", "cosine", "l2"}, OF(ptq.metric)),
      word({"probe", "--probe",
            "Gradient of the hessian metric: fisher, p - onehot(y) with y drawn from the prediction; noise, of the "
            "form of the published code's, which is the rounding noise of a gradient that is zero",
            searches},
           {"fisher", "noise"}, OF(ptq.probe)),
      number({"probe_draws", "--probe-draws", "Gradients drawn per image", searches}, OF(ptq.draws), 1, kMany),
      word({"softmax_twin", "--softmax-twin",
            "Ranges after softmax: official, overlapping as in the code; clean, disjoint as in the paper; none, "
            "uniform; unsigned, uniform from 0 to the largest, as apq-like has it",
            searches},
           {"official", "clean", "none", "unsigned"}, OF(ptq.softmax_twin)),
      word({"gelu_twin", "--gelu-twin",
            "Steps after GELU: official, searched freely as in the code; aligned, a power of two apart as in the "
            "paper; none, uniform",
            searches},
           {"official", "aligned", "none"}, OF(ptq.gelu_twin)),
      word({"conv_intervals", "--conv-intervals",
            "Steps of the patch convolution's weight: ptq4vit's code has one per output channel, base-ptq's one",
            searches},
           {"layer", "channel"}, OF(ptq.channel_conv)),
      word({"matmul_intervals", "--matmul-intervals",
            "Steps of the operands of attention products: one per head as in the code, or one per layer as in the "
            "text",
            searches},
           {"layer", "head"}, OF(ptq.head_intervals)),
      word({"pixels", "--pixels", "Input of the first layer: float as in the code, or quantized as in the text",
            searches},
           {"float", "quantized"}, OF(ptq.quantize_pixels)),
      word({"calibration", "--calibration",
            "Inputs while calibrating: of the float network, or of the quantized layers before (easyquant's order)",
            has_metric},
           {"parallel", "sequential"}, OF(ptq.sequential)),
      number({"eq_alpha", "--eq-alpha",
              "Candidates are alpha to beta times the min-max step. ptq4vit's code has 0.01, its README 0", searches},
             OF(ptq.eq_alpha), 0, kMany, "X"),
      number({"eq_beta", "--eq-beta", "See --eq-alpha; beta itself is left out, as in the code. easyquant's paper: 2",
              searches},
             OF(ptq.eq_beta), 0, kMany, "X"),
      number({"eq_n", "--eq-n", "Number of candidates", searches}, OF(ptq.eq_n), 1, 1 << 16),
      number({"search_rounds", "--search-rounds", "Times both operands of a product are searched in turns", searches},
             OF(ptq.rounds), 1, 1 << 16),
  };
}

// Of the others, and how what they made is evaluated.
std::vector<Option> vision_methods() {
  return {
      number({"error_share", "--error-share",
              "apq-like: share of a block's output errors, the largest of each image, that count",
              [](const Recipe& r) { return r.method == MethodName::ApqLike; }},
             OF(error_share), 1e-6, 1, "X"),
      number(
          {"coe", "--coe",
           "erq: ten times the ridge of its regressions, on sums over all calibration tokens; its README has 10000 for "
           "32 images, its code 20000",
           [](const Recipe& r) { return r.method == MethodName::Erq; }},
          OF(coe), 1e-3, 1e12, "X"),
      flag({"qwt", "--qwt",
            "A linear layer beside each block, in closed form, that makes up for what is left of its error: D² "
            "products a "
            "token and D² + D values a block",
            quantizes},
           OF(qwt)),
      word({"act_grid", "--act-grid",
            "joint: grids of activations: table, 2^abits levels among 256; uniform, asymmetric behind norms and GELU; "
            "adalog, logarithmic with a base that is searched for softmax and behind GELU",
            joins},
           {"table", "uniform", "adalog"}, OF(act_grid)),
      number({"refine", "--refine", "joint: sweeps of coordinate descent on the codes of weights", joins}, OF(refine),
             1, kMany),
      number(
          {"scale_rounds", "--scale-rounds", "joint: times scales are fitted to codes, and codes refined again", joins},
          OF(scale_rounds), 0, kMany),
      word({"runtime", "--runtime",
            "How the quantized model is evaluated: simulate, in floats rounded to the grids; integer, from 8-bit "
            "codes with exact sums, what stays float or has more than 8 bits excepted",
            quantizes, kEvaluation, kKeys},
           {"simulate", "integer"}, OF(integer)),
  };
}

std::vector<Option> language_weights() {
  return {
      method_option(kLanguage),
      number({"wbits", "--wbits", "Bits of the weights", quantizes, kQuantization, kKeys}, OF(weights.bits), 1, 8, "K"),
      number({"groupsize", "--groupsize", "Columns that share a scale (-1: a whole row)", rounds_to_grids,
              kQuantization, kKeys},
             OF(weights.groupsize), -1, kMany, "G"),
      number({"abits", "--abits", "Bits of the inputs of the quantized layers (32: float)", quantizes, kQuantization,
              kKeys},
             OF(abits), 2, 32, "K"),
      word(
          {"act_scale", "--act-scale",
           "Their scales: token, of each as it comes; tensor, one for all with a zero point, from the calibration data",
           rounds_inputs},
          {"token", "tensor"}, OF(fixed)),
      flag({"sym", "--sym", "Symmetric grids: the zero point is the middle code", rounds_to_grids}, OF(weights.sym)),
      number(
          {"mse", "--mse", "Clip ranges where that lowers the sum of |error|^NORM, 2.4 if not given", rounds_to_grids},
          OF(weights.mse), 0, 100, "[NORM]"),
      word({"scales", "--scales",
            "f32, or f16: rounded to what GPTQ checkpoints store before weights are rounded to them (always with "
            "--format gptq); of billm those of levels, which are saved as f16",
            quantizes},
           {"f32", "f16"}, OF(weights.half)),
      list({"layer_bits", "--layer-bits", "Other bits for layers whose name fits: fc2=8; the last that fits counts",
            quantizes},
           OF(layer_bits), "REGEX=K"),
      list({"exclude", "--exclude", "Layers to leave in float, such as ^layers\\.0\\.", quantizes}, OF(exclude),
           "REGEX"),
  };
}

std::vector<Option> language_folding() {
  return {
      word({"rounding", "--rounding", "awq, smoothquant, os-plus: how weights are rounded once scales are folded",
            [](const Recipe& r) { return folds(r) && row_of(r).calibrates; }},
           {"rtn", "gptq"}, OF(gptq_rounding)),
      number({"alpha", "--alpha", "smoothquant: scales are max |x|^alpha / max |w|^(1 - alpha)",
              [](const Recipe& r) { return r.method == MethodName::SmoothQuant; }},
             OF(alpha), 0, 1, "X"),
      word({"billm_inside", "--billm-inside",
            "billm: errors inside a block: official, as the code has them; solve, exactly for the block as rounded; "
            "sequential, column by column as in GPTQ, on the levels the block has",
            is_billm},
           {"official", "solve", "sequential"}, OF(billm_inside)),
      word({"salience", "--salience", "billm: of weights: hessian, weighted by their inputs, or magnitude", is_billm},
           {"magnitude", "hessian"}, OF(billm_hessian)),
      number({"fold_steps", "--fold-steps", "awq: exponents of the scales that are tried, 0 to 1", is_awq},
             OF(fold_steps), 1, 1 << 10),
      word({"clip", "--clip", "awq: whether ranges are clipped where that lowers the error of a group's products",
            clips},
           {"off", "on"}, OF(clip)),
      word({"awq_bloom", "--awq-bloom",
            "awq, BLOOM: official, blocks are tried on what their norms make, as in the code; corrected, on their own "
            "inputs, and the input of the attention's output projection is scaled, too",
            is_awq},
           {"official", "corrected"}, OF(corrected_bloom)),
  };
}

std::vector<Option> language_solver() {
  return {
      flag({"act_order", "--act-order", "GPTQ: round the columns with the largest inputs first", solves},
           OF(weights.act_order)),
      flag({"static_groups", "--static-groups",
            "GPTQ: scales of groups from the float weights; of neighbouring columns with --act-order too", solves},
           OF(weights.static_groups)),
      number(
          {"percdamp", "--percdamp", "GPTQ, billm: damping of the Hessian, share of its mean diagonal", carries_errors},
          OF(weights.percdamp), 0, kInfinity, "X"),
      word({"hessian", "--hessian",
            "Products of inputs GPTQ and billm look at: raw, or centred for layers whose bias --bc fits afterwards",
            carries_errors},
           {"raw", "centred"}, OF(centred)),
      word({"target", "--target",
            "What GPTQ and billm round: own, the weights; float, weights refitted to give the float network's outputs "
            "from "
            "the inputs they get (with --true-sequential: else each layer of a block makes up for the same errors "
            "again); or gptaq, the weights, and columns still to come make up for what the inputs have drifted, as in "
            "GPTAQ",
            carries_errors},
           {"own", "float", "gptaq"}, OF(target)),
      number({"gptaq_alpha", "--gptaq-alpha", "--target gptaq: share of the drift. The paper has 1, its code 0.25",
              aims_as_gptaq},
             OF(weights.drift_share), 0, 1, "X"),
      number(
          {"refine", "--refine", "GPTQ: sweeps of coordinate descent on its codes, which only lower the error", solves},
          OF(refine), 0, kMany),
      word({"range", "--range",
            "GPTQ: ranges of the grids: minmax, of all weights; weighted, shrunk where that lowers the sum of squared "
            "errors times the Hessian's diagonal, for each row the better of both",
            solves},
           {"minmax", "weighted"}, OF(weights.weighted)),
      number({"scale_rounds", "--scale-rounds",
              "GPTQ: times scales are fitted to the codes in closed form, and the codes refined again", solves},
             OF(scale_rounds), 0, kMany),
      flag({"true_sequential", "--true-sequential",
            "GPTQ, billm: round a block's layers one after the other, each on what those before it make",
            carries_errors},
           OF(sequential)),
  };
}

std::vector<Option> language_data() {
  return {
      number(
          {"seqlen", "--seqlen", "Tokens of a window (0: the model's positions, at most 2048)", always, "Text", kDrawn},
          OF(seqlen), 0, kMany, "L"),
      number({"nsamples", "--nsamples", "Windows to calibrate on", calibrates, kQuantization, kDrawn}, OF(samples), 1,
             kMany),
      number({"seed", "--seed", "Seed of their draw (Python's random)", calibrates, kQuantization, kDrawn}, OF(seed),
             -9007199254740992.0, 9007199254740992.0),
      word({"calib_align", "--calib-align",
            "Where calibration windows begin: none, anywhere as in the official scripts; document, where documents do "
            "(objects of JSON lines, after a blank line, at a token: --calib-separator). For networks that never saw "
            "the middle of one without its beginning",
            calibrates, kQuantization, kDrawn},
           {"none", "document"}, OF(align)),
      separators_option(),
      word({"bc", "--bc", kBcForms, always, kBc, kKeys}, {"none", "channel", "position", "data-free"}, OF(bc)),
      bc_sites_option(false),
      held_out_option(),
      word({"bc_stream", "--bc-stream",
            "What layers are fed while errors are measured: float inputs as in the official scripts, or those of the "
            "quantized network (with gptq: in the same walk)",
            measures_errors, kBc},
           {"float", "quantized"}, OF(bc_stream)),
      number({"prefill_bits", "--prefill-bits",
              "Bits activations are rounded to where windows meet packed weights: 24 keeps what floats keep, 16 is "
              "faster",
              quantizes, kEvaluation},
             OF(prefill_bits), 16, 24, "{24,16}"),
      word({"format", "--format",
            "What --save writes, and the model is measured as: bcq holds everything; gptq, a GPTQ checkpoint for "
            "transformers, GPTQModel and vLLM, has scales and biases of 16 bits",
            rounds_to_grids, "Saving", kKeys},
           {"bcq", "gptq"}, OF(gptq_format)),
  };
}

std::vector<Option> language_options() {
  std::vector<Option> all = language_weights();
  for (const auto& more : {language_folding(), language_solver(), language_data()})
    all.insert(all.end(), more.begin(), more.end());
  for (Option& o : all) {
    if (o.key == "abits")
      o.set = [set = o.set](Recipe& r, const json& value) {
        return value == 32 || (value.is_number_integer() && value <= 8) ? set(r, value) : "it must be 2 to 8, or 32";
      };
    if (o.key == "mse") o.implied = "2.4";
    if (o.key == "prefill_bits")
      o.set = [set = o.set](Recipe& r, const json& value) {
        return value == 16 || value == 24 ? set(r, value) : "not 24 or 16";
      };
    if (o.key == "groupsize")
      o.set = [set = o.set](Recipe& r, const json& value) {
        return value == 0 ? "it must be -1, or at least 1" : set(r, value);
      };
  }
  return all;
}
#undef OF

}  // namespace

const std::vector<Option>& recipe_options(Family family) {
  static const std::vector<Option> language = language_options(), vision = [] {
    std::vector<Option> all = vision_quantization();
    for (const auto& more : {vision_search(), vision_methods(), vision_compensation()})
      all.insert(all.end(), more.begin(), more.end());
    return all;
  }();
  return family == Family::Vision ? vision : language;
}

}  // namespace bcq
