// How many bits each weight of a model gets, where it is not the same for all.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "models/model.h"

namespace bcq {

struct LayerRule {
  std::string pattern;  // regular expression, looked for anywhere in a layer's name
  int bits;             // 2..8; 0: the layer stays float
};

// --layer-bits REGEX=K, and --exclude REGEX, which overrides it. UsageError when K is not 2..8.
std::vector<LayerRule> layer_rules(const std::vector<std::string>& layer_bits, const std::vector<std::string>& exclude);

using LayerBits = std::map<const Layer*, int>;
// The linear layers of the blocks that a rule fits, with the bits of the last one that does. UsageError for a
// pattern that is no regular expression or fits no layer.
LayerBits allocate_bits(Model& model, const std::vector<LayerRule>& rules);

// The bits of a layer; without an entry those of the others.
int bits_of(const Layer& layer, const LayerBits& bits, int others);
// Whether a layer has a weight that these bits quantize; without an entry it does.
bool is_to_quantize(const Layer& layer, const LayerBits& bits);

}  // namespace bcq
