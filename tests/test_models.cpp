// The networks against timm and transformers: outputs, every site and every gradient
// of small fixtures (tests/reference/make_model_fixtures.py), and what loading
// refuses. Real shapes: make parity.
#include <doctest/doctest.h>

#include "engine/check.h"
#include "engine/json.h"
#include "engine/kernels.h"
#include "models/bloom.h"
#include "models/model.h"
#include "quant/bias_comp.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const std::string kVit = "tests/fixtures/vit_tiny", kDeit = "tests/fixtures/deit_tiny",
                  kSwin = "tests/fixtures/swin_tiny", kOpt = "tests/fixtures/opt_tiny";
// Fixture and its number of sites.
const std::pair<std::string, size_t> kVisions[] = {{kVit, 14}, {kDeit, 9}, {kSwin, 21}};
const std::string kOptPost = "tests/fixtures/opt_post_tiny", kOptPlain = "tests/fixtures/opt_plain_tiny",
                  kBloom = "tests/fixtures/bloom_tiny", kBloomResidual = "tests/fixtures/bloom_residual_tiny";
const std::pair<std::string, size_t> kLanguages[] = {
    {kOpt, 12}, {kOptPost, 12}, {kOptPlain, 12}, {kBloom, 8}, {kBloomResidual, 4}};
const Context kFloat{Precision::Float, nullptr, nullptr};
constexpr double kTight = 1e-5;  // of the largest value: float32 on both sides, sums of up to 60 terms

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
  void site(const Site& s, const Tensor&, const Tensor&, const Tensor& y) override {
    order.push_back(s.name);
    outputs[s.name] = y;
  }
  std::vector<std::string> order;
  std::map<std::string, Tensor> outputs;
};

Batch pixels_of(const std::string& fixture) {
  Batch batch;
  batch.pixels = SafeTensors::open(fixture + "/reference.safetensors").get("pixel_values");
  return batch;
}

Batch vit_batch() { return pixels_of(kVit); }

Batch ids_of(const std::string& fixture) {
  Shape shape;
  const auto ids = SafeTensors::open(fixture + "/reference.safetensors").get_ints("input_ids", &shape);
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  batch.windows = shape[0];
  batch.length = shape[1];
  return batch;
}

Batch opt_batch() { return ids_of(kOpt); }

// Everything the reference file holds about a forward pass.
void compare_with_reference(Model& model, const Batch& batch, const std::string& fixture, size_t sites) {
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
  CHECK(record.order.size() == sites);
  for (const auto& entry : record.outputs) {
    const std::string& name = entry.first;
    const Tensor& y = entry.second;
    CAPTURE(name);
    CHECK(relative_error(y, want.get("site." + name)) < kTight);
  }
  std::vector<std::string> order;
  for (const Site* site : model.all_sites()) order.push_back(site->name);
  CHECK(order == record.order);
}

int64_t vit_parameters(int64_t D, int64_t depth, int64_t mlp, int64_t patch, int64_t tokens, int64_t classes) {
  return D * 3 * patch * patch + D + D + tokens * D +
         depth * (4 * D + 3 * D * D + 3 * D + D * D + D + 2 * mlp * D + mlp + D) + 2 * D + classes * D + classes;
}

int64_t opt_parameters(int64_t D, int64_t layers, int64_t ffn, int64_t vocab, int64_t positions) {
  return vocab * D + (positions + 2) * D + layers * (4 * (D * D + D) + 2 * D * ffn + ffn + D + 4 * D) + 2 * D;
}

// The form of the 350M: an embedding of E, its two projections, no final norm.
int64_t opt_post_parameters(int64_t D, int64_t E, int64_t layers, int64_t ffn, int64_t vocab, int64_t positions) {
  return opt_parameters(D, layers, ffn, vocab, positions) - 2 * D - vocab * (D - E) + 2 * D * E;
}

int64_t bloom_parameters(int64_t D, int64_t layers, int64_t vocab) {
  return vocab * D + 4 * D + layers * (4 * D + 3 * D * D + 3 * D + D * D + D + 8 * D * D + 5 * D);
}

}  // namespace

TEST_CASE("vit, deit, swin: every output equals timm's") {
  for (const auto& entry : kVisions) {
    const std::string& fixture = entry.first;
    INFO(fixture);
    const auto model = load_model(fixture);
    compare_with_reference(*model, pixels_of(fixture), fixture, entry.second);
  }
}

TEST_CASE("vit, deit, swin: the gradient of every site equals autograd's") {
  for (const auto& entry : kVisions) {
    const std::string& fixture = entry.first;
    INFO(fixture);
    const auto model = load_model(fixture);
    const SafeTensors want = SafeTensors::open(fixture + "/reference.safetensors");
    Tape tape;
    Record record;
    const Tensor logits = model->forward({Precision::Float, &tape, &record}, pixels_of(fixture));
    CHECK(same_bits(logits, model->forward(kFloat, pixels_of(fixture))));
    tape.backward(logits, want.get("grad_logits"));
    CHECK(record.outputs.size() == entry.second);
    for (const auto& entry : record.outputs) {
      const std::string& name = entry.first;
      const Tensor& y = entry.second;
      CAPTURE(name);
      REQUIRE(y.slot >= 0);
      CHECK(relative_error(tape.grad(y), want.get("grad." + name)) < kTight);
    }
  }
}

TEST_CASE("transformers' names and configurations give transformers' logits") {
  for (const char* kind : {"vit_hf", "deit_hf", "swin_hf"}) {
    CAPTURE(kind);
    const std::string fixture = std::string("tests/fixtures/") + kind;
    const auto model = load_model(fixture);
    CHECK(model->info().name == kind);
    CHECK(model->info().outputs == 7);
    CHECK(model->info().image.crop_mode == "squash");
    CHECK(model->info().image.mean[0] == 0.485f);
    const Tensor want = SafeTensors::open(fixture + "/reference.safetensors").get("logits");
    CHECK(relative_error(model->forward(kFloat, pixels_of(fixture)), want) < kTight);
  }
}

TEST_CASE("transformers' configurations this engine does not obey are refused by key") {
  const std::pair<const char*, json> settings[] = {
      {"hidden_act", "relu"}, {"qkv_bias", false}, {"use_absolute_embeddings", true}, {"num_channels", 1}};
  for (const auto& entry : settings) {
    const char* key = entry.first;
    CAPTURE(key);
    Variant v("tests/fixtures/swin_hf");
    v.config[key] = entry.second;
    CHECK(contains(v.refusal(), key));
  }
  // Without a preprocessor_config.json ImageNet's usual transform of these repositories is assumed.
  const auto model = Variant("tests/fixtures/vit_hf").load();
  CHECK(model->info().image.interpolation == "bilinear");
  CHECK(model->info().image.mean[0] == 0.5f);
}

TEST_CASE("swin: both layouts of timm's names give the same bits") {
  Variant v(kSwin);
  const Tensor want = v.load()->forward(kFloat, pixels_of(kSwin));
  for (const char* name : {"weight", "bias"}) v.rename(std::string("head.fc.") + name, std::string("head.") + name);
  for (const char* name : {"norm.weight", "norm.bias", "reduction.weight"})
    v.rename(std::string("layers.1.downsample.") + name, std::string("layers.0.downsample.") + name);
  v.tensors["layers.0.blocks.1.attn_mask"] = Tensor({4, 9, 9});  // buffers of older files
  v.tensors["layers.0.blocks.0.attn.relative_position_index"] = Tensor({9, 9});
  const auto model = v.load();
  CHECK(same_bits(model->forward(kFloat, pixels_of(kSwin)), want));
  CHECK(model->info().parameters == load_model(kSwin)->info().parameters);
}

TEST_CASE("swin: the order of the patches that are merged matters") {
  // Swapping the two middle quarters of the merge's norm and weight must change the logits: the fixture
  // would notice an order that is wrong in the engine.
  Variant v(kSwin);
  const Tensor want = v.load()->forward(kFloat, pixels_of(kSwin));
  Tensor& w = v.tensors.at("layers.1.downsample.reduction.weight");
  const int64_t C = w.dim(1) / 4;
  w = w.clone();
  for (int64_t r = 0; r < w.dim(0); ++r)
    for (int64_t c = 0; c < C; ++c) std::swap(w[r * 4 * C + C + c], w[r * 4 * C + 2 * C + c]);
  CHECK(relative_error(v.load()->forward(kFloat, pixels_of(kSwin)), want) > 1e-3);
}

TEST_CASE("swin: configurations that make no Swin are refused") {
  const std::pair<const char*, json> settings[] = {
      {"window_size", 4}, {"depths", {2, 0}}, {"num_heads", {3, 4}}, {"depths", {1, 1, 1}},
      {"ape", true},      {"patch_size", 5},  {"head_dim", 16},      {"strict_img_size", false}};
  for (const auto& entry : settings) {
    const char* key = entry.first;
    CAPTURE(key);
    Variant v(kSwin);
    v.config["model_args"][key] = entry.second;
    CHECK(v.refusal() != "");
  }
  Variant v(kSwin);
  v.config["global_pool"] = "token";
  CHECK(contains(v.refusal(), "global_pool"));
}

TEST_CASE("vit: gradients block by block equal those of the whole") {
  const auto model = load_model(kVit);
  const Tensor g = SafeTensors::open(kVit + "/reference.safetensors").get("grad_logits");
  std::vector<Tensor> inputs = {model->embed(kFloat, vit_batch())};
  for (int i = 0; i < model->depth(); ++i) inputs.push_back(model->block(kFloat, i, inputs.back()));

  Tape whole;
  Tensor start = inputs[0].clone();
  whole.watch(start);
  Tensor x = start;
  for (int i = 0; i < model->depth(); ++i) x = model->block({Precision::Float, &whole, nullptr}, i, x);
  const Tensor logits = model->head({Precision::Float, &whole, nullptr}, x);
  whole.backward(logits, g);

  Tensor dy = g;
  for (int i = model->depth(); i >= 0; --i) {
    Tape tape;
    const Context ctx{Precision::Float, &tape, nullptr};
    Tensor in = inputs[static_cast<size_t>(i)];
    tape.watch(in);
    const Tensor out = i == model->depth() ? model->head(ctx, in) : model->block(ctx, i, in);
    tape.backward(out, dy);
    dy = tape.grad(in);
  }
  CHECK(same_bits(dy, whole.grad(start)));
}

TEST_CASE("vit: the gradients of a block and of the head are those of finite differences") {
  const auto model = load_model(kVit);
  const auto context = [](Tape* tape) { return Context{Precision::Float, tape, nullptr}; };
  const Tensor x = random({1, 10, 24}, 1, 2);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return model->block(context(t), 0, v); }, x, 2) < 1e-2);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return model->block(context(t), 1, v); }, x, 3) < 1e-2);
  CHECK(gradient_error([&](Tape* t, const Tensor& v) { return model->head(context(t), v); }, x, 4) < 1e-2);
}

TEST_CASE("opt, bloom: every output equals transformers'") {
  for (const auto& entry : kLanguages) {
    const std::string& fixture = entry.first;
    INFO(fixture);
    const auto model = load_model(fixture);
    compare_with_reference(*model, ids_of(fixture), fixture, entry.second);
  }
}

TEST_CASE("a sample gives the same bits alone and in a batch, on one thread and on two") {
  for (const auto& entry : kVisions) {
    const auto model = load_model(entry.first);
    const Batch images = pixels_of(entry.first);
    const Tensor logits = model->forward(kFloat, images);
    for (int64_t b = 0; b < 2; ++b) {
      Batch image;
      image.pixels = sample(images.pixels, b);
      CHECK(same_bits(sample(logits, b), model->forward(kFloat, image)));
    }
    CHECK(same_on_two_threads([&] { return model->forward(kFloat, images); }));
  }
  for (const std::string& fixture : {kOpt, kBloom}) {
    const auto model = load_model(fixture);
    const Batch text = ids_of(fixture);
    const Tensor logits = model->forward(kFloat, text);
    for (int64_t b = 0; b < 2; ++b) {
      Batch window;
      window.ids.assign(text.ids.begin() + b * text.length, text.ids.begin() + (b + 1) * text.length);
      window.windows = 1;
      window.length = text.length;
      CHECK(same_bits(sample(logits, b), model->forward(kFloat, window)));
    }
    CHECK(same_on_two_threads([&] { return model->forward(kFloat, text); }));
  }
}

TEST_CASE("opt, bloom: logits depend on the tokens before, not on those after") {
  for (const std::string& fixture : {kOpt, kBloom}) {
    const auto model = load_model(fixture);
    Batch text = ids_of(fixture);
    const Tensor before = model->forward(kFloat, text);
    text.ids[6] = (text.ids[6] + 1) % 53;  // of the first window
    const Tensor after = model->forward(kFloat, text);
    for (int64_t t = 0; t < 22; ++t) {
      const bool equal = std::memcmp(before.data + t * 53, after.data + t * 53, 53 * sizeof(float)) == 0;
      CHECK(equal == (t < 6 || t >= 11));
    }
  }
}

TEST_CASE("info says what was loaded") {
  const auto vit = load_model(kVit), opt = load_model(kOpt + "/model.safetensors");
  CHECK(vit->info().name == "vit_tiny_patch16_224");
  CHECK(vit->info().tag == "augreg_in21k_ft_in1k");
  CHECK(vit->info().family == Family::Vision);
  CHECK(vit->info().outputs == 7);
  CHECK(vit->info().image.height == 12);
  CHECK(vit->info().image.width == 12);
  CHECK(vit->info().image.crop_pct == 0.9);
  CHECK(vit->info().image.interpolation == "bicubic");
  CHECK(vit->info().image.mean[2] == 0.5f);
  CHECK(vit->info().parameters == vit_parameters(24, 2, 60, 4, 10, 7));
  CHECK(opt->info().name == "opt_tiny");
  CHECK(opt->info().family == Family::Language);
  CHECK(opt->info().outputs == 53);
  CHECK(opt->info().max_length == 24);
  CHECK(opt->info().parameters == opt_parameters(16, 2, 40, 53, 24));
  CHECK(opt->sites(-1).empty());
  CHECK(opt->sites(2).empty());
  // the same formulas at the published sizes
  CHECK(vit_parameters(768, 12, 3072, 16, 197, 1000) == 86'567'656);
  CHECK(vit_parameters(384, 12, 1536, 16, 197, 1000) == 22'050'664);
  CHECK(opt_parameters(768, 12, 3072, 50272, 2048) == 125'239'296);
  CHECK(load_model(kOptPost)->info().parameters == opt_post_parameters(16, 12, 2, 40, 53, 24));
  CHECK(opt_post_parameters(1024, 512, 24, 4096, 50272, 2048) == 331'196'416);
  CHECK(load_model(kBloom)->info().parameters == bloom_parameters(16, 2, 53));
  CHECK(bloom_parameters(1024, 24, 250880) == 559'214'592);
}

TEST_CASE("vit: image settings come from the config, also in its older flat form") {
  Variant v(kVit);
  json& cfg = v.config["pretrained_cfg"];
  cfg["mean"] = {0.485, 0.456, 0.406};
  cfg["std"] = {0.229, 0.224, 0.225};
  cfg["crop_pct"] = 1.0;
  CHECK(v.load()->info().image.mean[0] == 0.485f);
  CHECK(v.load()->info().image.std[2] == 0.225f);
  CHECK(v.load()->info().image.crop_pct == 1.0);
  const json flat = cfg;
  for (const auto& [key, value] : flat.items()) v.config[key] = value;
  v.config.erase("pretrained_cfg");
  CHECK(v.load()->info().image.mean[0] == 0.485f);
  CHECK(v.load()->info().tag == "augreg_in21k_ft_in1k");
}

TEST_CASE("a tensor that is missing, of another shape or not finite is refused by name") {
  const std::pair<std::string, std::string> cases[] = {{kVit, "blocks.1.mlp.fc2.bias"},
                                                       {kVit, "cls_token"},
                                                       {kVit, "patch_embed.proj.weight"},
                                                       {kVit, "head.weight"},
                                                       {kOpt, "model.decoder.layers.1.self_attn.k_proj.weight"},
                                                       {kOpt, "model.decoder.final_layer_norm.bias"},
                                                       {kOpt, "model.decoder.embed_tokens.weight"},
                                                       {kOpt, "model.decoder.embed_positions.weight"},
                                                       {kOptPost, "model.decoder.project_out.weight"},
                                                       {kBloom, "transformer.h.1.mlp.dense_4h_to_h.weight"},
                                                       {kBloom, "transformer.h.0.self_attention.query_key_value.bias"},
                                                       {kBloom, "transformer.word_embeddings.weight"},
                                                       {kBloom, "transformer.ln_f.weight"}};
  for (const auto& entry : cases) {
    const std::string &fixture = entry.first, &name = entry.second;
    CAPTURE(name);
    {
      Variant v(fixture);
      v.tensors.erase(name);
      CHECK(contains(v.refusal(), name));
      CHECK(contains(v.refusal(), v.folder.path));
    }
    {
      Variant v(fixture);
      Shape shape = v.tensors[name].shape;
      shape[0] += 1;
      v.tensors[name] = random(shape, 1);
      const std::string message = v.refusal();
      CHECK(contains(message, name));
      CHECK(contains(message, to_string(shape)));
    }
    for (const float bad : {NAN, INFINITY}) {
      Variant v(fixture);
      v.tensors[name][0] = bad;
      CHECK(contains(v.refusal(), name));
    }
  }
}

TEST_CASE("vit: a tensor the forward pass does not know is refused, leftovers of old files are not") {
  for (const char* name : {"blocks.0.ls1.gamma", "dist_token", "head_dist.weight", "blocks.2.norm1.weight"}) {
    Variant v(kVit);
    v.tensors[name] = random({24}, 1);
    CHECK(contains(v.refusal(), name));
  }
  Variant v(kVit);
  v.tensors["pre_logits.fc.weight"] = random({24, 24}, 1);
  CHECK(v.load()->info().parameters == vit_parameters(24, 2, 60, 4, 10, 7));
}

TEST_CASE("vit: configurations of another forward pass are refused by key") {
  const std::pair<const char*, json> args[] = {{"qkv_bias", false},   {"class_token", false}, {"global_pool", "avg"},
                                               {"in_chans", 1},       {"pre_norm", true},     {"qk_norm", true},
                                               {"init_values", 1e-5}, {"reg_tokens", 4},      {"no_embed_class", true},
                                               {"fc_norm", true},     {"act_layer", "quick"}, {"depth", "two"},
                                               {"depth", 2.5},        {"img_size", {12, 12}}};
  for (const auto& entry : args) {
    const char* key = entry.first;
    const json& value = entry.second;
    Variant v(kVit);
    v.config["model_args"][key] = value;
    CAPTURE(key);
    CHECK(contains(v.refusal(), key));
    CHECK(contains(v.refusal(), "config.json"));
  }
  const std::pair<const char*, json> harmless[] = {
      {"qkv_bias", true}, {"class_token", true}, {"init_values", nullptr}, {"drop_path_rate", 0.1}, {"num_heads", 3}};
  for (const auto& [key, value] : harmless) {
    Variant v(kVit);
    v.config["model_args"][key] = value;
    CHECK(v.refusal() == "");
  }
  const std::pair<const char*, json> sizes[] = {{"num_heads", 5}, {"num_heads", 0}, {"patch_size", 5},
                                                {"img_size", 16}, {"depth", -1},    {"depth", 3}};
  for (const auto& entry : sizes) {
    const char* key = entry.first;
    const json& value = entry.second;
    Variant v(kVit);
    v.config["model_args"][key] = value;
    CAPTURE(key);
    CHECK(v.refusal() != "");
  }
}

TEST_CASE("vit: image settings that cannot be obeyed are refused") {
  const std::pair<const char*, json> settings[] = {
      {"input_size", {3, 224, 224}}, {"input_size", {1, 12, 12}}, {"crop_pct", 0},    {"crop_pct", 1.5},
      {"crop_mode", "border"},       {"mean", {0.5, 0.5}},        {"std", "imagenet"}};
  for (const auto& entry : settings) {
    const char* key = entry.first;
    const json& value = entry.second;
    Variant v(kVit);
    v.config["pretrained_cfg"][key] = value;
    CAPTURE(key);
    CHECK(contains(v.refusal(), key));
  }
  Variant v(kVit);
  v.config["global_pool"] = "avg";
  CHECK(contains(v.refusal(), "global_pool"));
  v.config["global_pool"] = "token";
  v.config["num_classes"] = 8;
  CHECK(contains(v.refusal(), "head.weight"));
}

TEST_CASE("architectures this engine does not have are refused by name") {
  for (const char* name :
       {"resnet50", "swin_tiny_patch4_224", "deit3_small_patch16_224", "vit_huge_patch14_224", "vit_tiny_patch16",
        "vit_tiny_patch16_224_miil", "vit_tiny_patch016_224", "vit_tiny_r_s16_p8_224", "vit_"}) {
    Variant v(kVit);
    v.config["architecture"] = name;
    CHECK(contains(v.refusal(), name));
  }
  for (const char* type : {"llama", "gpt2"}) {
    Variant v(kOpt);
    v.config["model_type"] = type;
    CHECK(contains(v.refusal(), type));
  }
  Variant v(kVit);
  v.config.erase("architecture");
  CHECK(v.refusal() != "");
}

TEST_CASE("opt: other forms of the network are refused by key") {
  const std::pair<const char*, json> values[] = {{"activation_function", "silu"},
                                                 {"enable_bias", 1},
                                                 {"tie_word_embeddings", false},
                                                 {"word_embed_proj_dim", 0},
                                                 {"quantization_config", {{"bits", 4}}},
                                                 {"num_attention_heads", 3},
                                                 {"num_attention_heads", "two"},
                                                 {"num_hidden_layers", 0},
                                                 {"num_hidden_layers", 1.5},
                                                 {"ffn_dim", -4}};
  for (const auto& entry : values) {
    const char* key = entry.first;
    const json& value = entry.second;
    Variant v(kOpt);
    v.config[key] = value;
    CAPTURE(key);
    CHECK(contains(v.refusal(), key));
    CHECK(contains(v.refusal(), "config.json"));
  }
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size",
                          "max_position_embeddings"}) {
    Variant v(kOpt);
    v.config.erase(key);
    CHECK(contains(v.refusal(), key));
  }
}

TEST_CASE("opt: a config that takes the final norm away leaves one in the file unused") {
  Variant v(kOpt);
  v.config["_remove_final_layer_norm"] = true;
  const auto removed = v.load();
  const Tensor x = random({1, 5, 16}, 1);
  CHECK(same_bits(removed->head(kFloat, x), linear(nullptr, x, v.tensors["model.decoder.embed_tokens.weight"], {})));
  CHECK(removed->info().parameters == opt_parameters(16, 2, 40, 53, 24) - 32);
  v.tensors["model.decoder.version"] = Tensor({1});  // of files converted from fairseq
  CHECK(v.refusal() == "");
  v.config["enable_bias"] = false;  // but biases that are there are not dropped in silence
  CHECK(contains(v.refusal(), ".bias"));
}

TEST_CASE("bloom: old keys, names without a prefix and aliases of the embedding give the same bits") {
  Variant v(kBloom);
  const Tensor want = v.load()->forward(kFloat, ids_of(kBloom));
  const auto logits = [&] { return v.load()->forward(kFloat, ids_of(kBloom)); };
  std::string embed = "transformer.word_embeddings.weight";

  SUBCASE("keys of the config") {
    const std::pair<const char*, const char*> keys[] = {
        {"hidden_size", "n_embed"}, {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"}};
    for (const auto& [key, other] : keys) {
      v.config[other] = v.config[key];
      v.config.erase(key);
    }
    for (const char* key : {"layer_norm_epsilon", "apply_residual_connection_post_layernorm"}) v.config.erase(key);
    CHECK(same_bits(logits(), want));
  }
  SUBCASE("no prefix") {
    std::vector<std::string> names;
    for (const auto& entry : v.tensors) names.push_back(entry.first);
    for (const auto& name : names) v.rename(name, name.substr(12));
    CHECK(same_bits(logits(), want));
    v.rename("word_embeddings.weight", "lm_head.weight");
    CHECK(same_bits(logits(), want));
  }
  SUBCASE("lm_head alone, and both") {
    v.tensors["lm_head.weight"] = v.tensors[embed].clone();
    CHECK(same_bits(logits(), want));
    CHECK(v.load()->info().parameters == bloom_parameters(16, 2, 53));
    v.tensors["lm_head.weight"][7] += 0.25f;
    CHECK(contains(v.refusal(), "lm_head.weight"));
    v.tensors["lm_head.weight"] = v.tensors[embed];
    v.tensors.erase(embed);
    CHECK(same_bits(logits(), want));
  }
  SUBCASE("aliases in the metadata, either way") {
    CHECK(same_bits(v.load(false, {{"lm_head.weight", embed}})->forward(kFloat, ids_of(kBloom)), want));
    v.rename(embed, "a.shared.weight");
    CHECK(same_bits(v.load(false, {{embed, "a.shared.weight"}})->forward(kFloat, ids_of(kBloom)), want));
    CHECK(same_bits(v.load(false, {{"lm_head.weight", "a.shared.weight"}})->forward(kFloat, ids_of(kBloom)), want));
    CHECK(contains(v.refusal(), embed));
  }
}

TEST_CASE("bloom: other forms of the network are refused by key") {
  const std::pair<const char*, json> values[] = {{"tie_word_embeddings", false},
                                                 {"quantization_config", {{"bits", 4}}},
                                                 {"n_head", 3},
                                                 {"n_head", "four"},
                                                 {"n_layer", 0},
                                                 {"layer_norm_epsilon", "small"},
                                                 {"hidden_size", -16},
                                                 {"vocab_size", 1.5}};
  for (const auto& entry : values) {
    const char* key = entry.first;
    Variant v(kBloom);
    v.config[key] = entry.second;
    CAPTURE(key);
    const std::string named = std::string(key) == "n_head" ? "head" : key;
    CHECK(contains(v.refusal(), named));
    CHECK(contains(v.refusal(), "config.json"));
  }
  Variant v(kVit);
  v.config = read_json(kBloom + "/config.json");
  CHECK(contains(v.refusal(), "word_embeddings_layernorm"));
}

TEST_CASE("bloom: the slopes of ALiBi") {
  const std::vector<float> sixteen = alibi_slopes(16), twelve = alibi_slopes(12), ten = alibi_slopes(10);
  CHECK(sixteen.size() == 16);
  CHECK(sixteen[0] == doctest::Approx(0.7071068));
  CHECK(sixteen[15] == 0.00390625f);
  CHECK(twelve.size() == 12);
  CHECK(twelve[0] == 0.5f);
  CHECK(twelve[7] == 0.00390625f);
  for (size_t i = 0; i < 4; ++i) CHECK(twelve[8 + i] == doctest::Approx(std::pow(2.0, -0.5 - static_cast<double>(i))));
  CHECK(ten == std::vector<float>(twelve.begin(), twelve.begin() + 10));
  CHECK(alibi_slopes(1) == std::vector<float>{0.00390625f});
}

TEST_CASE("opt: every way hub files name the tensors gives the same bits") {
  const Tensor want = load_model(kOpt)->forward(kFloat, opt_batch());
  const std::string embed = "model.decoder.embed_tokens.weight";

  SUBCASE("decoder. instead of model.decoder.") {
    Variant v(kOpt);
    std::vector<std::string> names;
    for (const auto& entry : v.tensors) names.push_back(entry.first);
    for (const auto& name : names) v.rename(name, name.substr(6));
    CHECK(same_bits(v.load()->forward(kFloat, opt_batch()), want));
  }
  SUBCASE("the embedding under lm_head alone") {
    Variant v(kOpt);
    v.rename(embed, "lm_head.weight");
    CHECK(same_bits(v.load()->forward(kFloat, opt_batch()), want));
    CHECK(v.load()->info().parameters == opt_parameters(16, 2, 40, 53, 24));
  }
  SUBCASE("under both names") {
    Variant v(kOpt);
    v.tensors["lm_head.weight"] = v.tensors[embed].clone();
    CHECK(same_bits(v.load()->forward(kFloat, opt_batch()), want));
    CHECK(v.load()->info().parameters == opt_parameters(16, 2, 40, 53, 24));
    v.tensors["lm_head.weight"][7] += 0.25f;
    CHECK(contains(v.refusal(), "lm_head.weight"));
    CHECK(contains(v.refusal(), embed));
  }
  SUBCASE("under an alias the metadata gives") {
    Variant v(kOpt);
    v.rename(embed, "a.shared.weight");
    CHECK(same_bits(v.load(false, {{"format", "pt"}, {embed, "a.shared.weight"}})->forward(kFloat, opt_batch()), want));
    CHECK(contains(v.refusal(), embed));
  }
  SUBCASE("no OPT names at all") {
    Variant v(kVit);
    v.config = read_json(kOpt + "/config.json");
    CHECK(contains(v.refusal(), "embed_positions"));
  }
}

TEST_CASE("16-bit files give the bits of their values in 32 bits") {
  for (const std::string& fixture : {kVit, kOptPost, kBloom}) {
    Variant v(fixture);
    for (auto& entry : v.tensors)
      for (int64_t i = 0; i < entry.second.size(); ++i) {
        const uint16_t h = to_half(entry.second[i]);
        kernels().from_f16(&h, &entry.second[i], 1);
      }
    const Batch batch = fixture == kVit ? vit_batch() : ids_of(fixture);
    const Tensor want = v.load(false)->forward(kFloat, batch);
    const auto half = v.load(true);
    CHECK(same_bits(half->forward(kFloat, batch), want));
    const Site& site = *half->sites(0)[0];                          // its weight stays as it is stored
    CHECK(site.weight.values().data != site.weight.values().data);  // each time decoded
    CHECK(relative_error(want, load_model(fixture)->forward(kFloat, batch)) > 1e-5);
  }
}

TEST_CASE("batches that do not fit are refused") {
  const auto vit = load_model(kVit), opt = load_model(kOpt);
  Batch batch;
  for (const Shape& shape : {Shape{1, 3, 12, 13}, Shape{1, 1, 12, 12}, Shape{3, 12, 12}}) {
    batch.pixels = random(shape, 1);
    CHECK_THROWS_AS(vit->forward(kFloat, batch), InputError);
  }
  Batch text = opt_batch();
  for (const int32_t id : {-1, 53, 50000}) {
    text.ids[13] = id;
    CHECK(contains(message_of<InputError>([&] { opt->forward(kFloat, text); }), std::to_string(id)));
  }
  text.ids.assign(25, 1);
  text.windows = 1;
  text.length = 25;
  CHECK_THROWS_AS(opt->forward(kFloat, text), InputError);
  text.ids.pop_back();
  text.length = 24;
  CHECK(opt->forward(kFloat, text).shape == Shape{1, 24, 53});
}

TEST_CASE("load_model finds the weights of a folder, or says what is there instead") {
  const auto refusal = [](const std::string& path) { return message_of<InputError>([&] { load_model(path); }); };
  CHECK(contains(refusal("no/such/folder"), "no/such/folder"));
  Variant v(kVit);
  const Tensor want = v.load()->forward(kFloat, vit_batch());
  const std::string one = v.folder.file("model.safetensors"), other = v.folder.file("weights.safetensors");
  CHECK(same_bits(load_model(one)->forward(kFloat, vit_batch()), want));
  std::filesystem::rename(one, other);
  CHECK(same_bits(load_model(v.folder.path)->forward(kFloat, vit_batch()), want));
  std::filesystem::copy_file(other, v.folder.file("copy.safetensors"));
  CHECK(contains(refusal(v.folder.path), "2 .safetensors"));
  std::filesystem::remove(other);
  std::filesystem::remove(v.folder.file("copy.safetensors"));
  CHECK(contains(refusal(v.folder.path), "no model.safetensors"));
  write_text(v.folder.file("pytorch_model.bin"), "PK");
  CHECK(contains(refusal(v.folder.path), "pickle"));
  std::filesystem::remove(v.folder.file("config.json"));
  CHECK(contains(refusal(v.folder.path), "config.json"));
  write_text(v.folder.file("config.json"), "{\"architecture\": ");
  CHECK(refusal(v.folder.path) != "");
}

TEST_CASE("a block compensation acts in Fake alone, and clear removes it") {
  const auto model = load_model(kVit);
  const Context fake{Precision::Fake, nullptr, nullptr};
  const Tensor x = random({2, 10, 24}, 1), y = model->block(kFloat, 1, x);
  model->block_bc = {Tensor{}, random({10, 24}, 2)};
  CHECK(same_bits(model->block(kFloat, 1, x), y));
  CHECK(same_bits(model->block(fake, 0, x), model->block(kFloat, 0, x)));
  const Tensor z = model->block(fake, 1, x);
  for (int64_t i = 0; i < y.size(); ++i) CHECK(z[i] == y[i] + model->block_bc[1][i % 240]);
  model->clear();
  CHECK(same_bits(model->block(fake, 1, x), y));
}

TEST_CASE("a vector that compensates a block goes into the vector the block ends in") {
  const Context fake{Precision::Fake, nullptr, nullptr};
  const std::pair<std::string, std::string> ends[] = {{kVit, "blocks.0.mlp.fc2.bias"},
                                                      {kOpt, "layers.0.fc2.bias"},
                                                      {kOptPost, "layers.0.final_layer_norm.bias"},
                                                      {kOptPlain, "layers.0.fc2.bias"},
                                                      {kBloom, "h.0.mlp.dense_4h_to_h.bias"}};
  for (const auto& entry : ends) {
    INFO(entry.first);
    const auto model = load_model(entry.first);
    const int64_t D = entry.first == kVit ? 24 : 16;
    const Tensor x = random({2, 10, D}, 1), y = model->block(kFloat, 0, x), b = random({D}, 2);
    CHECK(model->block_end(0).name == entry.second);
    compensate_block(*model, 0, b);
    const Tensor z = model->block(fake, 0, x);
    Tensor want = y.clone();
    add_broadcast(want, b.reshaped({1, D}));
    CHECK(relative_error(z, want) < 1e-6);
    CHECK(same_bits(model->block(kFloat, 0, x), y));
    CHECK(added_values(*model) == (entry.first == kOptPlain ? D : 0));  // a bias there was none of
    model->clear_compensation();
    CHECK(same_bits(model->block(fake, 0, x), y));
  }
}
