// What `bench` measures with: networks of the shapes people have, with random weights, and the limits of the machine.
#pragma once
#include <filesystem>
#include <memory>
#include <random>

#include "engine/core/pattern.h"
#include "engine/file/json_fwd.h"
#include "models/model.h"

namespace bcq {

// Normal, as weights are, whose largest code is a few times the usual one: draws from a table of 65536.
Tensor random_tensor(const Shape& shape, float deviation, std::mt19937& random);

// Written to `folder` and loaded from there.
std::unique_ptr<Model> random_vit(const std::filesystem::path& folder, const char* architecture, int64_t dim);
std::unique_ptr<Model> random_swin_tiny(const std::filesystem::path& folder);
// Blocks of language models beneath a vocabulary of 64 words, in float32 (bits 0) or packed, as --save writes them.
constexpr int64_t kVocabulary = 64, kWindow = 2048;
struct Network {
  const char* name;
  int64_t hidden, layers, heads;
  enum Kind { Opt, Bloom, Llama } kind;
};
constexpr Network kOpt125m = {"OPT-125M", 768, 12, 12, Network::Opt},
                  kBloom560m = {"BLOOM-560M", 1024, 24, 16, Network::Bloom},
                  kLlama1b = {"LLaMA-1B/4", 2048, 4, 32, Network::Llama};  // 4 of the 16 blocks of Llama-3.2-1B
void write_language_model(const Network& net, int bits, int64_t group, const std::filesystem::path& folder);

// A window of 2048 tokens, and single tokens after 128 others, through the blocks of these, in
// float32 and with packed weights as they are loaded from files, which are made in `folder`. The embedding, whose head
// is a product like any other, is left out.
void bench_language(const std::filesystem::path& folder, int repeats, const Pattern& wanted, json& records);

// Multiply-adds per second of all threads together, from registers alone, by the instructions of the kernels in use;
// 0 where the kernels are plain C++, which has no such limit of its own. Some milliseconds each.
double float_peak();
double int8_peak();

// The most memory in use since the last reset, of this process; Linux keeps it. The pages of a float checkpoint, a
// mapped file, are among it.
void reset_peak_memory();
double peak_memory_mb();

}  // namespace bcq
