#include "quant/allocation.h"

#include "engine/core/check.h"
#include "engine/core/pattern.h"

namespace bcq {

LayerBits allocate_bits(Model& model, const std::vector<std::string>& layer_bits,
                        const std::vector<std::string>& exclude) {
  std::vector<std::pair<std::string, int>> rules;
  for (const std::string& rule : layer_bits) {
    const size_t equals = rule.rfind('=');
    const std::string k = equals == std::string::npos ? "" : rule.substr(equals + 1);
    require_usage(k.size() == 1 && k[0] >= '2' && k[0] <= '8' && equals > 0,
                  "--layer-bits %s: not REGEX=K with K of 2 to 8 bits", rule);
    rules.emplace_back(rule.substr(0, equals), k[0] - '0');
  }
  for (const std::string& regex : exclude) rules.emplace_back(regex, 0);
  LayerBits allocated;
  for (const auto& [regex, bits] : rules) {
    const Pattern pattern(regex);
    std::string example;
    bool fits = false;
    for (int i = 0; i < model.depth(); ++i)
      for (const Layer* layer : model.layers(i)) {
        if (!layer->is_linear()) continue;
        example = layer->name;
        if (!pattern.found_in(layer->name)) continue;
        allocated[layer] = bits;
        fits = true;
      }
    require_usage(fits, "\"%s\" fits none of the layers of %s, which have names like %s", regex, model.info().name,
                  example);
  }
  return allocated;
}

int bits_of(const Layer& layer, const LayerBits& bits, int others) {
  const auto own = bits.find(&layer);
  return own == bits.end() ? others : own->second;
}

bool is_to_quantize(const Layer& layer, const LayerBits& bits) {
  return layer.is_linear() && bits_of(layer, bits, 1) > 0;
}

}  // namespace bcq
