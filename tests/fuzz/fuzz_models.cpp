// Weight files, configurations with the models they make, and quantized checkpoints.
#include <filesystem>

#include "engine/file/json.h"
#include "eval/save.h"
#include "models/model.h"
#include "quant/billm.h"
#include "quant/calibrate.h"
#include "quant/joint.h"
#include "tests/fuzz/fuzz.h"
#include "tests/quantize.h"

namespace bcq::fuzz {
namespace {

namespace fs = std::filesystem;
const std::string kFixtures = "tests/fixtures/";

void read_tensors(const std::string& path) {
  const SafeTensors file = SafeTensors::open(path);
  for (const auto& entry : file.tensors())
    refused_or_read([&] {
      Shape shape;
      file.get_ints(entry.first, &shape);
    });
  for (const auto& entry : file.tensors()) refused_or_read([&] { file.get(entry.first); });
}

// A file; its header and data; an index beside two files.
void run_safetensors(const std::string& whole) {
  std::string input = whole;
  const int form = choice(input, 3);
  const auto part = parts(input, 2);
  if (form == 0) refused_or_read([&] { read_tensors(put("a.safetensors", input)); });
  if (form == 1) refused_or_read([&] { read_tensors(put("a.safetensors", safetensors(part[0], part[1]))); });
  if (form != 2) return;
  put("b.safetensors", safetensors(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "12345678"));
  put("c.safetensors", safetensors(part[1], "12345678"));
  refused_or_read([&] { read_tensors(put("model.safetensors.index.json", part[0])); });
}

std::vector<std::string> safetensors_seeds() {
  std::vector<std::string> seeds;
  const std::pair<const char*, int> types[] = {{"BOOL", 1}, {"U8", 1},   {"I8", 1},  {"I16", 2}, {"U16", 2},
                                               {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},
                                               {"F64", 8},  {"I64", 8},  {"U64", 8}};
  for (const auto& [type, size] : types)
    seeds.push_back("\1" +
                    joined({format(R"({"__metadata__":{"format":"pt"},"a.b":{"dtype":"%s","shape":[%d,1],)"
                                   R"("data_offsets":[0,8]},"c":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})",
                                   type, 8 / size),
                            "0123456789abcdef"}));
  seeds.push_back(std::string(1, '\0') +
                  safetensors(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", "0000"));
  seeds.push_back("\2" +
                  joined({R"({"metadata":{"total_size":16},"weight_map":{"x":"b.safetensors","y":"c.safetensors"}})",
                          R"({"y":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"}));
  return seeds;
}

// Loads a folder, and computes with what it is where that is quick.
void run_folder(const std::string& folder) {
  const auto model = load_model(folder);
  const ModelInfo& info = model->info();
  Batch batch;
  if (info.family == Family::Vision) {
    if (info.image.height * info.image.width > 64 * 64) return;
    batch.pixels = Tensor({1, 3, info.image.height, info.image.width});
  } else {
    batch.windows = 1;
    batch.length = std::min<int64_t>(4, info.max_length);
    for (int64_t i = 0; i < batch.length; ++i) batch.ids.push_back(static_cast<int32_t>(i % info.outputs));
  }
  const Context ctx{info.packed ? Precision::Fake : Precision::Float};
  model->forward(ctx, batch);
}

const std::vector<std::string> kModels = {"opt_tiny", "opt_post_tiny", "opt_plain_tiny", "bloom_tiny",
                                          "vit_tiny", "deit_tiny",     "swin_tiny",      "vit_hf",
                                          "deit_hf",  "swin_hf",       "llama_tiny",     "qwen3_tiny"};

void run_model(const std::string& whole) {
  std::string input = whole;
  const std::string name = kModels[static_cast<size_t>(choice(input, static_cast<int>(kModels.size())))];
  const auto part = parts(input, 2);
  put(name + "/config.json", part[0]);
  put(name + "/preprocessor_config.json", part[1]);
  const std::string weights = path_of(name + "/model.safetensors");
  if (!fs::exists(weights)) fs::copy(kFixtures + name + "/model.safetensors", weights);
  if (part[1].empty()) fs::remove(path_of(name + "/preprocessor_config.json"));
  refused_or_read([&] { run_folder(path_of(name)); });
}

std::vector<std::string> model_seeds() {
  std::vector<std::string> seeds;
  for (size_t i = 0; i < kModels.size(); ++i) {
    const std::string folder = kFixtures + kModels[i], preprocessor = folder + "/preprocessor_config.json";
    seeds.push_back(std::string(1, static_cast<char>(i)) +
                    joined({dump(read_json(folder + "/config.json"), -1),
                            fs::exists(preprocessor) ? dump(read_json(preprocessor), -1) : ""}));
  }
  return seeds;
}

// Quantized checkpoints: those of the tests, and some of this engine's own.
struct Packed {
  std::string config, header, data;
};
const std::vector<Packed>& packed() {
  static const std::vector<Packed> all = [] {
    std::vector<Packed> made;
    const auto add = [&](const std::string& folder, const std::string& file) {
      Packed p{dump(read_json(folder + "/config.json"), -1), "", ""};
      p.header = header_of(folder + "/" + file, &p.data);
      made.push_back(p);
    };
    add(kFixtures + "gptq/v1_4bit_sym_desc_act", "gptq_model-4bit.safetensors");
    add(kFixtures + "gptq/v2_2bit_asym", "gptq_model-2bit.safetensors");
    add(kFixtures + "gptq/v2_3bit_asym_desc_act", "gptq_model-3bit.safetensors");
    add(kFixtures + "gptq/bloom_v1_8bit", "gptq_model-8bit.safetensors");
    for (const int bits : {3, 5}) {
      const auto model = load_model(kFixtures + (bits == 3 ? "opt_tiny" : "bloom_tiny"));
      WeightGrid grid;
      grid.bits = bits;
      grid.groupsize = bits == 3 ? 8 : -1;
      test::quantize_rtn(*model, grid);
      const std::string folder = path_of(format("own%d", bits));
      save_model(*model, {folder, "bcq", false}, {{"wbits", bits}, {"groupsize", grid.groupsize}});
      add(folder, "model.safetensors");
    }
    {
      const auto model = load_model(kFixtures + "opt_tiny");
      BillmOptions options;
      options.half = true;
      options.block = 8;
      Billm method(options, {}, [](const std::string&) {});
      Batch batch;
      batch.windows = 1;
      batch.length = 8;
      for (int32_t id = 0; id < 8; ++id) batch.ids.push_back(id);
      calibrate(*model, {batch}, {&method});
      const std::string folder = path_of("binary");
      save_model(*model, {folder, "bcq", false}, {{"wbits", 1}, {"groupsize", nullptr}});
      add(folder, "model.safetensors");
    }
    for (const char* name : {"vit_tiny", "swin_tiny"}) {
      const auto model = load_model(kFixtures + name);
      const Tensor images = SafeTensors::open(kFixtures + name + "/reference.safetensors").get("pixel_values");
      Joint method({4, 4}, [](const std::string&) {});
      calibrate(*model, vision_batches(*model, images), {&method});
      const std::string folder = path_of(format("own_%s", name));
      save_vision(*model, {folder, "bcq", false}, recipe_of(Family::Vision, "joint"));
      add(folder, "model.safetensors");
    }
    return made;
  }();
  return all;
}

void run_packed(const std::string& whole) {
  std::string input = whole;
  const Packed& p = packed()[static_cast<size_t>(choice(input, static_cast<int>(packed().size())))];
  const auto part = parts(input, 3);
  std::string data = p.data;
  edit(data, part[2]);
  put("packed/config.json", part[0]);
  put("packed/model.safetensors", safetensors(part[1].empty() ? p.header : part[1], data));
  refused_or_read([&] { run_folder(path_of("packed")); });
}

std::vector<std::string> packed_seeds() {
  std::vector<std::string> seeds;
  for (size_t i = 0; i < packed().size(); ++i)
    for (const bool header : {false, true})
      seeds.push_back(std::string(1, static_cast<char>(i)) +
                      joined({packed()[i].config, header ? packed()[i].header : "", "\1\1\1\1"}));
  return seeds;
}

const Harness kSafetensors("safetensors", run_safetensors, safetensors_seeds);
const Harness kModel("model", run_model, model_seeds);
const Harness kPacked("packed", run_packed, packed_seeds);

}  // namespace
}  // namespace bcq::fuzz
