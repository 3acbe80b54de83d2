// What timm's VisionTransformer and transformers' Dinov2 can be configured to, against both; LayerScale kept and
// folded.
#include "eval/save.h"
#include "eval/vision.h"
#include "quant/calibrate.h"
#include "quant/ptq4vit.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"
#include "tests/vit_options.h"

using namespace bcq;
using namespace bcq::test;

namespace {

Tensor& gamma_of(Case& of, const std::string& name) {
  Tensor& gamma = of.tensors.at(name);
  gamma = gamma.clone();
  return gamma;
}

}  // namespace

TEST_CASE("vit options: the logits are those of timm and transformers, fused or one by one") {
  const std::vector<std::string> names = all_cases();
  CHECK(names.size() == 16);
  for (const std::string& name : names) {
    CAPTURE(name);
    const Case of(name);
    const auto model = of.load();
    const Tensor logits = model->forward(kFloat, of.batch);
    CHECK(relative_error(logits, of.logits) < kTight);
    Observer watching;
    CHECK(same_bits(logits, model->forward({Precision::Float, nullptr, &watching}, of.batch)));
    CHECK(same_bits(logits, model->forward({Precision::Fake}, of.batch)));
    CHECK(model->info().outputs == of.logits.dim(1));
  }
}

TEST_CASE("vit options: gradients are those of finite differences") {
  for (const std::string name :
       {"deit3", "token_fc_norm", "clip_quickgelu", "gelu_tanh", "hf_dinov2", "reg4_gap", "gap"}) {
    CAPTURE(name);
    const Case of(name);
    const auto model = of.load();
    const Tensor x = model->embed(kFloat, of.batch).slice(0, 1).clone();
    const auto context = [](Tape* tape) { return Context{Precision::Float, tape, nullptr}; };
    CHECK(gradient_error([&](Tape* t, const Tensor& v) { return model->block(context(t), 0, v); }, x, 3) < 2e-2);
    CHECK(gradient_error([&](Tape* t, const Tensor& v) { return model->head(context(t), v); }, x, 4) < 2e-2);
  }
}

TEST_CASE("vit options: positions that fit are taken as they are, others resized with a note, or refused") {
  Case of("positions_from_5");
  const auto notes = of.load()->info().notes;
  CHECK(std::count_if(notes.begin(), notes.end(), [](auto& n) { return contains(n, "from 5 x 5 to 3 x 3"); }) == 1);
  CHECK(Case("deit3").load()->info().notes.empty());
  for (const int64_t rows : {25, 27, 1}) {  // a grid of 24 or of 26 is no square, one of 0 is none
    of.tensors["pos_embed"] = random({1, rows, 8}, 1);
    CHECK(contains(of.refusal(), "pos_embed"));
  }
}

TEST_CASE("LayerScale: folded into the layer before it gives the same network") {
  for (const std::string name : {"deit3", "dinov2_reg4", "token_fc_norm", "hf_dinov2"}) {
    CAPTURE(name);
    const Case of(name);
    const auto model = of.load();
    CHECK(!model->part(0).is_sum);
    const Tensor kept = model->forward(kFloat, of.batch);
    model->fold_layer_scale();
    CHECK(model->part(0).is_sum);
    for (const Layer* layer : model->all_layers()) CHECK(layer->gamma.empty());
    CHECK(relative_error(model->forward(kFloat, of.batch), of.logits) < kTight);
    const Tensor once = model->forward(kFloat, of.batch);
    model->fold_layer_scale();
    CHECK(same_bits(model->forward(kFloat, of.batch), once));
    model->clear();
    CHECK(same_bits(model->forward(kFloat, of.batch), kept));
  }
  const auto model = Case("deit3").load();
  for (Layer* layer : model->layers(0))
    if (layer->role == Role::Fc2) Model::point_of(*layer).add(random({8}, 1));
  CHECK(contains(message_of<Error>([&] { model->fold_layer_scale(); }), "blocks.0.mlp.fc2"));
}

TEST_CASE("LayerScale: a vector behind it folds into the bias divided by it, and not at all where it is 0") {
  for (const float lowest : {0.25f, 0.f, 1e-42f}) {  // of the last the quotient is infinite
    CAPTURE(lowest);
    Case of("deit3");
    gamma_of(of, "blocks.0.ls2.gamma")[3] = lowest;
    const auto model = of.load();
    const Tensor x = model->embed(kFloat, of.batch), y = model->block(kFloat, 0, x), b = random({8}, 5);
    const Point point = model->part(0).output;
    point.add(b);
    const Tensor moved = model->block({Precision::Fake}, 0, x);
    Tensor want = y.clone();
    add_broadcast(want, b.reshaped({1, 8}));
    CHECK(relative_error(moved, want) < kTight);
    const bool folds = lowest == 0.25f;
    CHECK(point.folds_into[0]->compensated.empty() == !folds);
    CHECK(point.added[0]->empty() == folds);
    point.clear();
    CHECK(same_bits(model->block({Precision::Fake}, 0, x), y));
    // Of the layer itself and of the branch that ends in it, the vector stands before the scale.
    for (const Point& branch : model->part(0).branches) {
      branch.add(b);
      const Tensor& bias = branch.folds_into[0]->loaded;
      CHECK(relative_error(branch.folds_into[0]->compensated, add(nullptr, bias, b)) == 0);
      branch.clear();
    }
  }
}

TEST_CASE("LayerScale, norms of queries and keys, quick GELU: calibrated, compensated, and in integers as simulated") {
  const Progress silent = [](const std::string&, double, double) {};
  for (const std::string name : {"deit3", "token_fc_norm", "clip_quickgelu", "reg4_gap"}) {
    CAPTURE(name);
    const Case of(name);
    const auto model = of.load();
    const Tensor real = model->forward(kFloat, of.batch);
    quantize_ptq(*model, of.batch.pixels, PtqOptions{8, 8}, silent, nullptr);
    BcOptions options;
    options.conv = options.linear = options.matmul = false;
    options.block = true;
    const auto error_of_block = [&] {
      for (const OutputError& error : output_errors(*model, {of.batch}, silent))
        if (error.kind == "block") return error.error;
      return -1.0;
    };
    const double before = error_of_block();
    compensate(*model, {of.batch}, options, silent);
    CHECK(error_of_block() < before);
    const Tensor fake = model->forward({Precision::Fake}, of.batch);
    CHECK(relative_error(fake, real) < 0.2);  // two images calibrate a network of random weights
    model->prepare_int8();
    CHECK(relative_error(model->forward({Precision::Integer}, of.batch), fake) < 0.02);
  }
}

TEST_CASE("vit options: what is not obeyed is refused by key, and what the file contradicts by tensor") {
  const std::pair<const char*, json> keys[] = {{"global_pool", "map"},    {"global_pool", "avgmax"},
                                               {"global_pool", "max"},    {"act_layer", "silu"},
                                               {"norm_layer", "rmsnorm"}, {"scale_attn_norm", true},
                                               {"scale_mlp_norm", true},  {"pos_embed", "rope"},
                                               {"class_token", false},    {"reg_tokens", -1},
                                               {"mlp_layer", "SwiGLU"},   {"attn_layer", "diff"},
                                               {"init_values", "small"},  {"qk_norm", 1},
                                               {"embed_norm_layer", "x"}, {"reg_tokens", 1 << 20}};
  for (const auto& entry : keys) {
    const char* key = entry.first;
    CAPTURE(key);
    Case of("positions_from_2");
    of.config["model_args"][key] = entry.second;
    CHECK(contains(of.refusal(), std::string(key) == "class_token" ? "class token" : key));
  }
  const std::tuple<const char*, const char*, json, const char*> tensors[] = {
      {"deit3", "init_values", nullptr, ""},
      {"deit3", "init_values", 0, "ls1.gamma"},
      {"positions_from_2", "init_values", 1e-5, "ls1.gamma"},
      {"gap", "qkv_bias", true, "qkv.bias"},
      {"deit3", "qkv_bias", false, "qkv.bias"},
      {"deit3", "qk_norm", true, "q_norm.weight"},
      {"deit3", "reg_tokens", 2, "reg_token"},
      {"token_fc_norm", "fc_norm", false, "norm.weight"},
      {"clip_quickgelu", "pre_norm", false, "patch_embed.proj.bias"},
      {"reg4_gap", "class_token", true, "cls_token"}};
  for (const auto& entry : tensors) {
    const auto& [name, key, value, tensor] = entry;
    Case of(name);
    of.config["model_args"][key] = value;
    if (*tensor)
      CHECK(contains(of.refusal(), tensor));
    else
      CHECK(of.refusal() == "");
  }
  for (const char* name : {"vit_base_patch16_rpn_224", "vit_small_patch16_18x2_224", "vit_base_patch14_reg4_224",
                           "deit3_base_distilled_patch16_224", "vit_base_patch32_clip", "vit_so400m_patch14_gap_224"}) {
    Case of("deit3");
    of.config["architecture"] = name;
    CHECK(contains(of.refusal(), name));
  }
  Case of("hf_dinov2");
  of.config["use_swiglu_ffn"] = true;
  CHECK(contains(of.refusal(), "use_swiglu_ffn"));
}

TEST_CASE("a network without a classifier gives features, and is not evaluated") {
  for (const char* name : {"dinov2", "hf_dinov2_model"}) {
    const auto model = Case(name).load();
    CHECK(model->info().outputs == 8);
    CHECK(model->layers(model->depth()).empty());
    CHECK(contains(message_of<InputError>([&] { VisionTask task(*model, {}, {}); }), "no classifier"));
  }
}

TEST_CASE("vit options: saved quantized and loaded, the same logits, LayerScale kept or folded") {
  int folded = 0, kept = 0;
  for (const std::string& name : all_cases())
    for (const char* method : {"ptq4vit", "repq-vit"}) {
      CAPTURE(name);
      CAPTURE(method);
      const Case of(name);
      const auto model = of.load();
      const bool has_gamma = model->layers(0).size() > 3 && !model->layers(0).at(3)->gamma.empty();
      Recipe recipe = recipe_of(Family::Vision, method);
      recipe.ptq.wbits = recipe.ptq.abits = 4;
      const std::unique_ptr<Method> m = row_of(recipe).make(recipe, {}, [](const std::string&) {});
      calibrate(*model, vision_batches(*model, of.batch.pixels), {m.get()});
      const bool has_gamma_now = !model->layers(0).at(3)->gamma.empty();
      folded += has_gamma && !has_gamma_now;
      kept += has_gamma_now;
      const Folder folder;
      save_vision(*model, {folder.file("saved"), "bcq", false}, recipe);
      const auto loaded = load_model(folder.file("saved"));
      CHECK(same_bits(loaded->forward({Precision::Fake}, of.batch), model->forward({Precision::Fake}, of.batch)));
      model->prepare_int8(), loaded->prepare_int8();
      CHECK(same_bits(loaded->forward({Precision::Integer}, of.batch), model->forward({Precision::Integer}, of.batch)));
    }
  CHECK(folded > 2);
  CHECK(kept > 2);
}
