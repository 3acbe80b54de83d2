// ViT, DeiT and Swin against timm and transformers: outputs, every site and every gradient of small fixtures, and
// what loading refuses. Real shapes: make parity.
#include "engine/nn/attention.h"
#include "engine/nn/ops.h"
#include "quant/bias_comp.h"
#include "quant/ptq4vit.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"

using namespace bcq;
using namespace bcq::test;

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

TEST_CASE("vit, deit, swin: fused attention and MLP give the bits of the sites one by one") {
  for (const std::string& fixture : {kVit, kDeit, kSwin}) {
    CAPTURE(fixture);
    const auto model = load_model(fixture);
    Observer watching;  // every product is computed for it
    CHECK(same_bits(model->forward(kFloat, pixels_of(fixture)),
                    model->forward({Precision::Float, nullptr, &watching}, pixels_of(fixture))));
  }
}

TEST_CASE("transformers' names and configurations give transformers' logits") {
  for (const char* kind : {"vit_hf", "deit_hf", "swin_hf"}) {
    CAPTURE(kind);
    const std::string fixture = std::string("tests/fixtures/") + kind;
    const auto model = load_model(fixture);
    CHECK(model->info().name == kind);
    CHECK(model->info().outputs == 7);
    CHECK(model->info().image.resize == ImageConfig::Resize::Exact);
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

TEST_CASE("swin: attention is measured with the mask of shifted windows, or as the official scripts have it, without") {
  Variant fixture(kSwin);
  for (auto& entry : fixture.tensors)  // so that attention can be written down without its position bias
    if (entry.first.find("relative_position_bias_table") != std::string::npos)
      entry.second = Tensor(entry.second.shape);
  const auto model = fixture.load();
  const Batch batch = pixels_of(kSwin);
  const Progress silent = [](const std::string&, double, double) {};
  quantize_ptq(*model, batch.pixels, PtqOptions{4, 4}, silent, nullptr);

  struct Attention : Observer {
    void branch(const Layer& last, const Tensor& x, const Tensor& y, const Branch&) override {
      if (last.role == Role::Proj) inputs[last.name] = x, outputs[last.name] = y;
    }
    std::map<std::string, Tensor> inputs, outputs;
  } attention;
  model->forward({Precision::Float, nullptr, &attention}, batch);
  std::map<std::string, Tensor> without_mask;  // mean error of the quantized attention, written down once more
  for (const int block : {0, 1, 3}) {          // 2 merges
    const std::vector<Layer*> s = model->layers(block);
    const std::string& name = s[3]->name;
    const Tensor x = attention.inputs.at(name), qkv = s[0]->run({Precision::Fake}, x);
    const int64_t H = block == 3 ? 4 : 2;
    const Tensor q = scale(nullptr, split_heads(nullptr, qkv, H, 0, 3), 1 / std::sqrt(float(x.dim(2) / H)));
    const Tensor k = split_heads(nullptr, qkv, H, 1, 3), v = split_heads(nullptr, qkv, H, 2, 3);
    const Tensor a = softmax(nullptr, s[1]->run({Precision::Fake}, q, k));
    RunningMean error(BcShape::Position);
    error.update(attention.outputs.at(name),
                 s[3]->run({Precision::Fake}, merge_heads(nullptr, s[2]->run({Precision::Fake}, a, v))));
    without_mask[name] = error.mean();
  }

  BcOptions o;
  o.shape = BcShape::Position;
  o.conv = o.linear = o.matmul = false;
  o.attention = true;
  for (const bool masked : {true, false}) {
    CAPTURE(masked);
    o.masked_attention = masked;
    model->clear_compensation();
    compensate(*model, {batch}, o, silent);
    for (const int block : {0, 1, 3}) {
      CAPTURE(block);  // only block 1 has shifted windows
      const Layer& proj = *model->layers(block)[3];
      const double difference = relative_error(proj.added, without_mask.at(proj.name));
      if (masked && block == 1)
        CHECK(difference > 0.1);
      else
        CHECK(difference < kTight);
    }
  }
  o.stream = Stream::Quantized;
  CHECK_THROWS_AS(compensate(*model, {batch}, o, silent), UsageError);
}

TEST_CASE("swin: configurations that make no Swin are refused") {
  const std::pair<const char*, json> settings[] = {
      {"window_size", 4}, {"depths", {2, 0}}, {"num_heads", {3, 4}}, {"depths", {1, 1, 1}},
      {"ape", true},      {"patch_size", 5},  {"head_dim", 16},      {"always_partition", true}};
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
  const std::pair<const char*, json> args[] = {{"global_pool", "map"},    {"in_chans", 1},  {"act_layer", "quick"},
                                               {"scale_attn_norm", true}, {"depth", "two"}, {"depth", 2.5},
                                               {"img_size", {12, 16}}};
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

TEST_CASE("swin: the parameters are the values of the file, each counted once") {
  int64_t values = 0;
  const SafeTensors file = SafeTensors::open(kSwin + "/model.safetensors");
  for (const auto& [name, tensor] : file.tensors())
    if (name.find("relative_position_index") == std::string::npos && name.find("attn_mask") == std::string::npos)
      values += numel(tensor.shape);
  CHECK(load_model(kSwin)->info().parameters == values);
}
