#include "eval/bench/bench_language.h"

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <random>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/file/packed_file.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/attention.h"
#include "models/model.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;
using Tensors = std::map<std::string, TensorInfo>;
constexpr int64_t kWindow = 2048, kBefore = 128, kTokens = 32, kVocabulary = 64;

struct Network {
  const char* name;
  int64_t hidden, layers, heads;
  bool bloom;
};

struct Weights {
  const char* name;
  int bits;  // 0: float32
  int64_t group;
};

constexpr Network kOpt = {"OPT-125M", 768, 12, 12, false};
constexpr Weights kFloat = {"FP32", 0, -1};

// The tensors of one block, which all blocks of the file repeat.
class Checkpoint {
 public:
  explicit Checkpoint(const Weights& weights) : weights_(weights) {}

  void vector(const std::string& name, int64_t n) { add(name, {n}); }
  void norm(const std::string& name, int64_t n) {
    vector(name + ".weight", n);
    vector(name + ".bias", n);
  }
  void linear(const std::string& name, int64_t out, int64_t in) {
    vector(name + ".bias", out);
    if (weights_.bits == 0) return add(name + ".weight", {out, in});
    const int64_t group = weights_.group < 0 ? in : weights_.group, groups = (in + group - 1) / group;
    Affine grid{weights_.bits, group, random_tensor({out, groups}, 0.05f, random_), Tensor({out, groups})};
    std::fill_n(grid.zero.data, grid.zero.size(), static_cast<float>(1 << (weights_.bits - 1)));
    std::vector<uint8_t> codes(static_cast<size_t>(out * in));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_() >> (32 - weights_.bits));
    for (int64_t i = 0; i < grid.scale.size(); ++i) grid.scale[i] = std::abs(grid.scale[i]) + 1e-3f;
    put_packed(name, PackedWeight(grid, {out, in}, codes), PackedFormat::Kind::Own, tensors_);
  }
  void add(const std::string& name, const Shape& shape) {
    tensors_[name] = store(random_tensor(shape, 0.05f, random_), DType::F32, name);
  }
  const Tensors& tensors() const { return tensors_; }

 private:
  Weights weights_;
  Tensors tensors_;
  std::mt19937 random_{1};
};

// A folder as --save writes it.
void write_model(const Network& net, const Weights& weights, const fs::path& folder) {
  const int64_t D = net.hidden;
  Checkpoint rest(weights), block(weights);
  const std::string top = net.bloom ? "transformer." : "model.decoder.";
  if (net.bloom) {
    rest.add(top + "word_embeddings.weight", {kVocabulary, D});
    rest.norm(top + "word_embeddings_layernorm", D);
    rest.norm(top + "ln_f", D);
    block.norm("input_layernorm", D);
    block.norm("post_attention_layernorm", D);
    block.linear("self_attention.query_key_value", 3 * D, D);
    block.linear("self_attention.dense", D, D);
    block.linear("mlp.dense_h_to_4h", 4 * D, D);
    block.linear("mlp.dense_4h_to_h", D, 4 * D);
  } else {
    rest.add(top + "embed_tokens.weight", {kVocabulary, D});
    rest.add(top + "embed_positions.weight", {kWindow + 2, D});
    rest.norm(top + "final_layer_norm", D);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"})
      block.linear("self_attn." + std::string(name), D, D);
    block.norm("self_attn_layer_norm", D);
    block.norm("final_layer_norm", D);
    block.linear("fc1", 4 * D, D);
    block.linear("fc2", D, 4 * D);
  }
  Tensors all = rest.tensors();
  for (int64_t i = 0; i < net.layers; ++i)
    for (const auto& [name, t] : block.tensors())
      all[top + (net.bloom ? "h." : "layers.") + std::to_string(i) + "." + name] = t;
  json config = {{"model_type", net.bloom ? "bloom" : "opt"}, {"hidden_size", D}, {"num_hidden_layers", net.layers},
                 {"num_attention_heads", net.heads},          {"ffn_dim", 4 * D}, {"vocab_size", kVocabulary},
                 {"max_position_embeddings", kWindow}};
  if (weights.bits > 0)
    config["quantization_config"] = {
        {"quant_method", "bcq"}, {"bits", weights.bits}, {"group_size", weights.group}, {"format_version", 1}};
  fs::create_directories(folder);
  write_safetensors((folder / "model.safetensors").string(), all);
  write_file((folder / "config.json").string(), config.dump());
}

// What the process holds now, in bytes.
double resident() {
  std::ifstream statm("/proc/self/statm");
  double size = 0, pages = 0;
  statm >> size >> pages;
  return pages * 4096;
}

// Bytes a second that all threads together read of memory that no cache holds.
double read_bandwidth() {
  const Tensor x = Tensor({1 << 27});  // 512 MB
  constexpr int64_t kPart = 1 << 18, kRow = 4096;
  std::vector<float> sums(static_cast<size_t>(x.size() / kPart));
  const double seconds = median_seconds(5, [&] {
    parallel_for(x.size() / kPart, [&](int64_t i) {
      for (int64_t at = i * kPart; at < (i + 1) * kPart; at += kRow)
        sums[static_cast<size_t>(i)] += kernels().dot_float(x.data + at, x.data + at, kRow);
    });
  });
  return static_cast<double>(x.size()) * 4 / seconds;
}

Batch tokens(int64_t n) {
  Batch batch;
  batch.windows = 1;
  batch.length = n;
  for (int64_t i = 0; i < n; ++i) batch.ids.push_back(static_cast<int32_t>(i % kVocabulary));
  return batch;
}

void blocks(const Model& model, const Context& ctx, const Batch& batch) {
  Tensor x = model.embed(ctx, batch);
  for (int i = 0; i < model.depth(); ++i) x = model.block(ctx, i, x);
}

struct Speed {
  double window, window16, token;  // seconds; of windows whose activations have 16 bits
  double memory;                   // bytes that loading and a token without others made resident
};

Speed measure(const fs::path& folder, int repeats) {
  Speed speed;
  malloc_trim(0);  // or the model would be loaded into what writing it left behind, and seem to take nothing
  const double before = resident();
  const auto model = load_model(folder.string());
  Context ctx;
  ctx.precision = model->info().packed ? Precision::Fake : Precision::Float;
  blocks(*model, ctx, tokens(1));
  speed.memory = resident() - before;
  KvCache cache(kBefore + kTokens);
  ctx.cache = &cache;
  for (; cache.length < kBefore; ++cache.length) blocks(*model, ctx, tokens(1));
  const Batch one = tokens(1);
  speed.token = median_seconds(repeats * 4,
                               [&] {
                                 cache.length = kBefore;
                                 for (int64_t i = 0; i < kTokens; ++i, ++cache.length) blocks(*model, ctx, one);
                               }) /
                kTokens;
  ctx.cache = nullptr;
  const Batch window = tokens(kWindow);
  const auto seconds = [&] { return median_seconds(repeats, [&] { blocks(*model, ctx, window); }); };
  speed.window = seconds();
  ctx.window_bits = 16;
  speed.window16 = seconds();
  return speed;
}

}  // namespace

std::unique_ptr<Model> random_opt_125m(const fs::path& folder) {
  write_model(kOpt, kFloat, folder);
  return load_model(folder.string());
}

void bench_language(const fs::path& folder, int repeats, const Wanted& wanted, json& records) {
  const Weights all[] = {kFloat, {"4 bit", 4, -1}, {"3 bit", 3, -1}, {"2 bit", 2, -1}, {"2 bit g64", 2, 64}};
  const double bandwidth = read_bandwidth();
  print(
      "\nBlocks of language models, random weights; %d tokens at once, and one after %d others. Memory is "
      "read at %.1f GB/s.\n\n",
      kWindow, kBefore, bandwidth / 1e9);
  print("| blocks                | prefill  | over | 16-bit  | token  | over  | weights | of    | file   | memory |\n");
  print("|                       | tokens/s | FP32 | prefill | ms     | FP32  | GB/s    | reads | MB     | / file |\n");
  print("|-----------------------|----------|------|---------|--------|-------|---------|-------|--------|--------|\n");
  for (const Network& net : {kOpt, Network{"BLOOM-560M", 1024, 24, 16, true}}) {
    Speed base{NAN, NAN, NAN, NAN};  // ratios to what was not run are null
    for (const Weights& weights : all) {
      const std::string work = format("%s blocks, %s", net.name, weights.name);
      if (!wanted(work)) continue;
      const fs::path at = folder / "language";
      write_model(net, weights, at);
      const auto file = static_cast<double>(fs::file_size(at / "model.safetensors"));
      const Speed speed = measure(at, repeats);
      fs::remove_all(at);
      if (weights.bits == 0) base = speed;
      const double rate = file / speed.token;
      print("| %-10s %-10s | %8.1f | %4.2f | %7.2f | %6.3f | %5.2f | %7.1f | %5.2f | %6.1f | %6.2f |\n", net.name,
            weights.name, kWindow / speed.window, base.window / speed.window, base.window / speed.window16,
            1e3 * speed.token, base.token / speed.token, rate / 1e9, rate / bandwidth, file / 1e6, speed.memory / file);
      std::fflush(stdout);
      records.push_back({{"work", work},
                         {"prefill_tokens_per_second", kWindow / speed.window},
                         {"prefill_over_fp32", base.window / speed.window},
                         {"prefill_16_bit_over_fp32", base.window / speed.window16},
                         {"token_ms", 1e3 * speed.token},
                         {"token_over_fp32", base.token / speed.token},
                         {"read_bytes_per_second", bandwidth},
                         {"share_of_read_bandwidth", rate / bandwidth},
                         {"file_bytes", file},
                         {"memory_bytes", speed.memory}});
    }
  }
}

}  // namespace bcq
