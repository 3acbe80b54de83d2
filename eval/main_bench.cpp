// bench: the speed of forward passes in float and in 8-bit integers, compared with this machine's peak, and the time of
// whole calibrations.
// Weights are random and the shapes those of the networks that are named; results of one run belong together.
#include <cblas.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>

#include "engine/core/check.h"
#include "engine/core/parallel.h"
#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "engine/nn/int8_layer.h"
#include "eval/bench/bench.h"
#include "eval/cli.h"
#include "quant/minmax.h"
#include "quant/ranges.h"

namespace {

using namespace bcq;
namespace fs = std::filesystem;

// A folder that is removed in the end.
struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / format("bcq-bench-%d", getpid());
  TemporaryFolder() { fs::create_directories(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
};

double least(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }
double largest(const std::vector<double>& values) { return *std::max_element(values.begin(), values.end()); }

struct Bench {
  int64_t repeats = 5;
  Pattern wanted{""};  // works to run: those in whose name it is found
  json records = json::array();

  void float_forward(const char* name, const Model& model, const Batch& batch, double items);
  void int8_products();
  void vision(const char* name, const std::function<std::unique_ptr<Model>()>& load, std::mt19937& random);
  void calibrations(const fs::path& folder, Model& vit);
};

// Keeps the operands of every product, to run the products again without what lies between.
struct Operands : Observer {
  struct Product {
    const Layer* layer;
    Tensor a, b;
  };
  std::vector<Product> products;
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor&) override {
    products.push_back({&layer, a, b});
  }
};

// The same product by OpenBLAS, which runs on one thread: columns are cut, or heads are.
void multiply_by_openblas(const Operands::Product& p, const Tensor& weight, Tensor& y) {
  const bool linear = p.layer->is_linear(), transposed = linear || p.layer->role == Role::QK;
  const Tensor& b = linear ? weight : p.b;
  const int64_t heads = linear ? 1 : p.a.dim(0) * p.a.dim(1), parts = linear ? threads() : 1;
  const int64_t rows = p.a.rows() / heads, depth = p.a.dim(-1), columns = b.size() / heads / depth;
  parallel_for(heads * parts, [&](int64_t item) {
    const int64_t h = item / parts, c0 = columns * (item % parts) / parts, c1 = columns * (item % parts + 1) / parts;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, static_cast<int>(rows),
                static_cast<int>(c1 - c0), static_cast<int>(depth), 1.f, p.a.data + h * rows * depth,
                static_cast<int>(depth), b.data + h * columns * depth + c0 * (transposed ? depth : 1),
                static_cast<int>(transposed ? depth : columns), 0.f, y.data + h * rows * columns + c0,
                static_cast<int>(columns));
  });
}

void Bench::float_forward(const char* name, const Model& model, const Batch& batch, double items) {
  if (!wanted.found_in(name)) return;
  Operands operands;
  model.forward({Precision::Float, nullptr, &operands}, batch);
  double flop = 0;
  int64_t most = 0;
  std::vector<Tensor> weights;
  for (const auto& p : operands.products) {
    const int64_t columns = p.layer->is_linear() ? p.layer->weight.dim(0) : p.b.dim(p.layer->role == Role::QK ? 2 : 3);
    flop += 2 * static_cast<double>(p.a.size()) * static_cast<double>(columns);
    most = std::max(most, p.a.rows() * columns);
    weights.push_back(p.layer->is_linear() ? p.layer->weight.values() : Tensor{});
  }
  const auto seconds_of = [](const auto& work) {
    const Timer timer;
    work();
    return timer.seconds();
  };
  Tensor y = Tensor::uninitialized({most});
  std::vector<double> wholes, alone, by_openblas, peaks;  // in turns, because the machine's speed moves
  for (int64_t i = 0; i <= repeats; ++i) {
    wholes.push_back(seconds_of([&] { model.forward({}, batch); }));
    alone.push_back(seconds_of([&] {
      for (const auto& p : operands.products) p.layer->product({Precision::Float}, p.a, p.b);
    }));
    by_openblas.push_back(seconds_of([&] {
      for (size_t j = 0; j < weights.size(); ++j) multiply_by_openblas(operands.products[j], weights[j], y);
    }));
    peaks.push_back(2 * float_peak());
  }
  const double whole = least(wholes), ours = least(alone), openblas = least(by_openblas), peak = largest(peaks);
  print("| %-28s | %9.2f | %9.2f | %9.2f | %8.0f | %9.0f |\n", name, 1e3 * whole / items, 1e3 * ours / items,
        1e3 * openblas / items, flop / ours / 1e9, peak / 1e9);
  std::fflush(stdout);
  records.push_back({{"work", name},
                     {"ms", 1e3 * whole / items},
                     {"ms_products_alone", 1e3 * ours / items},
                     {"ms_products_openblas", 1e3 * openblas / items},
                     {"gflops_products", flop / ours / 1e9},
                     {"gflops_peak", peak / 1e9}});
}

// Codes of normal weights, the largest of a column 127.
Int8Panels random_panels(int64_t columns, int64_t depth) {
  std::mt19937 random{5};
  const Tensor weights = random_tensor({columns, depth}, 1.f, random);
  Int8Panels panels(columns, depth);
  std::vector<int8_t> codes(static_cast<size_t>(depth));
  for (int64_t c = 0; c < columns; ++c) {
    const float* row = weights.data + c * depth;
    const float step = kernels().max_abs(row, depth) / 127;
    for (int64_t k = 0; k < depth; ++k) codes[at(k)] = static_cast<int8_t>(std::nearbyint(row[k] / step));
    panels.set_column(c, codes.data());
  }
  panels.find_range();
  if (kernels().sums_in_16_bits) panels.cut_outliers();
  return panels;
}

// The linear layers of ViT-B: codes in, sums in cache out; in turns with the peak, which moves with the clock.
void Bench::int8_products() {
  print("\n| int8 product of ViT-B   | GOP/s     | peak, GOP/s | share |\n");
  print("|-------------------------|-----------|-------------|-------|\n");
  const int64_t shapes[][2] = {{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}};
  for (const int64_t rows : {197, 8 * 197})
    for (const auto& [depth, columns] : shapes) {
      const std::string name = format("%d x %d x %d", rows, depth, columns);
      if (!wanted.found_in("int8 product " + name)) continue;
      const Int8Panels b = random_panels(columns, depth);
      const Int8Rows a(rows, depth, 1);
      std::fill_n(a.codes.data(), rows * a.stride, uint8_t{1});
      const double work = 2.0 * static_cast<double>(rows * depth * columns);
      std::vector<double> rates, peaks;
      for (int64_t i = 0; i < 2 * repeats + 1; ++i) {
        Timer timer;
        gemm_int8(a, b, nullptr, [](int64_t, int64_t, int64_t, const int32_t*, const int32_t*) {});
        rates.push_back(1e-9 * work / timer.seconds());
        peaks.push_back(2e-9 * int8_peak());
      }
      const double rate = largest(rates), peak = largest(peaks), share = peak > 0 ? rate / peak : 0;
      print("| %-23s | %9.0f | %11.0f | %5.2f |\n", name, rate, peak, share);
      std::fflush(stdout);
      records.push_back(
          {{"work", "int8 product " + name}, {"gops", rate}, {"gops_peak", peak}, {"share_of_peak", share}});
    }
}

// Grids of activations of the form the joint method gives them, in place of others: tables, of attention one for each
// head, and a renormalized softmax.
struct TableGrids : Observer {
  static constexpr int kBits = 4;
  std::map<const Layer*, Quantized> made;

  Grid of_heads(const Tensor& x, bool is_signed) const {
    return Table(1, std::vector<Table>(static_cast<size_t>(x.dim(1)), fit_table(Histogram(x), kBits, is_signed)));
  }
  void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor&) override {
    if (layer.role == Role::Patch) return;
    Quantized q = *layer.quantized;
    q.int8 = nullptr;
    q.renormalized = layer.role == Role::AV;
    if (!layer.is_linear()) q.right = of_heads(b, true);
    q.left = layer.role == Role::QK ? of_heads(a, false) : Grid(fit_table(Histogram(a), kBits, false));
    made[&layer] = q;
  }
};

void use_tables(Model& model, const Batch& batch) {
  TableGrids grids;
  model.forward({Precision::Float, nullptr, &grids}, batch);
  for (Layer* layer : model.all_layers())
    if (grids.made.count(layer)) layer->quantize(grids.made.at(layer));
}

void Bench::vision(const char* name, const std::function<std::unique_ptr<Model>()>& load, std::mt19937& random) {
  for (const int64_t images : {1, 8}) {
    const std::string work = format("%s, batch %d, ", name, images);
    if (!wanted.found_in(work + "FP32") && !wanted.found_in(work + "W8A8") &&
        !wanted.found_in(work + "W4A4 twin-uniform") && !wanted.found_in(work + "W4A4 joint"))
      continue;
    const auto owned = load();
    Model& model = *owned;
    const Batch batch{.pixels = random_tensor({images, 3, 224, 224}, 1.f, random)};
    const double items = static_cast<double>(images);
    struct Form {
      const char* name;
      std::function<void()> quantize;
      std::vector<std::shared_ptr<const Quantized>> layers = {};  // what each layer is in this form
      double seconds = std::numeric_limits<double>::infinity(), peak_mb = 0;
    };
    Form forms[] = {{"FP32", [] {}},
                    {"W8A8", [&] { quantize_minmax(model, batch, 8, false); }},
                    {"W4A4 twin-uniform", [&] { quantize_minmax(model, batch, 4, true); }},
                    {"W4A4 joint", [&] { use_tables(model, batch); }}};  // in place of grids that are there
    const std::vector<Layer*> layers = model.all_layers();
    const auto run = [&](Form& form) {
      const Precision precision = &form == forms ? Precision::Float : Precision::Integer;
      const Timer timer;
      model.forward({precision}, batch);
      return timer.seconds();
    };
    for (Form& form : forms) {  // alone in memory, with the weights as loaded, caches cold
      form.quantize();
      model.prepare_int8();
      reset_peak_memory();
      run(form);
      form.peak_mb = peak_memory_mb();
    }
    model.clear();
    for (Form& form : forms) {
      form.quantize();
      model.prepare_int8();
      for (const Layer* layer : layers) form.layers.push_back(layer->quantized);
    }
    model.make_panels();
    for (int64_t turn = 0; turn < repeats; ++turn)  // the machine's speed moves
      for (Form& form : forms) {
        for (size_t i = 0; i < layers.size(); ++i) layers[i]->quantized = form.layers[i];
        form.seconds = std::min(form.seconds, run(form));
      }
    print("| %-10s | %5d |", name, images);
    for (const Form& form : forms) {
      const double ratio = forms[0].seconds / form.seconds;
      print(" %7.2f |", 1e3 / items * form.seconds);
      if (&form != &forms[0]) print(" %5.2f |", ratio);
      records.push_back({{"work", work + form.name},
                         {"ms", 1e3 / items * form.seconds},
                         {"fp32_over_this", ratio},
                         {"peak_mb", form.peak_mb}});
    }
    print(" %4.0f / %4.0f |\n", forms[0].peak_mb, forms[3].peak_mb);
    std::fflush(stdout);
  }
}

struct Cost {
  double seconds, passes, sums, choices;  // of them through the network; for Hessians and means; for grids and codes
};

// A model and random inputs.
struct Drawn : Task {
  std::vector<Batch> inputs;
  Drawn(Model& m, std::vector<Batch> batches) : Task(m), inputs(std::move(batches)) {}
  std::vector<Batch> calibration(const Recipe&) override { return inputs; }
  const std::vector<Batch>& compensation(const Recipe&) override { return inputs; }
  Measured measure(const Recipe&, size_t, json&, const Progress&) override { return {}; }
};

Cost calibrate_vit(Model& vit, ProgressLine& line) {
  std::mt19937 random{3};
  Drawn task(vit, {{.pixels = random_tensor({32, 3, 224, 224}, 1.f, random)}});
  const CalibrationSeconds cost =
      quantize(task, recipe_of(Family::Vision, "ptq4vit"), line.callback(), line.warn()).solved.seconds;
  vit.clear();
  return {cost.total, cost.total - cost.solve, 0, cost.solve};
}

Cost calibrate_opt(Model& opt, ProgressLine& line) {
  std::mt19937 random{4};
  std::vector<Batch> windows;
  for (int window = 0; window < 128; ++window) {
    std::vector<int32_t> ids(at(opt.info().max_length));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(opt.info().outputs));
    windows.push_back(Batch::window(std::move(ids)));
  }
  Recipe recipe = recipe_of(Family::Language, "gptq", BcForm::Channel);
  recipe.weights.bits = 3;
  Drawn task(opt, std::move(windows));
  const Timer timer;
  Outcome outcome = quantize(task, recipe, line.callback(), line.warn());
  compensate(task, recipe, outcome, line.callback());
  const CalibrationSeconds &a = outcome.solved.seconds, &b = outcome.compensated.seconds;
  return {timer.seconds(), a.passes + b.passes, a.sums + b.sums, a.solve + b.solve};
}

// PTQ4ViT of `vit`, W8A8, on 32 images, and GPTQ at 3 bits with bias compensation per channel of OPT-125M's blocks, on
// 128 windows of 2048 tokens: minutes each, so they run once. Leaves `vit` as it was.
void Bench::calibrations(const fs::path& folder, Model& vit) {
  print("\n| calibration, once                        | s      | passes | sums  | choices | peak MB |\n");
  print("|------------------------------------------|--------|--------|-------|---------|---------|\n");
  const auto row = [&](const char* work, const auto& calibrate) {
    if (!wanted.found_in(work)) return;
    reset_peak_memory();
    ProgressLine line;
    const Cost cost = calibrate(line);
    line.finish();
    const double peak = peak_memory_mb();
    print("| %-40s | %6.1f | %6.1f | %5.1f | %7.1f | %7.0f |\n", work, cost.seconds, cost.passes, cost.sums,
          cost.choices, peak);
    std::fflush(stdout);
    records.push_back({{"work", work},
                       {"seconds", cost.seconds},
                       {"seconds_passes", cost.passes},
                       {"seconds_sums", cost.sums},
                       {"seconds_choices", cost.choices},
                       {"peak_mb", peak}});
  };
  row("PTQ4ViT W8A8, ViT-B/16, 32 images", [&](ProgressLine& line) { return calibrate_vit(vit, line); });
  row("GPTQ 3 bit + BC, OPT-125M, 128 windows", [&](ProgressLine& line) {
    write_language_model(kOpt125m, 0, -1, folder / "calibration");
    return calibrate_opt(*load_model((folder / "calibration").string()), line);
  });
}

// Times of the same works in two files of records, and how many times the first the second takes.
void compare(const std::vector<std::string>& files) {
  require_usage(files.size() == 2, "--compare takes two files: --compare A.json --compare B.json");
  std::map<std::string, const json*> before;
  const json a = read_json(files[0]), b = read_json(files[1]);
  for (const json* file : {&a, &b}) {
    const std::string& path = files[file == &a ? 0 : 1];
    require_input(
        file->is_array() && std::all_of(file->begin(), file->end(), [](const json& r) { return r.is_object(); }),
        "%s: not the records of bench --json", path);
  }
  for (const json& record : a) before[get<std::string>(record, "work", files[0])] = &record;
  print("| %-40s | %-22s | %10s | %10s | %5s |\n", "work", "figure", "A", "B", "B / A");
  int rows = 0;
  for (const json& record : b) {
    const auto found = before.find(get<std::string>(record, "work", files[1]));
    if (found == before.end()) continue;
    for (const char* key : {"ms", "ms_products_alone", "token_ms", "prefill_tokens_per_second", "gops", "seconds"}) {
      if (!record.contains(key) || !found->second->contains(key)) continue;
      const double x = get<double>(*found->second, key, files[0]), y = get<double>(record, key, files[1]);
      print("| %-40s | %-22s | %10.2f | %10.2f | %5.2f |\n", found->first, key, x, y, y / x);
      ++rows;
    }
  }
  require_input(rows > 0, "%s and %s have no work in common", files[0], files[1]);
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("bench",
                   "Speed of the forward passes, in float and in integers, against the limits of this machine, and of "
                   "calibrations. These alone take 18 to 25 minutes; parts with --only.",
                   "Example:\n  bench --only 'ViT-B|OPT-125M blocks, 4 bit'");
  Bench bench;
  std::string only, json_path;
  std::vector<std::string> compared;
  line.add({"--repeats", "N", "Runs, in turns, of which the best counts"}, bench.repeats, 1, 1 << 16);
  line.add({"--only", "REGEX", "Works whose name, as in the JSON records, this is found in; of images a line at once"},
           only);
  line.add_output({"--json", "FILE", "Write the figures as a JSON array (-: stdout)"}, json_path);
  line.add({"--compare", "FILE",
            "Run nothing: set the figures of two such files, --compare A --compare B, beside each other"},
           compared);
  return line.run(argc, argv, [&] {
    if (!compared.empty()) return compare(compared);
    bench.wanted = Pattern(only);
    const json facts = run_facts();
    print("%d threads, %s kernels, %s; peak of float instructions %.0f GFLOP/s\n", facts["threads"].get<int>(),
          facts["isa"].get<std::string>(), facts["blas"].get<std::string>(), 2e-9 * float_peak());
    TemporaryFolder folder;
    std::mt19937 random{2};
    bench.int8_products();

    print(
        "\n| images of  | batch | FP32 ms | W8A8 ms | ratio | W4A4 ms | ratio | joint   | ratio | MB, FP32/4-bit |\n");
    print("|------------|-------|---------|---------|-------|---------|-------|---------|-------|----------------|\n");
    const auto vit_base = [at = folder.path / "vit"] {
      return std::filesystem::exists(at) ? load_model(at.string()) : random_vit(at, "vit_base_patch16_224", 768);
    };
    bench.vision("ViT-B/16", vit_base, random);
    bench.vision(
        "DeiT-S", [&] { return random_vit(folder.path / "deit", "deit_small_patch16_224", 384); }, random);
    bench.vision(
        "Swin-T", [&] { return random_swin_tiny(folder.path / "swin"); }, random);

    print("\n| float forward                | ms        | products  | the same  | products | peak,     |\n");
    print("|                              |           | alone, ms | OpenBLAS  | GFLOP/s  | GFLOP/s   |\n");
    print("|------------------------------|-----------|-----------|-----------|----------|-----------|\n");
    for (const int64_t b : {1, 8}) {
      const std::string name = format("ViT-B/16, batch %d, per image", b);
      if (!bench.wanted.found_in(name)) continue;
      const auto vit = vit_base();
      vit->make_panels();
      const Batch batch{.pixels = random_tensor({b, 3, 224, 224}, 1.f, random)};
      bench.float_forward(name.c_str(), *vit, batch, static_cast<double>(b));
    }
    const Batch window = Batch::window(std::vector<int32_t>(2048, 1));
    write_language_model(kOpt125m, 0, -1, folder.path / "opt");
    bench.float_forward("OPT-125M, 2048 tokens", *load_model((folder.path / "opt").string()), window, 1);
    bench_language(folder.path, static_cast<int>(bench.repeats), bench.wanted, bench.records);
    bench.calibrations(folder.path, *vit_base());
    for (json& record : bench.records) record.update(facts);
    write_record(json_path, bench.records);
  });
}
