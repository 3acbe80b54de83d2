// Speed of language models, in float and packed, as `bench` prints it.
#pragma once
#include <filesystem>
#include <memory>

#include "engine/file/json.h"
#include "eval/bench/bench_models.h"

namespace bcq {

// OPT-125M's blocks in float32 beneath a vocabulary of 64 words, written to `folder` and loaded from there.
std::unique_ptr<Model> random_opt_125m(const std::filesystem::path& folder);

// Blocks of OPT-125M and BLOOM-560M with random weights: a window of 2048 tokens, and single tokens after 128 others,
// in float32 and with packed weights as they are loaded from files, which are made in `folder`. Prints a table and
// appends those rows that are wanted to `records`. The embedding, whose head is a product like any other, is left out:
// it has one token.
void bench_language(const std::filesystem::path& folder, int repeats, const Wanted& wanted, json& records);

}  // namespace bcq
