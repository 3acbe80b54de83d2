// Quantized models as files: GPTQ checkpoints others wrote, folders written here and read back to the last bit,
// refusals, and files that are not what they should be.
#include <doctest/doctest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <thread>

#include "engine/core/check.h"
#include "engine/core/half.h"
#include "engine/file/json.h"
#include "engine/grid/affine.h"
#include "engine/kernels/kernels.h"
#include "eval/resume.h"
#include "eval/save.h"
#include "quant/allocation.h"
#include "quant/bias_comp.h"
#include "quant/weight_methods.h"
#include "tests/model_fixtures.h"
#include "tests/quantize.h"
#include "tests/saved_models.h"
#include "tests/support.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

TEST_CASE("16-bit floats: every one comes back, and what lies between is rounded half to even") {
  for (uint32_t h = 0; h < 0x7c00; ++h) {
    const auto half = static_cast<uint16_t>(h), next = static_cast<uint16_t>(h + 1);
    float x, y;
    kernels().from_f16(&half, &x, 1);
    kernels().from_f16(&next, &y, 1);
    REQUIRE(to_f16(x) == h);
    REQUIRE(to_f16(-x) == (h | 0x8000));
    if (next == 0x7c00) break;
    const float middle = x + (y - x) / 2;
    REQUIRE(to_f16(middle) == (h & 1 ? next : half));
    REQUIRE(to_f16(std::nextafter(middle, x)) == h);
    REQUIRE(to_f16(std::nextafter(middle, y)) == next);
  }
  CHECK(to_f16(65519.996f) == 0x7bff);
  CHECK(to_f16(65520.f) == 0x7c00);
  CHECK(to_bf16(1.00390625f) == 0x3f80);  // half-way to the next
  CHECK(to_bf16(1.01171875f) == 0x3f82);
}

TEST_CASE("GPTQ checkpoints written by GPTQModel's packing: its dequantized weights, transformers' logits") {
  for (const auto& entry : fs::directory_iterator(kFixtures + "gptq")) {
    const std::string folder = entry.path().string();
    CAPTURE(folder);
    const auto model = load_model(folder);
    const SafeTensors want = SafeTensors::open(folder + "/reference.st");
    CHECK(model->info().packed);
    for (const Layer* layer : model->all_layers()) {
      CAPTURE(layer->name);
      REQUIRE(layer->packed());
      CHECK(same_bits(layer->weight.values(), want.get(layer->name + ".weight")));
      CHECK(same_bits(layer->weight_in(Precision::Fake).values(), layer->weight.values()));
    }
    Shape shape;
    const auto ids = want.get_ints("input_ids", &shape);
    const Batch batch = batch_of({ids.begin(), ids.end()}, shape[0]);
    CHECK(relative_error(model->forward(kFake, batch), want.get("logits")) < 1e-5);
    CHECK(same_bits(model->forward(kFake, batch), model->forward(kFloat, batch)));
  }
}

TEST_CASE("own format: every width, group and order comes back to the last bit") {
  for (int bits = 2; bits <= 8; ++bits) {
    const int64_t group = std::vector<int64_t>{-1, 7, 8}[static_cast<size_t>(bits % 3)];
    CAPTURE(bits);
    CAPTURE(group);
    const Folder folder;
    const auto model = load_model(kFixtures + "opt_tiny");
    quantize_rtn(*model, grid_of(bits, group, bits % 2 == 0, bits == 3));
    if (group == 8) scatter(*model);
    const Saved saved = check_saved(*model, "bcq", bits, group, folder);
    CHECK(saved.bits_per_weight > bits);
  }
}

TEST_CASE("own format: compensations, layers of their own width, layers left alone") {
  for (const char* fixture : {"opt_tiny", "opt_post_tiny", "opt_plain_tiny", "bloom_tiny", "llama_tiny", "mistral_tiny",
                              "qwen2_tiny", "qwen3_tiny"})
    for (const BcShape shape : {BcShape::Channel, BcShape::Position}) {
      CAPTURE(fixture);
      const Folder folder;
      const auto model = load_model(kFixtures + fixture);
      const LayerBits bits = allocate_bits(*model, {"0.*(fc1|h_to_4h|up_proj)=7"}, {"1.*(out_proj|dense|o_proj)$"});
      quantize_rtn(*model, grid_of(3, -1), bits);
      BcOptions o;
      o.shape = shape;
      o.block = true;
      compensate(*model, {kBatch}, o, kSilent);
      check_saved(*model, "bcq", 3, -1, folder);
      if (shape == BcShape::Position) {
        const auto loaded = load_model(folder.file("saved"));
        Batch longer = batch_of(std::vector<int32_t>(18, 3), 2);
        CHECK(contains(message_of<Error>([&] { loaded->forward(kFake, longer); }), "fewer positions"));
      }
    }
}

// Of a LLaMA, whose configuration says whether there are any.
void drop_biases(Variant& v) {
  std::erase_if(v.tensors, [](const auto& entry) { return entry.first.ends_with(".bias"); });
  v.config.erase("attention_bias");
  v.config.erase("mlp_bias");
}

TEST_CASE("GPTQ's format: layers without a bias get one by the key that gives it to transformers' model") {
  for (const bool linear : {true, false}) {  // all biases, or those of the blocks' outputs alone
    CAPTURE(linear);
    Variant v(kLlamaBias);
    drop_biases(v);
    v.config["tie_word_embeddings"] = false;
    v.tensors["lm_head.weight"] = random({53, 32}, 1);
    const auto model = v.load();
    quantize_rtn(*model, grid_of(4, 32, true, true));
    BcOptions o;
    o.linear = linear;
    o.block = true;
    compensate(*model, {kBatch}, o, kSilent);
    const int64_t mlp = 64 + 64 + 32, all = mlp + 4 * 32;
    CHECK(added_values(*model) == (linear ? all : 32));
    const Folder folder;
    save_model(*model, to(folder, "gptq"), facts(4, 32));
    const auto loaded = load_model(folder.file("saved"));
    check_same(*model, *loaded);
    const json config = read_json(folder.file("saved/config.json"));
    CHECK(config["mlp_bias"] == true);
    CHECK(config.value("attention_bias", false) == linear);
    const SafeTensors file = SafeTensors::open(folder.file("saved/model.safetensors"));
    CHECK(file.has("model.layers.0.self_attn.q_proj.bias") == linear);
    CHECK((max_abs(doubles(file.get("model.layers.0.mlp.up_proj.bias"))) > 0) == linear);
    CHECK(same_bits(file.get("lm_head.weight"), v.tensors["lm_head.weight"]));
    CHECK(loaded->info().parameters == model->info().parameters + (linear ? all : mlp));
  }
}

TEST_CASE("GPTQ's format: a bias that transformers' model has no place for is refused before it is computed") {
  const auto refusal = [](const Variant& v, BcForm bc, const std::string& sites) {
    Recipe r = recipe_of(Family::Language);
    r.weights.groupsize = -1;
    r.weights.bits = 4;
    r.bc = bc;
    r.bc_sites = sites;
    const auto model = v.load();
    return message_of<UsageError>([&] { check_format({"saved", "gptq", false}, *model, r); });
  };
  Variant v(kLlamaBias);
  CHECK(refusal(v, BcForm::Channel, "linear,block") == "");
  drop_biases(v);
  CHECK(refusal(v, BcForm::Channel, "linear,block") == "");
  v.config["model_type"] = "mistral";
  CHECK(refusal(v, BcForm::None, "linear,block") == "");
  CHECK(contains(refusal(v, BcForm::Channel, "linear,block"), "layers.0.self_attn.q_proj: in transformers' mistral"));
  CHECK(contains(refusal(v, BcForm::Channel, "block"), "layers.0.mlp.down_proj"));
  v.config["model_type"] = "qwen3";
  v.config["head_dim"] = 8;
  for (const char* norm : {"q_norm", "k_norm"})
    v.tensors[format("model.layers.0.self_attn.%s.weight", norm)] = random({8}, 1);
  CHECK(refusal(v, BcForm::None, "linear") == "");
  CHECK(contains(refusal(v, BcForm::Channel, "linear"), "layers.0.mlp.gate_proj"));
}

TEST_CASE("GPTQ's format: widths, groups, order and compensation come back to the last bit") {
  for (const int bits : {2, 3, 4, 8})
    for (const bool sym : {true, false}) {
      CAPTURE(bits);
      CAPTURE(sym);
      const Folder folder;
      const auto model = load_model(kMini);
      const int64_t group = bits == 8 ? -1 : 32;
      quantize_rtn(*model, grid_of(bits, group, sym, true));
      if (bits == 3) scatter(*model);
      BcOptions o;
      o.block = true;
      compensate(*model, {kBatch}, o, kSilent);
      const Saved saved = check_saved(*model, "gptq", bits, group, folder);
      // 16-bit scales and `bits`-bit zero points a group, 32 bits of g_idx a column: no layer is smaller than [128,
      // 128]
      const double groups = group < 0 ? 1 / 128. : 1 / 32.;
      CHECK(saved.bits_per_weight > bits);
      CHECK(saved.bits_per_weight <= bits + groups * (16 + bits) + 32. / 128);
      CHECK(saved.bytes < saved.bytes_before);

      const json config = read_json(folder.file("saved/config.json"))["quantization_config"];
      CHECK(config == read_json(folder.file("saved/quantize_config.json")));
      CHECK(config["checkpoint_format"] == (sym ? "gptq" : "gptq_v2"));
      CHECK(config["sym"] == sym);
      CHECK(config["desc_act"] == (bits == 3));
      CHECK(config["group_size"] == group);
      CHECK(read_json(folder.file("saved/config.json"))["torch_dtype"] == "float16");
      CHECK(fs::exists(folder.file("saved/tokenizer.json")));
      const SafeTensors file = SafeTensors::open(folder.file("saved/model.safetensors"));
      CHECK(file.tensors().at("model.decoder.layers.0.fc1.scales").dtype == DType::F16);
      CHECK(file.tensors().at("model.decoder.layers.0.fc1.bias").dtype == DType::F16);
      CHECK(file.tensors().at("model.decoder.layers.0.fc1.qweight").shape == Shape{128 / 32 * bits, 512});
      CHECK(file.tensors().at("model.decoder.embed_tokens.weight").dtype == DType::F32);
      if (sym) {  // the words a symmetric v1 file is full of
        const std::map<int, uint32_t> fill = {{2, 0x55555555}, {4, 0x77777777}, {8, 0x7f7f7f7f}};
        Shape shape;
        for (const int64_t word : file.get_ints("model.decoder.layers.0.fc1.qzeros", &shape))
          if (fill.count(bits)) CHECK(static_cast<uint32_t>(word) == fill.at(bits));
      }
    }
}

TEST_CASE("saving is refused before it is too late") {
  const auto mini = load_model(kMini), tiny = load_model(kFixtures + "opt_tiny"),
             plain = load_model(kFixtures + "opt_plain_tiny");
  const Folder folder;
  const auto refusal = [&](Model& model, int bits, int64_t group, bool per_position) {
    Recipe r = recipe_of(Family::Language);
    r.weights.groupsize = group;
    r.weights.bits = bits;
    if (per_position) r.bc = BcForm::Position;
    return message_of<UsageError>([&] { check_format(to(folder, "gptq"), model, r); });
  };
  CHECK(refusal(*mini, 4, 128, false) == "");
  CHECK(contains(refusal(*mini, 5, 128, false), "5 bits of layers.0.self_attn.q_proj"));
  CHECK(contains(refusal(*mini, 4, 100, false), "--groupsize 100"));
  CHECK(contains(refusal(*mini, 4, 256, false), "--groupsize 256"));
  CHECK(contains(refusal(*mini, 4, 128, true), "bias per position"));
  CHECK(contains(refusal(*tiny, 4, -1, false), "multiples of 32"));

  const auto target = [&](const std::string& path, bool force = false) {
    return message_of<UsageError>([&] { check_target({path, "bcq", force}, mini->info().weights); });
  };
  CHECK(target(folder.file("new")) == "");
  CHECK(target(folder.file("new/")) == "");
  CHECK(contains(target(folder.file("no/such")), "is not a folder"));
  fs::create_directory(folder.file("empty"));
  CHECK(target(folder.file("empty")) == "");
  write_text(folder.file("empty/notes.txt"), "mine");
  CHECK(contains(target(folder.file("empty")), "--force"));
  CHECK(target(folder.file("empty"), true) == "");
  CHECK(contains(target(folder.file("empty/notes.txt"), true), "not a folder"));
  CHECK(contains(target(kMini, true), "the model itself"));
  CHECK(contains(target("data", true), "the model itself"));
}

TEST_CASE("a saved folder replaces one of ours, and is written whole or not at all") {
  const Folder folder;
  const auto model = load_model(kFixtures + "opt_tiny");
  quantize_rtn(*model, grid_of(4, -1));
  check_saved(*model, "bcq", 4, -1, folder);
  CHECK(message_of<Error>([&] { check_target(to(folder, "bcq"), model->info().weights); }) == "");
  quantize_rtn(*model, grid_of(2, -1));
  check_saved(*model, "bcq", 2, -1, folder);
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);

  model->all_layers()[0]->bias.compensated = Tensor({16}, std::vector<float>(16, INFINITY));
  CHECK(contains(message_of<Error>([&] { save_model(*model, {folder.file("other")}, facts(2, -1)); }), "not finite"));
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
}

TEST_CASE("a saved folder is there at every moment while another takes its place") {
  const Folder folder;
  const auto model = load_model(kFixtures + "opt_tiny");
  quantize_rtn(*model, grid_of(4, -1));
  const SaveOptions save = to(folder, "bcq");
  save_model(*model, save, facts(4, -1));
  std::atomic<bool> stop = false;
  int64_t looks = 0, missing = 0;
  std::thread reader([&] {
    for (; !stop; ++looks) missing += !fs::exists(folder.file("saved/config.json"));
  });
  for (int i = 0; i < 30; ++i) save_model(*model, save, facts(4, -1));
  stop = true;
  reader.join();
  CHECK(looks > 0);
  CHECK(missing == 0);
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
}

TEST_CASE("a folder that a link points to or that is mounted is filled, and the link or mount stays") {
  const Folder folder;
  const auto model = load_model(kFixtures + "opt_tiny");
  quantize_rtn(*model, grid_of(4, -1));
  const auto save = [&](const std::string& name) {
    const SaveOptions options{folder.file(name), "bcq", false};
    check_target(options, model->info().weights);
    save_model(*model, options, facts(4, -1));
    check_same(*model, *load_model(folder.file(name)));
  };
  fs::create_directories(folder.file("disk/a"));
  fs::create_directory_symlink("disk/a", folder.file("link"));
  save("link");
  save("link");
  CHECK(fs::is_symlink(folder.file("link")));
  CHECK(fs::exists(folder.file("disk/a/config.json")));
  CHECK(partial_folder({folder.file("link"), "bcq", false}) ==
        fs::weakly_canonical(folder.file("disk/a.partial")).string());
  fs::create_directory(folder.file("mounted"));
  if (::mount("bcq", folder.file("mounted").c_str(), "tmpfs", 0, nullptr) != 0) {
    MESSAGE("skipped: nothing can be mounted here");
    return;
  }
  save("mounted");
  save("mounted");
  CHECK(::umount(folder.file("mounted").c_str()) == 0);
  CHECK(fs::is_empty(folder.file("mounted")));
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 3);
}

TEST_CASE("packed files that are not what they should be are refused by file and tensor") {
  for (const std::string format : {"bcq", "gptq"}) {
    const Folder folder;
    const auto model = load_model(kMini);
    quantize_rtn(*model, grid_of(4, 32, true, true));
    scatter(*model);
    save_model(*model, to(folder, format), facts(4, 32));
    const std::string path = folder.file("saved/model.safetensors"), config_path = folder.file("saved/config.json");
    const auto good = SafeTensors::open(path).tensors();
    const json config = read_json(config_path);
    const std::string layer = "model.decoder.layers.2.fc2";

    // The message after `change` edited the tensors or the configuration.
    const auto refusal = [&](const std::function<void(std::map<std::string, TensorInfo>&, json&)>& change) {
      const std::string copy = folder.file("copy");
      fs::remove_all(copy);
      fs::create_directory(copy);
      auto tensors = good;
      json edited = config;
      change(tensors, edited["quantization_config"]);
      if (edited["quantization_config"].is_null()) edited.erase("quantization_config");
      write_safetensors(copy + "/model.safetensors", tensors);
      write_text(copy + "/config.json", edited.dump());
      return message_of<InputError>([&] { load_model(copy); });
    };
    CHECK(refusal([](auto&, json&) {}) == "");
    for (const char* part : {".qweight", ".qzeros", ".scales", ".bias"}) {
      const std::string name = layer + part;
      const std::string missing = refusal([&](auto& t, json&) { t.erase(name); });
      CHECK_MESSAGE(contains(missing, name), missing);
      const std::string shape = refusal([&](auto& t, json&) { t[name] = t[layer + ".g_idx"]; });
      CHECK_MESSAGE(contains(shape, name), shape);
      CHECK_MESSAGE(contains(shape, "copy/model.safetensors"), shape);
    }
    const auto g_idx = [&](int32_t bad) {
      return refusal([&](auto& t, json&) {
        std::vector<int32_t> values(512);
        for (size_t c = 0; c < 512; ++c) values[c] = static_cast<int32_t>(c / 32);
        std::swap(values[77], values[511]);
        values[77] = bad;
        t[layer + ".g_idx"] = store({512}, values);
      });
    };
    CHECK(g_idx(15) == "");
    CHECK(contains(g_idx(16), "column 77 is in group 16, but there are 16"));
    CHECK(contains(g_idx(-1), layer + ".g_idx"));
    CHECK(contains(refusal([&](auto& t, json&) { t[layer + ".g_idx"] = store({3}, {0, 0, 0}); }), layer + ".g_idx"));
    CHECK(contains(refusal([&](auto& t, json&) { t[layer + ".scales"].dtype = DType::I16; }), layer + ".scales"));

    CHECK(contains(refusal([](auto&, json& q) { q["bits"] = 3; }), "has 4 bits by its shape"));
    CHECK(contains(refusal([](auto&, json& q) { q["bits"] = 9; }), "bits 9"));
    CHECK(contains(refusal([](auto&, json& q) { q.erase("bits"); }), "\"bits\" is missing"));
    CHECK(contains(refusal([](auto&, json& q) { q["group_size"] = 64; }), ".scales"));
    CHECK(contains(refusal([](auto&, json& q) { q["group_size"] = 0; }), "group_size 0"));
    CHECK(contains(refusal([](auto&, json& q) { q["quant_method"] = "awq"; }), "\"awq\""));
    CHECK(contains(refusal([](auto&, json& q) { q = nullptr; }), "packed, but neither"));
    if (format == "gptq") {
      CHECK(contains(refusal([](auto&, json& q) { q["checkpoint_format"] = "marlin"; }), "\"marlin\""));
      CHECK(contains(refusal([&](auto& t, json& q) {
                       q["sym"] = false;
                       t[layer + ".qzeros"] = store({16, 16}, std::vector<int32_t>(256, -1));
                     }),
                     "overflowed"));
    } else {
      CHECK(contains(refusal([](auto&, json& q) { q["format_version"] = 2; }), "newer than this program"));
    }
  }
}
