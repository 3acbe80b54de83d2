// The networks against timm and transformers: outputs, every site and every gradient
// of two small fixtures (tests/reference/make_model_fixtures.py), and what loading
// refuses. Real shapes: make parity.
#include <doctest/doctest.h>

#include "engine/check.h"
#include "engine/json.h"
#include "engine/kernels.h"
#include "models/model.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const std::string kVit = "tests/fixtures/vit_tiny", kDeit = "tests/fixtures/deit_tiny",
                  kSwin = "tests/fixtures/swin_tiny", kOpt = "tests/fixtures/opt_tiny";
// Fixture and its number of sites.
const std::pair<std::string, size_t> kVisions[] = {{kVit, 14}, {kDeit, 9}, {kSwin, 21}};
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

Batch opt_batch() {
  Shape shape;
  const auto ids = SafeTensors::open(kOpt + "/reference.safetensors").get_ints("input_ids", &shape);
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  batch.windows = shape[0];
  batch.length = shape[1];
  return batch;
}

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

TEST_CASE("opt: every output equals transformers'") {
  const auto model = load_model(kOpt);
  compare_with_reference(*model, opt_batch(), kOpt, 12);
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
  const auto opt = load_model(kOpt);
  const Batch text = opt_batch();
  const Tensor opt_logits = opt->forward(kFloat, text);
  for (int64_t b = 0; b < 2; ++b) {
    Batch window;
    window.ids.assign(text.ids.begin() + b * text.length, text.ids.begin() + (b + 1) * text.length);
    window.windows = 1;
    window.length = text.length;
    CHECK(same_bits(sample(opt_logits, b), opt->forward(kFloat, window)));
  }
  CHECK(same_on_two_threads([&] { return opt->forward(kFloat, text); }));
}

TEST_CASE("opt: logits depend on the tokens before, not on those after") {
  const auto model = load_model(kOpt);
  Batch text = opt_batch();
  const Tensor before = model->forward(kFloat, text);
  text.ids[6] = (text.ids[6] + 1) % 53;  // of the first window
  const Tensor after = model->forward(kFloat, text);
  for (int64_t t = 0; t < 22; ++t) {
    const bool equal = std::memcmp(before.data + t * 53, after.data + t * 53, 53 * sizeof(float)) == 0;
    CHECK(equal == (t < 6 || t >= 11));
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
                                                       {kOpt, "model.decoder.embed_positions.weight"}};
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
  for (const char* type : {"llama", "gpt2", "bloom"}) {
    Variant v(kOpt);
    v.config["model_type"] = type;
    CHECK(contains(v.refusal(), type));
  }
  Variant v(kVit);
  v.config.erase("architecture");
  CHECK(v.refusal() != "");
}

TEST_CASE("opt: other forms of the network are refused by key") {
  const std::pair<const char*, json> values[] = {{"do_layer_norm_before", false},
                                                 {"_remove_final_layer_norm", true},
                                                 {"activation_function", "gelu"},
                                                 {"enable_bias", false},
                                                 {"layer_norm_elementwise_affine", false},
                                                 {"tie_word_embeddings", false},
                                                 {"word_embed_proj_dim", 8},
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
  for (const std::string& fixture : {kVit, kOpt}) {
    Variant v(fixture);
    for (auto& entry : v.tensors)
      for (int64_t i = 0; i < entry.second.size(); ++i) {
        const uint16_t h = to_half(entry.second[i]);
        kernels().from_f16(&h, &entry.second[i], 1);
      }
    const Batch batch = fixture == kVit ? vit_batch() : opt_batch();
    const Tensor want = v.load(false)->forward(kFloat, batch);
    CHECK(same_bits(v.load(true)->forward(kFloat, batch), want));
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
