#include "eval/bench/bench.h"

#include <malloc.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <span>

#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/file/packed_file.h"
#include "engine/file/safetensors.h"
#include "engine/grid/affine.h"
#include "engine/kernels/kernels.h"

namespace bcq {
namespace fs = std::filesystem;

Tensor random_tensor(const Shape& shape, float deviation, std::mt19937& random) {
  static const std::vector<float> kDraws = [] {
    std::mt19937 bits;
    std::normal_distribution<float> normal;
    std::vector<float> draws(1 << 16);
    for (float& x : draws) x = normal(bits);
    return draws;
  }();
  Tensor t = Tensor::uninitialized(shape);
  for (int64_t i = 0; i < t.size(); ++i) t[i] = deviation * kDraws[random() >> 16];
  return t;
}

namespace {

// A layer of a block, its rows and columns in widths of the network; no columns: a norm.
struct LayerShape {
  const char* name;
  int out, in;
};
constexpr LayerShape kVitBlock[] = {{"norm1", 1, 0}, {"attn.qkv", 3, 1}, {"attn.proj", 1, 1},
                                    {"norm2", 1, 0}, {"mlp.fc1", 4, 1},  {"mlp.fc2", 1, 4}};
constexpr LayerShape kOptBlock[] = {{"self_attn.q_proj", 1, 1},
                                    {"self_attn.k_proj", 1, 1},
                                    {"self_attn.v_proj", 1, 1},
                                    {"self_attn.out_proj", 1, 1},
                                    {"self_attn_layer_norm", 1, 0},
                                    {"final_layer_norm", 1, 0},
                                    {"fc1", 4, 1},
                                    {"fc2", 1, 4}};
constexpr LayerShape kBloomBlock[] = {
    {"input_layernorm", 1, 0},      {"post_attention_layernorm", 1, 0}, {"self_attention.query_key_value", 3, 1},
    {"self_attention.dense", 1, 1}, {"mlp.dense_h_to_4h", 4, 1},        {"mlp.dense_4h_to_h", 1, 4}};
// In quarters of the width: a key and value head for four heads.
constexpr LayerShape kLlamaBlock[] = {{"input_layernorm", 4, 0},  {"post_attention_layernorm", 4, 0},
                                      {"self_attn.q_proj", 4, 4}, {"self_attn.k_proj", 1, 4},
                                      {"self_attn.v_proj", 1, 4}, {"self_attn.o_proj", 4, 4},
                                      {"mlp.gate_proj", 16, 4},   {"mlp.up_proj", 16, 4},
                                      {"mlp.down_proj", 4, 16}};

class Checkpoint {
 public:
  void add(const std::string& name, const Shape& shape) {
    tensors_[name] = store(random_tensor(shape, 0.03f, random_), DType::F32, name);
  }
  bool biases = true;

  void norm(const std::string& name, int64_t n) {
    add(name + ".weight", {n});
    if (biases) add(name + ".bias", {n});
  }
  // bits 0: float32; group -1: a whole row.
  void linear(const std::string& name, int64_t out, int64_t in, int bits = 0, int64_t group = -1) {
    if (biases) add(name + ".bias", {out});
    if (bits == 0) return add(name + ".weight", {out, in});
    if (group < 0) group = in;
    const int64_t groups = (in + group - 1) / group;
    Affine grid{bits, group, random_tensor({out, groups}, 0.03f, random_), Tensor({out, groups})};
    std::fill_n(grid.zero.data, grid.zero.size(), static_cast<float>(1 << (bits - 1)));
    std::vector<uint8_t> codes(static_cast<size_t>(out * in));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_() >> (32 - bits));
    for (int64_t i = 0; i < grid.scale.size(); ++i) grid.scale[i] = std::abs(grid.scale[i]) + 1e-3f;
    put_packed(name, PackedWeight(grid, {out, in}, codes), PackedFormat::Kind::Own, tensors_);
  }
  void block(const std::string& name, std::span<const LayerShape> parts, int64_t width, int bits = 0,
             int64_t group = -1) {
    for (const LayerShape& p : parts)
      if (p.in == 0)
        norm(name + "." + p.name, p.out * width);
      else
        linear(name + "." + p.name, p.out * width, p.in * width, bits, group);
  }
  void write(const fs::path& folder, const json& config) const {
    fs::create_directories(folder);
    write_safetensors((folder / "model.safetensors").string(), tensors_);
    write_file((folder / "config.json").string(), config.dump());
  }

 private:
  std::map<std::string, TensorInfo> tensors_;
  std::mt19937 random_{1};
};

}  // namespace

std::unique_ptr<Model> random_vit(const fs::path& folder, const char* architecture, int64_t dim) {
  Checkpoint c;
  c.add("cls_token", {1, 1, dim});
  c.add("pos_embed", {1, 197, dim});
  c.add("patch_embed.proj.weight", {dim, 3, 16, 16});
  c.add("patch_embed.proj.bias", {dim});
  for (int i = 0; i < 12; ++i) c.block("blocks." + std::to_string(i), kVitBlock, dim);
  c.norm("norm", dim);
  c.linear("head", 1000, dim);
  c.write(folder, {{"architecture", architecture}, {"num_classes", 1000}});
  return load_model(folder.string());
}

std::unique_ptr<Model> random_swin_tiny(const fs::path& folder) {
  Checkpoint c;
  c.add("patch_embed.proj.weight", {96, 3, 4, 4});
  c.add("patch_embed.proj.bias", {96});
  c.norm("patch_embed.norm", 96);
  const int depths[] = {2, 2, 6, 2};
  for (int s = 0; s < 4; ++s) {
    const int64_t dim = int64_t{96} << s;
    const std::string stage = "layers." + std::to_string(s);
    if (s > 0) c.norm(stage + ".downsample.norm", 2 * dim);
    if (s > 0) c.add(stage + ".downsample.reduction.weight", {dim, 2 * dim});
    for (int j = 0; j < depths[s]; ++j) {
      const std::string block = stage + ".blocks." + std::to_string(j);
      c.block(block, kVitBlock, dim);
      c.add(block + ".attn.relative_position_bias_table", {169, dim / 32});
    }
  }
  c.norm("norm", 768);
  c.linear("head.fc", 1000, 768);
  c.write(folder, {{"architecture", "swin_tiny_patch4_window7_224"}, {"num_classes", 1000}});
  return load_model(folder.string());
}

void write_language_model(const Network& net, int bits, int64_t group, const fs::path& folder) {
  struct Names {
    const char *type, *top, *embedding, *norm, *blocks;
    std::span<const LayerShape> block;
    int64_t parts;  // of the width, that `block` counts in
  };
  constexpr Names kNames[] = {{"opt", "model.decoder.", "embed_tokens", "final_layer_norm", "layers.", kOptBlock, 1},
                              {"bloom", "transformer.", "word_embeddings", "ln_f", "h.", kBloomBlock, 1},
                              {"llama", "model.", "embed_tokens", "norm", "layers.", kLlamaBlock, 4}};
  const Names& names = kNames[net.kind];
  const int64_t D = net.hidden;
  Checkpoint c;
  c.biases = net.kind != Network::Llama;
  const std::string top = names.top;
  c.add(top + names.embedding + ".weight", {kVocabulary, D});
  if (net.kind == Network::Bloom) c.norm(top + "word_embeddings_layernorm", D);
  if (net.kind == Network::Opt) c.add(top + "embed_positions.weight", {kWindow + 2, D});
  c.norm(top + names.norm, D);
  for (int64_t i = 0; i < net.layers; ++i)
    c.block(top + names.blocks + std::to_string(i), names.block, D / names.parts, bits, group);
  json config = {{"model_type", names.type},         {"hidden_size", D},          {"num_hidden_layers", net.layers},
                 {"num_attention_heads", net.heads}, {"vocab_size", kVocabulary}, {"max_position_embeddings", kWindow}};
  if (net.kind == Network::Llama)
    config.update({{"intermediate_size", 4 * D},
                   {"num_key_value_heads", net.heads / 4},
                   {"tie_word_embeddings", true},
                   {"rope_theta", 500000.0}});
  else
    config["ffn_dim"] = 4 * D;
  if (bits > 0)
    config["quantization_config"] = {
        {"quant_method", "bcq"}, {"bits", bits}, {"group_size", group}, {"format_version", 1}};
  c.write(folder, config);
}

// ---- The limits of the machine --------------------------------------------------------------------------------------

namespace {

constexpr int64_t kRounds = 1000000;
constexpr int kChains = 12;  // independent sums: enough for a latency of six and two instructions a cycle

// One core's loop over `one`, the instructions for each sum; in assembly, because compilers copy sums between
// registers. The sums are 0 and stay so.
#define BCQ_LOOP(one)                                                                                                \
  int64_t rounds = kRounds;                                                                                          \
  __asm__ volatile("vzeroall\n1:\n" one("1") one("2") one("3") one("4") one("5") one("6") one("7") one("8") one("9") \
                       one("10") one("11") one("12") "dec %0\njnz 1b\nvzeroupper"                                    \
                   : "+r"(rounds)                                                                                    \
                   :                                                                                                 \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",  \
                     "xmm11", "xmm12", "xmm13", "xmm14")

#define BCQ_ONE(i) "vpdpbusd %%zmm0, %%zmm0, %%zmm" i "\n"
void int8_avx512() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#define BCQ_ONE(i) "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm" i "\n"
void int8_avxvnni() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
// Of codes without outliers (engine/kernels/int8_tile.h): four products of a column in 16 bits, then in 32.
#define BCQ_ONE(i)                                                                                    \
  "vpmaddubsw %%ymm0, %%ymm0, %%ymm13\nvpmaddubsw %%ymm0, %%ymm0, %%ymm14\nvpaddw %%ymm14, %%ymm13, " \
  "%%ymm13\nvpmaddwd %%ymm0, %%ymm13, %%ymm13\nvpaddd %%ymm13, %%ymm" i ", %%ymm" i "\n"
void int8_avx2() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#define BCQ_ONE(i) "vfmadd231ps %%zmm0, %%zmm0, %%zmm" i "\n"
void float_avx512() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#define BCQ_ONE(i) "vfmadd231ps %%ymm0, %%ymm0, %%ymm" i "\n"
void float_avx2() { BCQ_LOOP(BCQ_ONE); }
#undef BCQ_ONE
#undef BCQ_LOOP

// The same of tiles of 16 rows and 64 bytes: four sums of two left and two right operands, three times.
void int8_amx() {
  struct alignas(64) {
    uint8_t palette = 1, reserved[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
#define BCQ_FOUR                     \
  "tdpbusd %%tmm6, %%tmm4, %%tmm0\n" \
  "tdpbusd %%tmm7, %%tmm4, %%tmm1\n" \
  "tdpbusd %%tmm6, %%tmm5, %%tmm2\n" \
  "tdpbusd %%tmm7, %%tmm5, %%tmm3\n"
  int64_t rounds = kRounds;
  __asm__ volatile("ldtilecfg %1\n1:\n" BCQ_FOUR BCQ_FOUR BCQ_FOUR "dec %0\njnz 1b\ntilerelease"
                   : "+r"(rounds)
                   : "m"(config)
                   : "cc");
#undef BCQ_FOUR
}

double rate(void (*loop)(), double per_sum) {
  set_threads(threads());  // that none is left out because of what was before
  const Timer timer;
  parallel_for(threads(), [&](int64_t) { loop(); });
  return static_cast<double>(threads()) * static_cast<double>(kRounds) * kChains * per_sum / timer.seconds();
}

bool runs(const char* isa) { return std::strcmp(kernels().name, isa) == 0; }

}  // namespace

double float_peak() {
  if (runs("avx512") || runs("amx")) return rate(float_avx512, 16);
  return runs("avx2") || runs("avx-vnni") ? rate(float_avx2, 8) : 0;
}
double int8_peak() {
  if (runs("amx")) return rate(int8_amx, 16 * 16 * 64);
  if (runs("avx512")) return rate(int8_avx512, 64);
  if (runs("avx-vnni")) return rate(int8_avxvnni, 32);
  return runs("avx2") ? rate(int8_avx2, 64) : 0;
}

void reset_peak_memory() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << 5;
}

double peak_memory_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  return 0;
}

}  // namespace bcq
