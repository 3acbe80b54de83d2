// All networks alike: what loading reads and refuses, batches, threads and compensation of blocks.
#include "engine/kernels/kernels.h"
#include "quant/bias_comp.h"
#include "tests/model_fixtures.h"

using namespace bcq;
using namespace bcq::test;

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
    Batch many;  // parts of one and of two images, and one that is left over
    Shape shape = images.pixels.shape;
    shape[0] = 7;
    many.pixels = Tensor(shape);
    const int64_t n = many.pixels.size() / 7;
    for (int64_t b = 0; b < 7; ++b) std::copy_n(images.pixels.data + b % 2 * n, n, many.pixels.data + b * n);
    CHECK(same_on_two_threads([&] { return model->forward(kFloat, many); }));
    const Tensor all = model->forward(kFloat, many);
    for (int64_t b = 0; b < 7; ++b) CHECK(same_bits(sample(all, b), sample(logits, b % 2)));
    for (int again = 0; again < 2; ++again) {
      model->make_panels();
      for (const Layer* layer : model->all_layers())
        CHECK((layer->weight.panels() != nullptr) == (layer->is_linear() && layer->role != Role::Head));
      CHECK(same_bits(model->forward(kFloat, images), logits));
    }
  }
  for (const std::string& fixture : {kOpt, kBloom, kLlama}) {
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
    CHECK_THROWS_AS(model->make_panels(), Error);
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
  CHECK(opt->layers(-1).empty());
  CHECK(opt->layers(2).empty());
  // the same formulas at the published sizes
  CHECK(vit_parameters(768, 12, 3072, 16, 197, 1000) == 86'567'656);
  CHECK(vit_parameters(384, 12, 1536, 16, 197, 1000) == 22'050'664);
  CHECK(opt_parameters(768, 12, 3072, 50272, 2048) == 125'239'296);
  CHECK(load_model(kOptPost)->info().parameters == opt_post_parameters(16, 12, 2, 40, 53, 24));
  CHECK(opt_post_parameters(1024, 512, 24, 4096, 50272, 2048) == 331'196'416);
  CHECK(load_model(kBloom)->info().parameters == bloom_parameters(16, 2, 53));
  CHECK(bloom_parameters(1024, 24, 250880) == 559'214'592);
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
                                                       {kBloom, "transformer.ln_f.weight"},
                                                       {kLlama, "lm_head.weight"},
                                                       {kLlama, "model.norm.weight"},
                                                       {kLlama, "model.layers.1.self_attn.k_proj.weight"},
                                                       {kLlamaBias, "model.layers.0.mlp.down_proj.bias"},
                                                       {kQwen2, "model.embed_tokens.weight"},
                                                       {kQwen2, "model.layers.0.self_attn.v_proj.bias"},
                                                       {kQwen3, "model.layers.0.self_attn.q_norm.weight"}};
  for (const auto& entry : cases) {
    const std::string &fixture = entry.first, &name = entry.second;
    CAPTURE(std::string(name));
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

TEST_CASE("architectures this engine does not have are refused by name") {
  for (const char* name :
       {"resnet50", "swin_tiny_patch4_224", "deit5_small_patch16_224", "vit_gigantic_patch14_224", "vit_tiny_patch16",
        "vit_tiny_patch16_224_miil", "vit_tiny_patch016_224", "vit_tiny_r_s16_p8_224", "vit_"}) {
    Variant v(kVit);
    v.config["architecture"] = name;
    CHECK(contains(v.refusal(), name));
  }
  for (const char* type : {"gemma", "gpt2"}) {
    Variant v(kOpt);
    v.config["model_type"] = type;
    CHECK(contains(v.refusal(), type));
  }
  Variant v(kVit);
  v.config.erase("architecture");
  CHECK(v.refusal() != "");
}

TEST_CASE("16-bit files give the bits of their values in 32 bits") {
  for (const std::string& fixture : {kVit, kOptPost, kBloom, kLlama}) {
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
    const Layer& layer = *half->layers(0)[0];                         // its weight stays as it is stored
    CHECK(layer.weight.values().data != layer.weight.values().data);  // each time decoded
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
  const Tensor added = random({10, 24}, 2);
  model->part(1).output.add(added);
  CHECK(same_bits(model->block(kFloat, 1, x), y));
  CHECK(same_bits(model->block(fake, 0, x), model->block(kFloat, 0, x)));
  const Tensor z = model->block(fake, 1, x);
  for (int64_t i = 0; i < y.size(); ++i) CHECK(z[i] == y[i] + added[i % 240]);
  model->clear();
  CHECK(same_bits(model->block(fake, 1, x), y));
}

TEST_CASE("a vector that compensates a block goes into the vector the block ends in") {
  const Context fake{Precision::Fake, nullptr, nullptr};
  const std::pair<std::string, std::string> ends[] = {{kVit, "blocks.0.mlp.fc2.bias"},
                                                      {kOpt, "layers.0.fc2.bias"},
                                                      {kOptPost, "layers.0.final_layer_norm.bias"},
                                                      {kOptPlain, "layers.0.fc2.bias"},
                                                      {kLlama, "layers.0.mlp.down_proj.bias"},
                                                      {kBloom, "h.0.mlp.dense_4h_to_h.bias"}};
  for (const auto& entry : ends) {
    INFO(entry.first);
    const auto model = load_model(entry.first);
    const int64_t D = entry.first == kVit ? 24 : 16;
    const Tensor x = random({2, 10, D}, 1), y = model->block(kFloat, 0, x), b = random({D}, 2);
    CHECK(model->part(0).output.tensor == entry.second);
    model->part(0).output.add(b);
    const Tensor z = model->block(fake, 0, x);
    Tensor want = y.clone();
    add_broadcast(want, b.reshaped({1, D}));
    CHECK(relative_error(z, want) < 1e-6);
    CHECK(same_bits(model->block(kFloat, 0, x), y));
    CHECK(added_values(*model) ==
          (entry.first == kOptPlain || entry.first == kLlama ? D : 0));  // a bias there was none of
    model->clear_compensation();
    CHECK(same_bits(model->block(fake, 0, x), y));
  }
}
