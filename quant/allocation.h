// How many bits each weight of a model gets, where it is not the same for all.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "models/model.h"

namespace bcq {

struct SiteRule {
  std::string pattern;  // ECMAScript regular expression, looked for anywhere in a site's name
  int bits;             // 2..8; 0: the site stays float
};

// --layer-bits REGEX=K, and --exclude REGEX, which overrides it. UsageError when K is not 2..8.
std::vector<SiteRule> site_rules(const std::vector<std::string>& layer_bits, const std::vector<std::string>& exclude);

using SiteBits = std::map<const Site*, int>;
// The linear sites of the blocks that a rule fits, with the bits of the last one that does. UsageError for a
// pattern that is no regular expression or fits no site.
SiteBits allocate_bits(Model& model, const std::vector<SiteRule>& rules);

}  // namespace bcq
