// What reading a model takes from files of the world, and refuses of hostile ones at once: before memory is asked for.
#include <sys/resource.h>

#include <chrono>

#include "engine/file/packed_file.h"
#include "engine/gemm/gemm_packed.h"
#include "engine/grid/affine.h"
#include "tests/model_fixtures.h"

using namespace bcq;
using namespace bcq::test;

namespace {

const std::string kVitHf = "tests/fixtures/vit_hf", kDeitHf = "tests/fixtures/deit_hf",
                  kSwinHf = "tests/fixtures/swin_hf";

int64_t peak_mb() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

// A packed layer of 64 inputs and 32 outputs, 4 bits in two groups of 32, all codes 5.
struct Packed {
  json q = {{"bits", 4}, {"group_size", 32}, {"quant_method", "gptq"}, {"checkpoint_format", "gptq"}, {"sym", true}};
  std::map<std::string, TensorInfo> tensors = {{"a.qweight", store({8, 32}, std::vector<int32_t>(256, 0x55555555))},
                                               {"a.qzeros", store({2, 4}, std::vector<int32_t>(8, 0x77777777))},
                                               {"a.scales", store(ones({2, 32}), DType::F16, "scales")}};
  json second = nullptr;  // quantize_config.json

  static Tensor ones(const Shape& shape) {
    Tensor t(shape);
    std::fill_n(t.data, t.size(), 1.f);
    return t;
  }
  void zeros(uint32_t word) {
    tensors["a.qzeros"] = store({2, 4}, std::vector<int32_t>(8, static_cast<int32_t>(word)));
  }
  Affine load() const {
    const Folder folder;
    write_safetensors(folder.file("m.safetensors"), tensors);
    if (!second.is_null()) write_text(folder.file("quantize_config.json"), second.dump());
    const SafeTensors file = SafeTensors::open(folder.file("m.safetensors"));
    const auto format = read_packed_format({{"quantization_config", q}}, "config.json", folder.path, file);
    return get_packed(Loader(file, nullptr, format).sub("a"), 32, 64).grid();
  }
  float zero() const { return load().zero[37]; }
  std::string refusal() const {
    return message_of<InputError>([&] { load(); });
  }
};

}  // namespace

TEST_CASE("reading: hostile sizes are refused at once and with little memory") {
  struct Case {
    std::string fixture;
    const char* key;  // of model_args for timm's, else of the config
    json value;
  };
  const Case cases[] = {{kSwin, "mlp_ratio", 1e-9},
                        {kSwin, "mlp_ratio", -4},
                        {kSwin, "img_size", 32768},
                        {kSwin, "window_size", 1099511627776},
                        {kSwin, "depths", {2, 1000000000}},
                        {kSwin, "embed_dim", 4294967304},
                        {kSwin, "num_heads", {0, 4}},
                        {kSwin, "patch_size", 0},
                        {kVit, "embed_dim", 1200000000},
                        {kVit, "mlp_ratio", 1e-9},
                        {kVit, "mlp_ratio", 1e300},
                        {kVit, "depth", 4294967298},
                        {kVit, "num_heads", 0},
                        {kVit, "patch_size", 1LL << 62},
                        {kVit, "img_size", -12},
                        {kVit, "embed_dim", 24.0},
                        {kVitHf, "hidden_size", 0},
                        {kVitHf, "hidden_size", 1LL << 40},
                        {kVitHf, "intermediate_size", -1},
                        {kVitHf, "num_hidden_layers", 1LL << 33},
                        {kSwinHf, "window_size", 0},
                        {kSwinHf, "image_size", 1LL << 31},
                        {kSwinHf, "depths", {2.5, 1}},
                        {kOpt, "hidden_size", 1LL << 40},
                        {kOpt, "vocab_size", 1LL << 50},
                        {kOpt, "max_position_embeddings", 1LL << 40},
                        {kOpt, "num_hidden_layers", 1 << 30},
                        {kBloom, "n_head", 1LL << 62},
                        {kBloom, "layer_norm_epsilon", -1},
                        {kBloom, "hidden_size", 0}};
  const int64_t before = peak_mb();
  for (const Case& c : cases) {
    CAPTURE(c.fixture);
    CAPTURE(c.key);
    Variant v(c.fixture);
    (v.config.contains("model_args") ? v.config["model_args"] : v.config)[c.key] = c.value;
    const auto start = std::chrono::steady_clock::now();
    const std::string message = v.refusal();
    CHECK(contains(message, c.key));
    CHECK(contains(message, "config.json"));
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
  }
  // Sizes that are possible, but not those of the file.
  Variant grid(kSwin), window(kSwin);
  grid.config["model_args"]["img_size"] = 6144;
  window.config["model_args"]["img_size"] = 192;
  window.config["model_args"]["window_size"] = 48;
  window.config["pretrained_cfg"]["input_size"] = {3, 192, 192};
  grid.config["pretrained_cfg"]["input_size"] = {3, 6144, 6144};
  CHECK(contains(grid.refusal(), "too large"));
  CHECK(contains(window.refusal(), "relative_position_bias_table"));
  CHECK(peak_mb() - before < 100);
}

TEST_CASE("reading: numbers of labels, and none") {
  for (const std::string& fixture : {kVitHf, kDeitHf, kSwinHf}) {
    CAPTURE(fixture);
    Variant v(fixture);
    json names;
    for (int i = 0; i < 7; ++i) names[std::to_string(i)] = "class " + std::to_string(6 - i);
    v.config["id2label"] = names;
    v.config.erase("label2id");
    CHECK(v.load()->info().outputs == 7);
    CHECK(v.load()->info().labels.at(2) == "class 4");
    v.config["label2id"] = {{"class 6", 0}, {"class 5", "1"}};
    CHECK(v.load()->info().notes.size() == 1);  // of the preprocessing
    v.config["label2id"]["class 0"] = 0;
    CHECK(contains(v.load()->info().notes.back(), "label2id and id2label disagree on \"class 0\""));
    v.config["id2label"].erase("3");
    CHECK(contains(v.refusal(), "id2label"));
    v.config.erase("id2label");  // transformers leaves out its two default labels
    v.config.erase("label2id");
    CHECK(v.load()->info().outputs == 7);
    CHECK(v.load()->info().labels.empty());
    CHECK(contains(v.load()->info().notes.back(), "no id2label: 7 classes, as many as the head has rows"));
    v.config["num_labels"] = 3;
    CHECK(contains(v.refusal(), "classifier"));
  }
  Variant v(kVit);
  CHECK(v.load()->info().labels.empty());
  v.config["label_names"] = {"a", "b", "c", "d", "e", "f", "g"};
  CHECK(v.load()->info().labels.at(6) == "g");
  v.config["label_names"].push_back("h");
  CHECK(contains(v.refusal(), "8 names, but num_classes is 7"));
  v.config["label_names"] = {1, 2};
  CHECK(contains(v.refusal(), "label_names"));
}

TEST_CASE("reading: a pooler that a classifier never applies may be left over") {
  for (const char* fixture : {"vit", "deit"}) {
    Variant v("tests/fixtures/" + std::string(fixture) + "_hf");
    const auto parameters = v.load()->info().parameters;
    v.tensors[std::string(fixture) + ".pooler.dense.weight"] = random({24, 24}, 1);
    v.tensors[std::string(fixture) + ".pooler.dense.bias"] = random({24}, 1);
    CHECK(v.load()->info().parameters == parameters);
    v.tensors[std::string(fixture) + ".embeddings.mask_token"] = random({1, 1, 24}, 1);  // of the pre-training
    CHECK(v.load()->info().parameters == parameters);
    v.tensors[std::string(fixture) + ".embeddings.unknown"] = random({1, 1, 24}, 1);
    CHECK(contains(v.refusal(), "unknown"));
  }
}

TEST_CASE("reading: a list where a number is usual") {
  Variant vit(kVitHf), swin(kSwinHf), timm(kVit), old(kSwin);
  const Tensor want = timm.load()->forward(kFloat, vit_batch());
  vit.config["image_size"] = {vit.config["image_size"], vit.config["image_size"]};
  vit.config["patch_size"] = {vit.config["patch_size"], vit.config["patch_size"]};
  CHECK(vit.refusal() == "");
  swin.config["window_size"] = {swin.config["window_size"], swin.config["window_size"]};
  CHECK(swin.refusal() == "");
  timm.config["model_args"]["img_size"] = {12, 12};
  timm.config["model_args"]["attn_drop_rate"] = 0.1;
  timm.config["model_args"]["pos_drop_rate"] = 0.1;
  CHECK(same_bits(timm.load()->forward(kFloat, vit_batch()), want));
  old.config["model_args"]["window_size"] = {old.config["model_args"]["window_size"], 1};
  CHECK(contains(old.refusal(), "window_size"));
}

TEST_CASE("reading: timm's models as transformers wraps them") {
  for (const std::string& fixture : {kVit, kDeit, kSwin}) {
    CAPTURE(fixture);
    Variant v(fixture);
    const Tensor want = v.load()->forward(kFloat, pixels_of(fixture));
    v.config["model_type"] = "timm_wrapper";
    v.config["architectures"] = {"TimmWrapperForImageClassification"};
    v.config["do_pooling"] = true;
    CHECK(same_bits(v.load()->forward(kFloat, pixels_of(fixture)), want));
    std::vector<std::string> names;
    for (const auto& entry : v.tensors) names.push_back(entry.first);
    for (const std::string& name : names) v.rename(name, "timm_model." + name);
    const auto model = v.load();
    CHECK(same_bits(model->forward(kFloat, pixels_of(fixture)), want));
    CHECK(model->info().parameters == load_model(fixture)->info().parameters);
  }
}

TEST_CASE("reading: an MLP is as wide as intermediate_size, also where the quotient is rounded down") {
  for (const int64_t wide : {39, 40, 41, 43, 57, 58, 59, 61, 107, 115}) {  // 24 * (57 / 24.) and others
    Variant v(kVitHf);
    const auto dim = v.config["hidden_size"].get<int64_t>();
    v.config["intermediate_size"] = wide;
    for (auto& [name, t] : v.tensors) {
      if (contains(name, "intermediate.dense.weight")) t = random({wide, dim}, 1);
      if (contains(name, "intermediate.dense.bias")) t = random({wide}, 1);
      if (contains(name, ".output.dense.weight") && !contains(name, "attention")) t = random({dim, wide}, 1);
    }
    CHECK(v.refusal() == "");
  }
}

TEST_CASE("reading: a head that is said not to be tied, and is") {
  for (const auto& [fixture, embed] :
       {std::pair{kOpt, "model.decoder.embed_tokens.weight"}, {kBloom, "transformer.word_embeddings.weight"}}) {
    Variant v(fixture);
    const Tensor want = v.load()->forward(kFloat, ids_of(fixture));
    v.config["tie_word_embeddings"] = false;
    CHECK(contains(v.refusal(), "tie_word_embeddings"));
    v.tensors["lm_head.weight"] = v.tensors[embed].clone();
    CHECK(same_bits(v.load()->forward(kFloat, ids_of(fixture)), want));
    v.tensors["lm_head.weight"][3] *= 1.01f;
    CHECK(contains(v.refusal(), "lm_head.weight differs"));
  }
}

TEST_CASE("reading: zero points of a symmetric quantization tell the format") {
  Packed p;
  CHECK(p.zero() == 8);  // v1, as it says
  p.zeros(0x88888888);   // v2's zeros under v1's name
  CHECK(p.zero() == 8);
  p.q["checkpoint_format"] = "gptq_v2";
  CHECK(p.zero() == 8);
  p.zeros(0x77777777);
  CHECK(p.zero() == 8);
  p.q.erase("sym");
  CHECK(p.zero() == 8);
  p.q["sym"] = false;  // then the name decides
  CHECK(p.zero() == 7);
  p.q["checkpoint_format"] = "gptq";
  CHECK(p.zero() == 8);
  p.zeros(0x88888888);
  CHECK(p.zero() == 9);
  p.q["dynamic"] = {{"+:a", {{"sym", true}}}};  // says it of some layers alone
  p.zeros(0x22222222);
  CHECK(p.zero() == 3);
}

TEST_CASE("reading: fields of a packed model that contradict each other are refused") {
  const auto refusal = [](const std::function<void(Packed&)>& change) {
    Packed p;
    change(p);
    return p.refusal();
  };
  const auto g_idx = [](std::vector<int32_t> groups) {
    return [groups](Packed& p) { p.tensors["a.g_idx"] = store({64}, groups); };
  };
  std::vector<int32_t> order(64), swapped(64);
  for (size_t c = 0; c < 64; ++c) {
    order[c] = static_cast<int32_t>(c / 32);
    swapped[c] = static_cast<int32_t>(c % 2);
  }
  CHECK(refusal([](Packed&) {}) == "");
  CHECK(contains(refusal([](Packed& p) { p.zeros(0x77877777); }), "sym is true"));
  CHECK(contains(refusal([](Packed& p) { p.zeros(0x55555555); }), "a.qzeros"));
  CHECK(contains(refusal([](Packed& p) { p.q["bits"] = 4294967300; }), "bits"));
  CHECK(contains(refusal([](Packed& p) { p.q["bits"] = "4"; }), "bits"));
  CHECK(contains(refusal([](Packed& p) { p.q["group_size"] = -7; }), "group_size"));
  CHECK(contains(refusal([](Packed& p) { p.q["format"] = "gptq_v2"; }), "checkpoint_format is \"gptq\", but format"));
  CHECK(contains(refusal([](Packed& p) { p.second = {{"bits", 8}}; }), "quantize_config.json"));
  CHECK(contains(refusal([](Packed& p) { p.second = {{"bits", 4}, {"sym", false}}; }), "sym"));
  CHECK(refusal([](Packed& p) { p.second = {{"bits", 4}, {"damp_percent", 0.1}}; }) == "");
  CHECK(contains(refusal(g_idx(std::vector<int32_t>(64, 0))), "more than 32 columns are in group 0"));
  CHECK(refusal(g_idx(order)) == "");
  CHECK(refusal(g_idx(swapped)) == "");
  CHECK(refusal([](Packed& p) { p.tensors["a.g_idx"] = store(Shape{0}, std::vector<int32_t>{}); }) == "");
  CHECK(contains(refusal([](Packed& p) {
                   p.q["dynamic"] = {{"+:x", {{"bits", 8}}}};
                   p.tensors["a.scales"] = store(Packed::ones({}), DType::F16, "scales");
                 }),
                 "has shape [], but scales"));
  CHECK(contains(refusal([](Packed& p) { p.tensors["a.qweight"] = store(Shape{}, std::vector<int32_t>{1}); }),
                 "a.qweight"));
  CHECK(contains(refusal([](Packed& p) { p.q = json::array(); }), "must be a JSON object"));
}

TEST_CASE("reading: broken configurations are input errors with the file's name") {
  const std::pair<const char*, const char*> files[] = {
      {"config.json", "[]"},
      {"config.json", "null"},
      {"config.json", "{\"architecture\": 7}"},
      {"config.json", "{\"model_type\": [\"opt\"]}"},
      {"config.json", "{\"architecture\": \"vit_tiny_patch16_224\", \"model_args\": 3}"},
      {"config.json", "{\"architecture\": \"vit_tiny_patch16_224\", \"pretrained_cfg\": []}"},
      {"config.json", "{\"model_type\": \"bloom\", \"quantization_config\": 4}"},
      {"config.json", "{\"model_type\": \"vit\", \"id2label\": 4}"}};
  for (const auto& file : files) {
    const char *name = file.first, *text = file.second;
    CAPTURE(text);
    Variant v(kVit);
    v.load();
    write_text(v.folder.file(name), text);
    CHECK(contains(message_of<InputError>([&] { load_model(v.folder.path); }), name));
  }
  Variant v(kVitHf);
  v.load();
  write_text(v.folder.file("preprocessor_config.json"), "[]");
  CHECK(contains(message_of<InputError>([&] { load_model(v.folder.path); }), "preprocessor_config.json"));
  write_text(v.folder.file("preprocessor_config.json"), std::string(100000, '['));
  CHECK(contains(message_of<InputError>([&] { load_model(v.folder.path); }), "deeper than"));
}

TEST_CASE("reading: keys of pretrained_cfg that would change the network or are unknown are refused") {
  const std::pair<const char*, json> settings[] = {
      {"label_offset", 1}, {"state_dict", {{"a", 1}}}, {"crop_border_pixels", 4}, {"num_classes", 2.5}};
  for (const auto& [name, value] : settings) {
    const char* key = name;
    CAPTURE(key);
    Variant v(kVit);
    v.config["pretrained_cfg"][key] = value;
    CHECK(contains(v.refusal(), key));
  }
  Variant v(kVit);
  for (const char* key : {"license", "origin_url", "min_input_size", "label_offset"})
    v.config["pretrained_cfg"][key] = nullptr;
  CHECK(v.refusal() == "");
}
