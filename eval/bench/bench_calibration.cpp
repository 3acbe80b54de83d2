#include <cstdio>

#include "engine/core/timer.h"
#include "engine/file/json.h"
#include "eval/bench/bench.h"
#include "eval/cli.h"
#include "eval/run.h"

namespace bcq {
namespace {

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

}  // namespace

void bench_calibration(const std::filesystem::path& folder, Model& vit, const Wanted& wanted, json& records) {
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

}  // namespace bcq
