// What both halves of the evaluation say of a quantized model.
#pragma once
#include <string>

#include "models/model.h"
#include "quant/bias_comp.h"

namespace bcq {

// Average bits of a quantizable weight, scales and zero points included; 32 for a float model.
double bits_per_weight(Model& model);

const char* op_name(Role role);  // "qkv", "matmul1", "fc2": as the published code calls the product

inline constexpr char kBcSites[] = "conv, linear, matmul, attention, mlp, block, downsample, stage, model";
// --bc channel|position with --bc-sites, a list of the above. UsageError otherwise.
BcOptions bc_options(const std::string& shape, const std::string& sites);

}  // namespace bcq
