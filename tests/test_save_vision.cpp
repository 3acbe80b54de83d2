// Saved vision models: every method on every family comes back with the same logits bit for bit, simulated and in
// integers; sizes; what cannot be saved or run again; files that are not what they should be.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/grid_file.h"
#include "engine/file/json.h"
#include "engine/grid/affine.h"
#include "engine/grid/table.h"
#include "engine/grid/uniform.h"
#include "eval/resume.h"
#include "eval/run.h"
#include "eval/save.h"
#include "eval/vision.h"
#include "tests/model_fixtures.h"
#include "tests/quantized_vision.h"

using namespace bcq;
using namespace bcq::test;
namespace fs = std::filesystem;

namespace {

const Context kFake{Precision::Fake}, kInteger{Precision::Integer};

std::unique_ptr<Model> quantized(const std::string& source, const Recipe& recipe, int64_t images = 4) {
  auto model = load_model(source);
  quantize_as(*model, recipe, images);
  return model;
}

SaveOptions to(const Folder& folder) { return {folder.file("saved"), "bcq", false}; }

Batch images_of(const Model& model) {
  Batch batch;
  batch.pixels = random({3, 3, model.info().image.height, model.info().image.width}, 9, 2);
  return batch;
}

// The model, saved and loaded, is what it was.
Saved check_saved(Model& model, const Recipe& recipe, const Folder& folder) {
  const Saved saved = save_vision(model, to(folder), recipe);
  const auto loaded = load_model(folder.file("saved"));
  CHECK(loaded->info().packed);
  CHECK(loaded->info().labels == model.info().labels);
  CHECK(loaded->info().outputs == model.info().outputs);
  const Batch batch = images_of(model);
  const Tensor want = model.forward(kFake, batch);
  CHECK(same_bits(loaded->forward(kFake, batch), want));
  // In float it is the network of the stored weights.
  CHECK(same_bits(loaded->forward(kFloat, batch), want) == (recipe.ptq.abits == 32));
  CHECK(loaded->prepare_int8() == model.prepare_int8());
  CHECK(same_bits(loaded->forward(kInteger, batch), model.forward(kInteger, batch)));
  return saved;
}

const std::string kMinis[] = {"data/mini/vit", "data/mini/deit", "data/mini/swin"};

// A saved 4-bit ViT whose files can be changed.
struct SavedVit {
  std::shared_ptr<const Folder> folder = std::make_shared<const Folder>();
  std::string at = folder->file("saved");
  json config;
  std::map<std::string, TensorInfo> tensors;
  SavedVit() {
    const Recipe recipe = recipe_of("joint", 4, 4);
    save_vision(*quantized(kVit, recipe), to(*folder), recipe);
    config = read_json(at + "/config.json");
    tensors = SafeTensors::open(at + "/model.safetensors").tensors();
  }
  json& quantization() { return config["quantization_config"]; }
  json& layer(const std::string& name) { return quantization()["layers"][name]; }
  void set(const std::string& name, const Tensor& values) { tensors[name] = store(values, DType::F32, name); }
  // Other numbers in place of a field of a grid.
  void change(const std::string& name, const std::function<void(std::vector<float>&)>& f) {
    const SafeTensors file = SafeTensors::open(at + "/model.safetensors");
    Shape shape;
    std::vector<float> values;
    if (tensors.at(name).dtype == DType::U8) {
      const auto ints = file.get_ints(name, &shape);
      values.assign(ints.begin(), ints.end());
    } else {
      const Tensor t = file.get(name);
      shape = t.shape;
      values.assign(t.data, t.data + t.size());
    }
    f(values);
    shape[0] = static_cast<int64_t>(values.size());
    set(name, Tensor(shape, values));
  }
  // What loading the changed files says. They stand in a folder of their own: the old ones are mapped.
  std::string refusal() const {
    const Folder copy;
    write_safetensors(copy.file("model.safetensors"), tensors);
    write_text(copy.file("config.json"), config.dump());
    return message_of<InputError>([&] { load_model(copy.path); });
  }
};

}  // namespace

TEST_CASE("saved vision models: every method, family and width, the same logits in both runtimes") {
  const std::pair<int, int> widths[] = {{4, 4}, {3, 3}, {8, 8}};
  const json bc[] = {{{"bc", "position"}, {"bc_sites", "conv,linear,matmul,block,model"}}, {{"bc", "channel"}}, {}};
  for (const std::string& source : {kVit, kDeit, kSwin})
    for (const std::string method : {"base-ptq", "easyquant", "ptq4vit", "repq-vit", "joint"})
      for (size_t i = 0; i < 3; ++i) {
        CAPTURE(source);
        CAPTURE(method);
        const int wbits = widths[i].first, abits = widths[i].second;
        CAPTURE(wbits);
        json options = bc[i];
        if (method == "joint") options = i == 0 ? json(bc[0]) : json::object();
        const Folder folder;
        const Recipe recipe = recipe_of(method, wbits, abits, options);
        const auto model = quantized(source, recipe);
        check_saved(*model, recipe, folder);
      }
}

TEST_CASE("saved vision models: a run that is interrupted after any part and goes on has the same bits") {
  struct Interrupted {};
  // Lets `left` parts be finished, then ends the run.
  struct Store : PartStore {
    BlockFiles files;
    int left;
    int loaded = 0;
    Store(const std::string& folder, int parts) : files(folder, {{"of", "a test"}}, true), left(parts) {}
    bool has(const std::string& walk, int i) const override { return files.has(walk, i); }
    bool load(const std::string& walk, Model& model, int i, PartRecord& record) override {
      const bool found = files.load(walk, model, i, record);
      loaded += found;
      return found;
    }
    void done(const std::string& walk, Model& model, int i, const PartRecord& record) override {
      files.done(walk, model, i, record);
      if (left-- == 0) throw Interrupted();
    }
  };
  const json position = {{"bc", "position"}, {"bc_sites", "conv,linear,matmul,attention,mlp,block,model"}};
  const std::pair<std::string, json> methods[] = {{"ptq4vit", position},
                                                  {"base-ptq", {{"calibration", "sequential"}}},
                                                  {"repq-vit", {{"bc", "channel"}}},
                                                  {"noisyquant", position},
                                                  {"joint", {{"qwt", true}}},
                                                  {"joint", position}};
  for (const std::string& source : {kVit, kSwin})
    for (const auto& entry : methods) {
      const std::string& method = entry.first;
      if (source == kSwin && (sanitized() || entry.second != position)) continue;  // a Swin's points are what differs
      CAPTURE(source);
      CAPTURE(method);
      const Recipe recipe = recipe_of(method, 4, 4, entry.second);
      const auto whole = quantized(source, recipe);
      const Folder folder;
      Outcome outcome;
      const auto go_on = [&](Model& model, int parts) {
        Pixels task(model, 4);
        Store store(folder.file("partial"), parts);
        outcome = quantize(task, recipe, kSilent, kQuiet, &store);
        compensate(task, recipe, outcome, kSilent, &store);
        return store.loaded;
      };
      for (int part = 0; part < 3; ++part) {
        const auto model = load_model(source);
        CHECK_THROWS_AS(go_on(*model, 0), Interrupted);
      }
      const auto model = load_model(source);
      CHECK(go_on(*model, 1000) == 3);
      const Batch batch = images_of(*whole);
      for (const Context& ctx : {kFloat, kFake})
        CHECK(same_bits(model->forward(ctx, batch), whole->forward(ctx, batch)));
      save_vision(*whole, {folder.file("a"), "bcq", false}, recipe);
      save_vision(*model, {folder.file("b"), "bcq", false}, recipe);
      for (const char* file : {"/model.safetensors", "/config.json"})
        CHECK(read_file(folder.file("a") + file) == read_file(folder.file("b") + file));
      // What was folded is undone.
      const auto fresh = load_model(source);
      model->clear();
      CHECK(same_bits(model->forward(kFloat, batch), fresh->forward(kFloat, batch)));
    }
}

TEST_CASE("saved vision models: the embedded models, their size and their parameters") {
  if (sanitized()) {
    MESSAGE("skipped: sanitizers find nothing here that the tests above do not show them");
    return;
  }
  for (const std::string& source : kMinis)
    for (const std::string method : {"ptq4vit", "joint"})
      for (const int bits : {3, 4}) {
        CAPTURE(source);
        CAPTURE(method);
        CAPTURE(bits);
        const Folder folder;
        const Recipe recipe = recipe_of(method, bits, bits, {{"bc", "channel"}});
        const auto model = quantized(source, recipe, 2);
        const Saved saved = check_saved(*model, recipe, folder);
        CHECK(load_model(folder.file("saved"))->info().parameters == model->info().parameters);
        CHECK(saved.bits_per_weight >= bits);
        CHECK(saved.bits_per_weight < bits + 1.5);  // narrow rows: scales and tables of few weights
        CHECK(static_cast<double>(saved.bytes) < (bits + 2.5) / 32 * static_cast<double>(saved.bytes_before));
        const auto on_disk = static_cast<int64_t>(fs::file_size(folder.file("saved/model.safetensors")));
        CHECK(on_disk >= saved.bytes);
        CHECK(on_disk < saved.bytes + 200 * 400);  // and its header
      }
}

TEST_CASE("saved vision models: floats, linear layers beside blocks, uniform grids, other layouts") {
  const json qwt = {{"qwt", true}};
  const std::tuple<std::string, int, int, json> cases[] = {{"joint", 32, 4, {}},
                                                           {"joint", 4, 32, {}},
                                                           {"gptq", 3, 32, {{"bc", "channel"}}},
                                                           {"joint", 2, 3, {{"act_grid", "uniform"}}},
                                                           {"ptq4vit", 32, 6, {}},
                                                           {"ptq4vit", 6, 32, {{"bc", "channel"}}},
                                                           {"joint", 4, 4, qwt},
                                                           {"ptq4vit", 5, 7, {{"pixels", "quantized"}}},
                                                           {"ptq4vit", 8, 8, {{"matmul_intervals", "layer"}}},
                                                           {"repq-vit", 7, 2, {}}};
  for (const auto& of : cases)
    for (const std::string& source : {kVit, kSwin}) {
      const std::string method = std::get<0>(of);
      const int wbits = std::get<1>(of), abits = std::get<2>(of);
      const json options = std::get<3>(of);
      CAPTURE(method);
      CAPTURE(wbits);
      CAPTURE(abits);
      const Folder folder;
      const Recipe recipe = recipe_of(method, wbits, abits, options);
      const auto model = quantized(source, recipe);
      CHECK((model->block_linear_values() > 0) == (options == qwt));
      check_saved(*model, recipe, folder);
    }
  for (const char* fixture : {"vit_hf", "deit_hf", "swin_hf"})  // query, key and value apart, and other names
    for (const char* method : {"ptq4vit", "joint"}) {
      CAPTURE(fixture);
      const Folder folder;
      const Recipe recipe = recipe_of(method, 4, 4, {{"bc", "channel"}});
      const auto model = quantized(std::string("tests/fixtures/") + fixture, recipe);
      check_saved(*model, recipe, folder);
    }
}

TEST_CASE("saved vision models: files that are not what they should be are refused by file and tensor") {
  const SavedVit good;
  CHECK(good.refusal().empty());
  const std::string fc1 = "blocks.0.mlp.fc1", qk = "blocks.0.attn.matmul1", av = "blocks.1.attn.matmul2";
  const auto says = [&](const std::function<void(SavedVit&)>& change, const std::string& part) {
    SavedVit bad = good;
    change(bad);
    const std::string message = bad.refusal();
    CAPTURE(message);
    CHECK_MESSAGE(contains(message, part), part);
    CHECK((contains(message, "config.json") || contains(message, "model.safetensors")));
  };
  // Every tensor is needed, and no other may be there.
  for (const auto& entry : good.tensors) {
    const std::string& name = entry.first;
    CAPTURE(name);
    SavedVit bad = good;
    bad.tensors.erase(name);
    const bool optional = name.ends_with(".bias") && bad.refusal().empty();
    CHECK((optional || contains(bad.refusal(), name.substr(0, name.rfind('.')))));
    CHECK_FALSE((optional && (name.find("norm") != std::string::npos || name.find("fc") != std::string::npos)));
    bad = good;  // of another shape
    TensorInfo& info = bad.tensors.at(name);
    info.shape.insert(info.shape.begin(), 1);
    if (info.shape.size() > 2 || name.find(".left.") + name.find(".right.") != 2 * std::string::npos)
      CHECK_FALSE(bad.refusal().empty());
  }
  says([](SavedVit& v) { v.set("blocks.0.more", Tensor({1})); }, "blocks.0.more");
  says([&](SavedVit& v) { v.set(fc1 + ".left.more", Tensor({1}, {0.5f})); }, fc1 + ".left");
  // Codes and their grids.
  says([&](SavedVit& v) { v.layer(fc1)["right"]["bits"] = 5; }, fc1 + ".qweight");
  says([&](SavedVit& v) { v.layer(fc1)["right"]["group"] = 4; }, fc1 + ".right");
  says([&](SavedVit& v) { v.layer(fc1).erase("right"); }, fc1);
  says([&](SavedVit& v) { v.change(fc1 + ".right.scale", [](auto& x) { x[1] = 0; }); }, fc1 + ".right");
  says([&](SavedVit& v) { v.change(fc1 + ".right.scale", [](auto& x) { x.pop_back(); }); }, fc1 + ".right");
  says([&](SavedVit& v) { v.change(fc1 + ".right.zero", [](auto& x) { x[0] = 16; }); }, "zero point of 16");
  says([&](SavedVit& v) { v.change(fc1 + ".right.zero", [](auto& x) { x[0] = 1.5f; }); }, "zero point of 1.5");
  // Tables: levels rise, are bytes, as many as counted, at most 2^bits.
  says([&](SavedVit& v) { v.change(fc1 + ".left.levels", [](auto& x) { std::swap(x[0], x[1]); }); }, "rise");
  says([&](SavedVit& v) { v.change(fc1 + ".left.levels", [](auto& x) { x.back() = 256; }); }, "256");
  says([&](SavedVit& v) { v.change(fc1 + ".left.levels", [](auto& x) { x.pop_back(); }); }, "levels");
  says([&](SavedVit& v) { v.change(fc1 + ".left.zero", [](auto& x) { x[0] = -1; }); }, "zero point of -1");
  says([&](SavedVit& v) { v.layer(fc1)["left"]["bits"] = 3; }, "too many for 3 bits");
  says([&](SavedVit& v) { v.layer(qk)["left"]["axis"] = 2; }, qk + ".left");
  says([&](SavedVit& v) { v.layer(qk)["left"]["grid"] = "tabel"; }, "tabel");
  says([&](SavedVit& v) { v.layer(qk)["left"]["bits"] = "four"; }, "bits");
  // What goes with what.
  says([&](SavedVit& v) { v.layer(qk)["renormalized"] = true; }, qk);
  says([&](SavedVit& v) { v.layer(av)["sharp"] = true; }, "sharp");
  says([&](SavedVit& v) { v.layer("blocks.9.attn.qkv") = v.layer(fc1); }, "blocks.9.attn.qkv");
  says([&](SavedVit& v) { v.set(fc1 + ".bc", Tensor({3, 7})); }, fc1 + ".bc");
  says([&](SavedVit& v) { v.set("blocks.0.bc", Tensor({3, 7})); }, "blocks.0.bc");
  says([&](SavedVit& v) { v.set("blocks.0.linear.weight", Tensor({3, 7})); }, "blocks.0.linear.bias");
  says(
      [&](SavedVit& v) {
        v.set("blocks.0.linear.weight", Tensor({3, 7}));
        v.set("blocks.0.linear.bias", Tensor({3}));
      },
      "blocks.0.linear.weight");
  // The configuration.
  says([](SavedVit& v) { v.quantization()["format_version"] = 2; }, "format_version 2");
  says([](SavedVit& v) { v.quantization()["quant_method"] = "bitsandbytes"; }, "bitsandbytes");
  says([](SavedVit& v) { v.quantization()["rotation"] = true; }, "rotation");
  says([](SavedVit& v) { v.quantization()["layers"] = 3; }, "layers");
  says([](SavedVit& v) { v.quantization() = 3; }, "quantization_config");
  says([](SavedVit& v) { v.config.erase("quantization_config"); }, "is missing");
  // A file cut short.
  const std::string whole = read_text(good.at + "/model.safetensors");
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    const Folder copy;
    write_text(copy.file("model.safetensors"), whole.substr(0, size));
    write_text(copy.file("config.json"), good.config.dump());
    CHECK(contains(message_of<InputError>([&] { load_model(copy.path); }), "model.safetensors"));
  }
}

TEST_CASE("saved vision models: numbers of grids and codes are taken as they are stored") {
  SavedVit other;
  const auto words = std::make_shared<std::vector<std::byte>>();
  TensorInfo& info = other.tensors.at("blocks.0.mlp.fc1.qweight");
  words->assign(info.bytes, info.bytes + info.size());
  (*words)[0] ^= std::byte{1};
  info.bytes = words->data();
  info.file = words;
  const Folder copy;
  write_safetensors(copy.file("model.safetensors"), other.tensors);
  write_text(copy.file("config.json"), other.config.dump());
  const auto model = load_model(other.at), changed = load_model(copy.path);
  Layer *a = model->layers(0).at(4), *b = changed->layers(0).at(4);
  REQUIRE(a->name == "blocks.0.mlp.fc1");
  const Tensor x = a->weight.values(), y = b->weight.values();
  const auto& grid = as<Affine>(right_grid(*a));
  CHECK(std::abs(y[0] - x[0]) == grid.scale[0]);  // the first code, by one
  CHECK(std::equal(x.data + 1, x.data + x.size(), y.data + 1));
}

TEST_CASE("saved vision models: weights off their grid are not saved, a folder of others is left alone") {
  const Recipe recipe = recipe_of("ptq4vit", 4, 4);
  const auto model = quantized(kVit, recipe);
  Layer& layer = *model->layers(0).at(0);
  Quantized q = *layer.quantized;
  Tensor w = q.weight.values().clone();
  w[3] += 1e-3f;
  q.weight = w;
  layer.quantize(q);
  const Folder folder;
  const std::string message = message_of<Error>([&] { save_vision(*model, to(folder), recipe); });
  CHECK(contains(message, layer.name));
  CHECK(fs::is_empty(folder.path));
  CHECK_THROWS_AS(check_saving_vision(recipe_of("ptq4vit", 9, 8)), UsageError);
  CHECK_NOTHROW(check_saving_vision(recipe_of("ptq4vit", 32, 8)));
  fs::create_directory(folder.file("saved"));
  write_text(folder.file("saved/notes"), "mine");
  CHECK_THROWS_AS(check_target(to(folder), model->info().weights), UsageError);
}
