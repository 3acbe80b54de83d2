#include "eval/common.h"

#include <sstream>

#include "engine/check.h"

namespace bcq {

double bits_per_weight(Model& model) {
  double bits = 0, weights = 0;
  for (const Site* site : model.all_sites())
    if (site->is_linear()) {
      bits += storage_bits(site->b, site->weight.shape);
      weights += static_cast<double>(site->weight.size());
    }
  return bits / weights;
}

BcOptions bc_options(const std::string& shape, const std::string& sites) {
  require_usage(shape == "channel" || shape == "position", "--bc %s: not none, channel or position", shape.c_str());
  BcOptions options{shape == "channel" ? BcShape::Channel : BcShape::Position, false, false, false, false};
  std::stringstream names(sites);
  for (std::string name; std::getline(names, name, ',');) {
    bool* flag = name == "conv"     ? &options.conv
                 : name == "linear" ? &options.linear
                 : name == "matmul" ? &options.matmul
                 : name == "block"  ? &options.block
                                    : nullptr;
    require_usage(flag != nullptr, "--bc-sites %s: not a list of conv, linear, matmul, block", sites.c_str());
    *flag = true;
  }
  return options;
}

}  // namespace bcq
