#include "eval/vision_options.h"

#include <algorithm>

#include "engine/core/check.h"

namespace bcq {
namespace {

// One of several: an enum or a bool whose values are named in their order.
template <class T>
PtqChoice one_of(std::string name, std::vector<std::string> values, T PtqOptions::*member, std::string help) {
  return {name, values, std::move(help),
          [=](PtqOptions& o, const std::string& value) {
            const auto found = std::find(values.begin(), values.end(), value);
            require_usage(found != values.end(), "--%s %s: no such choice", name, value);
            o.*member = static_cast<T>(found - values.begin());
          },
          [=](const PtqOptions& o) { return json(values[static_cast<size_t>(o.*member)]); }};
}

template <class T>
PtqChoice number(std::string name, T PtqOptions::*member, std::string help) {
  return {name,
          {},
          std::move(help),
          [=](PtqOptions& o, const std::string& text) {
            require_usage(CLI::detail::lexical_cast(text, o.*member), "--%s %s: not a number", name, text);
          },
          [=](const PtqOptions& o) { return json(o.*member); }};
}

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// "default hessian; base-ptq, easyquant: cosine"
std::string defaults_of(const PtqChoice& choice) {
  const std::string own = text_of(choice.get(ptq4vit(8, 8)));
  std::map<std::string, std::string> others;  // value: the presets that have it
  for (const auto& [method, preset] :
       {std::pair{"base-ptq", base_ptq(8, 8)}, std::pair{"easyquant", easy_quant(8, 8)}}) {
    const std::string value = text_of(choice.get(preset));
    if (value != own) others[value] += (others[value].empty() ? "" : ", ") + std::string(method);
  }
  std::string text = "default " + own;
  for (const auto& [value, methods] : others) text += "; " + methods + ": " + value;
  return text;
}

}  // namespace

const std::vector<PtqChoice>& ptq_choices() {
  using O = PtqOptions;
  static const std::vector<PtqChoice> choices = {
      one_of("metric", {"hessian", "cosine", "l2"}, &O::metric,
             "Similarity of outputs. base-ptq: cosine as in its configuration; the published test script overrides it "
             "with hessian"),
      one_of(
          "probe", {"fisher", "noise"}, &O::probe,
          "Gradient of the hessian metric: fisher, p - onehot(y) with y drawn from the prediction; noise, of the form "
          "of the published code's, which is the rounding noise of a gradient that is zero"),
      number("probe-draws", &O::draws, "Gradients drawn per image"),
      one_of(
          "softmax-twin", {"official", "clean", "none"}, &O::softmax_twin,
          "Ranges after softmax: official, overlapping as in the code; clean, disjoint as in the paper; none, uniform"),
      one_of("gelu-twin", {"official", "aligned", "none"}, &O::gelu_twin,
             "Steps after GELU: official, searched freely as in the code; aligned, a power of two apart as in the "
             "paper; none, uniform"),
      one_of("conv-intervals", {"layer", "channel"}, &O::channel_conv,
             "Steps of the patch convolution's weight: ptq4vit's code has one per output channel, base-ptq's one"),
      one_of(
          "matmul-intervals", {"layer", "head"}, &O::head_intervals,
          "Steps of the operands of attention products: one per head as in the code, or one per layer as in the text"),
      one_of("pixels", {"float", "quantized"}, &O::quantize_pixels,
             "Input of the first layer: float as in the code, or quantized as in the text"),
      one_of("calibration", {"parallel", "sequential"}, &O::sequential,
             "Inputs while calibrating: of the float network, or of the quantized layers before (easyquant's order)"),
      number("eq-alpha", &O::eq_alpha,
             "Candidates are alpha to beta times the min-max step. ptq4vit's code has 0.01, its README 0"),
      number("eq-beta", &O::eq_beta, "See --eq-alpha; beta itself is left out, as in the code. easyquant's paper: 2"),
      number("eq-n", &O::eq_n, "Number of candidates"),
      number("search-rounds", &O::rounds, "Times both operands of a product are searched in turns"),
  };
  return choices;
}

void add_ptq_options(CLI::App& app, PtqOverrides& overrides, const std::string& group) {
  for (const PtqChoice& choice : ptq_choices()) {
    CLI::Option* option =
        app.add_option_function<std::string>(
               "--" + choice.name, [&overrides, name = choice.name](const std::string& v) { overrides[name] = v; },
               choice.help + " (" + defaults_of(choice) + ")")
            ->group(group);
    if (choice.values.empty())
      option->type_name("N");
    else
      option->check(CLI::IsMember(choice.values));
  }
}

void apply(const PtqOverrides& overrides, PtqOptions& options) {
  for (const auto& [name, value] : overrides) {
    const auto& all = ptq_choices();
    const auto found = std::find_if(all.begin(), all.end(), [&n = name](const PtqChoice& c) { return c.name == n; });
    require_usage(found != all.end(), "--%s: no such option", name);
    found->set(options, value);
  }
}

json to_json(const PtqOptions& options) {
  json record;
  for (const PtqChoice& choice : ptq_choices()) {
    std::string key = choice.name;
    std::replace(key.begin(), key.end(), '-', '_');
    record[key] = choice.get(options);
  }
  return record;
}

}  // namespace bcq
