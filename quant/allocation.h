// How many bits each weight of a model gets, where it is not the same for all.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "models/model.h"

namespace bcq {

using LayerBits = std::map<const Layer*, int>;
// The linear layers of the blocks whose names fit a rule: of layer_bits, REGEX=K with 2 to 8 bits, those of the last
// one that does; of `exclude`, REGEX, which overrides it, 0 bits: they stay float. Expressions are looked for anywhere
// in a name. UsageError for another K, and for one that is no regular expression or fits no layer.
LayerBits allocate_bits(Model& model, const std::vector<std::string>& layer_bits,
                        const std::vector<std::string>& exclude);

// The bits of a layer; without an entry those of the others.
int bits_of(const Layer& layer, const LayerBits& bits, int others);
// Whether a layer has a weight that these bits quantize; without an entry it does.
bool is_to_quantize(const Layer& layer, const LayerBits& bits);

}  // namespace bcq
