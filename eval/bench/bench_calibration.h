// Time and memory of whole calibrations, as `bench` prints them.
#pragma once
#include <filesystem>

#include "engine/file/json.h"
#include "eval/bench/bench_models.h"

namespace bcq {

// PTQ4ViT of `vit`, W8A8, on 32 images, and GPTQ at 3 bits with bias compensation per channel of OPT-125M's blocks,
// written to `folder`, on 128 windows of 2048 tokens: minutes each, so they run once. Prints a table and appends those
// rows that are wanted to `records`. Leaves `vit` as it was.
void bench_calibration(const std::filesystem::path& folder, Model& vit, const Wanted& wanted, json& records);

}  // namespace bcq
