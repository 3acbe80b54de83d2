// bench: how close the float forward pass comes to its limit, the same matrix products
// alone. Weights are random and the shapes those of vit_base_patch16_224 and opt-125m.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <random>

#include "engine/check.h"
#include "engine/safetensors.h"
#include "eval/cli.h"
#include "models/model.h"

namespace {

using namespace bcq;
namespace fs = std::filesystem;

// A folder that is removed in the end.
struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / format("bcq-bench-%d", static_cast<int>(getpid()));
  TemporaryFolder() { fs::create_directories(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
};

Tensor random_tensor(const Shape& shape, float scale, std::mt19937& random) {
  Tensor t = Tensor::uninitialized(shape);
  for (int64_t i = 0; i < t.size(); ++i) t[i] = scale * (static_cast<float>(random()) / 2147483648.f - 1.f);
  return t;
}

class Checkpoint {
 public:
  void linear(const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in});
    add(name + ".bias", {out});
  }
  void norm(const std::string& name, int64_t n) {
    add(name + ".weight", {n});
    add(name + ".bias", {n});
  }
  void add(const std::string& name, const Shape& shape) { tensors_[name] = random_tensor(shape, 0.05f, random_); }
  std::unique_ptr<Model> load(const fs::path& folder, const json& config) const {
    fs::create_directories(folder);
    write_safetensors((folder / "model.safetensors").string(), tensors_);
    write_file((folder / "config.json").string(), config.dump());
    return load_model(folder.string());
  }

 private:
  std::map<std::string, Tensor> tensors_;
  std::mt19937 random_{1};
};

std::unique_ptr<Model> random_vit_base(const fs::path& folder) {
  Checkpoint c;
  c.add("cls_token", {1, 1, 768});
  c.add("pos_embed", {1, 197, 768});
  c.add("patch_embed.proj.weight", {768, 3, 16, 16});
  c.add("patch_embed.proj.bias", {768});
  for (int i = 0; i < 12; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    c.norm(block + "norm1", 768);
    c.linear(block + "attn.qkv", 3 * 768, 768);
    c.linear(block + "attn.proj", 768, 768);
    c.norm(block + "norm2", 768);
    c.linear(block + "mlp.fc1", 3072, 768);
    c.linear(block + "mlp.fc2", 768, 3072);
  }
  c.norm("norm", 768);
  c.linear("head", 1000, 768);
  return c.load(folder, {{"architecture", "vit_base_patch16_224"}, {"num_classes", 1000}});
}

std::unique_ptr<Model> random_opt_125m(const fs::path& folder) {
  Checkpoint c;
  const std::string decoder = "model.decoder.";
  c.add(decoder + "embed_tokens.weight", {50272, 768});
  c.add(decoder + "embed_positions.weight", {2050, 768});
  for (int i = 0; i < 12; ++i) {
    const std::string layer = decoder + "layers." + std::to_string(i) + ".";
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) c.linear(layer + "self_attn." + name, 768, 768);
    c.norm(layer + "self_attn_layer_norm", 768);
    c.norm(layer + "final_layer_norm", 768);
    c.linear(layer + "fc1", 3072, 768);
    c.linear(layer + "fc2", 768, 3072);
  }
  c.norm(decoder + "final_layer_norm", 768);
  return c.load(folder, {{"model_type", "opt"},
                         {"hidden_size", 768},
                         {"num_hidden_layers", 12},
                         {"num_attention_heads", 12},
                         {"ffn_dim", 3072},
                         {"vocab_size", 50272},
                         {"max_position_embeddings", 2048}});
}

// Keeps the operands of every product, to run the products again without what lies between.
struct Operands : Observer {
  struct Product {
    const Site* site;
    Tensor a, b;
  };
  std::vector<Product> products;
  void site(const Site& site, const Tensor& a, const Tensor& b, const Tensor&) override {
    products.push_back({&site, a, b});
  }
};

// blocks alone for language: the head of a 2048-token window is a third of the work and no site.
void measure(const char* name, const Model& model, const Batch& batch, double items, const char* unit, int repeats,
             json& records) {
  auto blocks = [&](const Context& ctx) {
    if (model.info().family == Family::Vision) {
      model.forward(ctx, batch);
      return;
    }
    Tensor x = model.embed(ctx, batch);
    for (int i = 0; i < model.depth(); ++i) x = model.block(ctx, i, x);
  };
  Operands operands;
  blocks({Precision::Float, nullptr, &operands});
  const double whole = median_seconds(repeats, [&] { blocks({}); });
  const double limit = median_seconds(repeats, [&] {
    for (const auto& p : operands.products) p.site->product(Precision::Float, nullptr, p.a, p.b);
  });
  double flop = 0;
  for (const auto& p : operands.products) {
    const double columns =
        static_cast<double>(p.site->is_linear() ? p.site->weight.dim(0) : p.b.dim(p.site->role == Role::QK ? 2 : 3));
    flop += 2 * static_cast<double>(p.a.size()) * columns;
  }
  std::printf("| %-28s | %9.2f | %9.2f | %5.2f | %8.0f |\n", name, 1e3 * whole / items, 1e3 * limit / items,
              limit / whole, flop / limit / 1e9);
  std::fflush(stdout);
  records.push_back({{"work", name},
                     {"unit", unit},
                     {"ms", 1e3 * whole / items},
                     {"ms_products_alone", 1e3 * limit / items},
                     {"share_of_limit", limit / whole},
                     {"gflops_products", flop / limit / 1e9}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Time of the float forward passes against their matrix products alone.", "bench"};
  std::string json_path;
  int repeats = 5;
  app.add_option("--repeats", repeats, "Runs of which the median counts")->capture_default_str()->type_name("N");
  app.add_option("--json", json_path, "Write the figures as a JSON array (-: stdout)")->type_name("FILE");
  add_threads_option(app);
  app.footer("Example:\n  bench --threads 2");
  return run_program(app, argc, argv, [&] {
    require_usage(repeats >= 1, "--repeats must be at least 1");
    json records = json::array();
    const json facts = run_facts();
    std::printf("%d threads, %s kernels, %s\n\n", facts["threads"].get<int>(), facts["isa"].get<std::string>().c_str(),
                facts["blas"].get<std::string>().c_str());
    std::printf("| work (random weights)        | ms        | products  | share | GFLOP/s  |\n");
    std::printf("|                              | forward   | alone, ms |       | products |\n");
    std::printf("|------------------------------|-----------|-----------|-------|----------|\n");
    TemporaryFolder folder;
    std::mt19937 random{2};
    {
      const auto vit = random_vit_base(folder.path / "vit");
      for (const int64_t b : {int64_t{1}, int64_t{8}}) {
        Batch batch;
        batch.pixels = random_tensor({b, 3, 224, 224}, 1.f, random);
        measure(format("ViT-B/16, batch %d, per image", static_cast<int>(b)).c_str(), *vit, batch,
                static_cast<double>(b), "image", repeats, records);
      }
    }
    const auto opt = random_opt_125m(folder.path / "opt");
    Batch window;
    window.windows = 1;
    window.length = 2048;
    for (int i = 0; i < 2048; ++i) window.ids.push_back(static_cast<int32_t>(random() % 50272));
    measure("OPT-125M blocks, 2048 tokens", *opt, window, 1, "window", repeats, records);
    for (json& record : records) record.update(facts);
    write_record(json_path, records);
  });
}
