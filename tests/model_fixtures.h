// Fixtures of the networks (tests/reference/make_model_fixtures.py), to load, to change and to compare with.
#pragma once
#include <doctest/doctest.h>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "models/model.h"
#include "tests/support.h"

namespace bcq::test {

inline const std::string kVit = "tests/fixtures/vit_tiny", kDeit = "tests/fixtures/deit_tiny",
                         kSwin = "tests/fixtures/swin_tiny", kOpt = "tests/fixtures/opt_tiny";
// Fixture and its number of layers.
inline const std::pair<std::string, size_t> kVisions[] = {{kVit, 14}, {kDeit, 9}, {kSwin, 21}};
inline const std::string kOptPost = "tests/fixtures/opt_post_tiny", kOptPlain = "tests/fixtures/opt_plain_tiny",
                         kBloom = "tests/fixtures/bloom_tiny", kBloomResidual = "tests/fixtures/bloom_residual_tiny";
inline const std::string kLlama = "tests/fixtures/llama_tiny", kLlamaBias = "tests/fixtures/llama_bias_tiny",
                         kMistral = "tests/fixtures/mistral_tiny", kQwen2 = "tests/fixtures/qwen2_tiny",
                         kQwen3 = "tests/fixtures/qwen3_tiny";
inline const std::pair<std::string, size_t> kLanguages[] = {
    {kOpt, 12},   {kOptPost, 12},  {kOptPlain, 12}, {kBloom, 8},  {kBloomResidual, 4},
    {kLlama, 14}, {kLlamaBias, 7}, {kMistral, 14},  {kQwen2, 14}, {kQwen3, 14}};
inline const Context kFloat{Precision::Float, nullptr, nullptr};

// A fixture to change before it is loaded.
struct Variant {
  explicit Variant(const std::string& fixture)
      : config(read_json(fixture + "/config.json")), tensors(read_all(fixture + "/model.safetensors")) {}

  std::unique_ptr<Model> load(bool half = false, const std::map<std::string, std::string>& metadata = {}) const {
    write_text(folder.file("config.json"), config.dump());
    write_raw(folder.file("model.safetensors"), tensors, half, metadata);
    return load_model(folder.path);
  }
  std::string refusal() const {
    return message_of<InputError>([this] { load(); });
  }
  void rename(const std::string& from, const std::string& to) {
    tensors[to] = tensors.at(from);
    tensors.erase(from);
  }

  Folder folder;
  json config;
  std::map<std::string, Tensor> tensors;
};

struct Record : Observer {
  void product(const Layer& s, const Tensor&, const Tensor&, const Tensor& y) override {
    order.push_back(s.name);
    outputs[s.name] = y;
  }
  std::vector<std::string> order;
  std::map<std::string, Tensor> outputs;
};

inline Batch pixels_of(const std::string& fixture) {
  Batch batch;
  batch.pixels = SafeTensors::open(fixture + "/reference.safetensors").get("pixel_values");
  return batch;
}

inline Batch vit_batch() { return pixels_of(kVit); }

inline Batch ids_of(const std::string& fixture) {
  Shape shape;
  const auto ids = SafeTensors::open(fixture + "/reference.safetensors").get_ints("input_ids", &shape);
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  batch.windows = shape[0];
  batch.length = shape[1];
  return batch;
}

inline Batch opt_batch() { return ids_of(kOpt); }

// Everything the reference file holds about a forward pass.
inline void compare_with_reference(Model& model, const Batch& batch, const std::string& fixture, size_t layers) {
  const SafeTensors want = SafeTensors::open(fixture + "/reference.safetensors");
  Record record;
  const Context ctx{Precision::Float, nullptr, &record};
  Tensor x = model.embed(ctx, batch);
  CHECK(relative_error(x, want.get("embed")) < kTight);
  for (int i = 0; i < model.depth(); ++i) {
    x = model.block(ctx, i, x);
    CHECK(relative_error(x, want.get("block." + std::to_string(i))) < kTight);
  }
  const Tensor logits = model.head(ctx, x);
  CHECK(relative_error(logits, want.get("logits")) < kTight);
  CHECK(same_bits(logits, model.forward(kFloat, batch)));
  CHECK(same_bits(logits, model.forward({Precision::Fake, nullptr, nullptr}, batch)));  // nothing is quantized yet
  CHECK(record.order.size() == layers);
  for (const auto& entry : record.outputs) {
    const std::string& name = entry.first;
    const Tensor& y = entry.second;
    CAPTURE(name);
    CHECK(relative_error(y, want.get("site." + name)) < kTight);
  }
  std::vector<std::string> order;
  for (const Layer* layer : model.all_layers()) order.push_back(layer->name);
  CHECK(order == record.order);
}

// How many values the networks have, by their sizes.
inline int64_t vit_parameters(int64_t D, int64_t depth, int64_t mlp, int64_t patch, int64_t tokens, int64_t classes) {
  return D * 3 * patch * patch + D + D + tokens * D +
         depth * (4 * D + 3 * D * D + 3 * D + D * D + D + 2 * mlp * D + mlp + D) + 2 * D + classes * D + classes;
}

inline int64_t opt_parameters(int64_t D, int64_t layers, int64_t ffn, int64_t vocab, int64_t positions) {
  return vocab * D + (positions + 2) * D + layers * (4 * (D * D + D) + 2 * D * ffn + ffn + D + 4 * D) + 2 * D;
}

// The form of the 350M: an embedding of E, its two projections, no final norm.
inline int64_t opt_post_parameters(int64_t D, int64_t E, int64_t layers, int64_t ffn, int64_t vocab,
                                   int64_t positions) {
  return opt_parameters(D, layers, ffn, vocab, positions) - 2 * D - vocab * (D - E) + 2 * D * E;
}

inline int64_t bloom_parameters(int64_t D, int64_t layers, int64_t vocab) {
  return vocab * D + 4 * D + layers * (4 * D + 3 * D * D + 3 * D + D * D + D + 8 * D * D + 5 * D);
}

}  // namespace bcq::test
