#include <malloc.h>

#include <cmath>
#include <cstdio>
#include <fstream>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/kernels/kernels.h"
#include "engine/nn/attention.h"
#include "eval/bench/bench.h"

namespace bcq {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kBefore = 128, kTokens = 32;

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
  const double seconds = best_seconds(5, [&] {
    parallel_for(x.size() / kPart, [&](int64_t i) {
      for (int64_t at = i * kPart; at < (i + 1) * kPart; at += kRow)
        sums[static_cast<size_t>(i)] += kernels().dot_float(x.data + at, x.data + at, kRow);
    });
  });
  return static_cast<double>(x.size()) * 4 / seconds;
}

Batch tokens(int64_t n) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(i % kVocabulary));
  return Batch::window(std::move(ids));
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
  speed.token = best_seconds(repeats * 4,
                             [&] {
                               cache.length = kBefore;
                               for (int64_t i = 0; i < kTokens; ++i, ++cache.length) blocks(*model, ctx, one);
                             }) /
                kTokens;
  ctx.cache = nullptr;
  const Batch window = tokens(kWindow);
  const auto seconds = [&] { return best_seconds(repeats, [&] { blocks(*model, ctx, window); }); };
  speed.window = seconds();
  ctx.window_bits = 16;
  speed.window16 = seconds();
  return speed;
}

}  // namespace

void bench_language(const fs::path& folder, int repeats, const Pattern& wanted, json& records) {
  struct Weights {
    const char* name;
    int bits;
    int64_t group;
  };
  const Weights all[] = {{"FP32", 0, -1}, {"4 bit", 4, -1}, {"3 bit", 3, -1}, {"2 bit", 2, -1}, {"2 bit g64", 2, 64}};
  const double bandwidth = read_bandwidth();
  print(
      "\nBlocks of language models, random weights; %d tokens at once, and one after %d others. Memory is "
      "read at %.1f GB/s.\n\n",
      kWindow, kBefore, bandwidth / 1e9);
  print("| blocks                | prefill  | over | 16-bit  | token  | over  | weights | of    | file   | memory |\n");
  print("|                       | tokens/s | FP32 | prefill | ms     | FP32  | GB/s    | reads | MB     | / file |\n");
  print("|-----------------------|----------|------|---------|--------|-------|---------|-------|--------|--------|\n");
  for (const Network& net : {kOpt125m, kBloom560m, kLlama1b}) {
    Speed base{NAN, NAN, NAN, NAN};  // ratios to what was not run are null
    for (const Weights& weights : all) {
      const std::string work = format("%s blocks, %s", net.name, weights.name);
      if (!wanted.found_in(work)) continue;
      const fs::path at = folder / "language";
      write_language_model(net, weights.bits, weights.group, at);
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
                         {"prefill_16_bit_tokens_per_second", kWindow / speed.window16},
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
