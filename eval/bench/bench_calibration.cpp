#include "eval/bench/bench_calibration.h"

#include <cstdio>

#include "engine/core/timer.h"
#include "eval/bench/bench_language.h"
#include "eval/bench/bench_peak.h"
#include "eval/cli.h"
#include "eval/language.h"
#include "quant/ptq4vit.h"

namespace bcq {
namespace {

struct Cost {
  double seconds, passes, sums, choices;  // of them through the network; for Hessians and means; for grids and codes
};

Cost calibrate_vit(Model& vit, ProgressLine& line) {
  std::mt19937 random{3};
  const Tensor images = random_tensor({32, 3, 224, 224}, 1.f, random);
  const PtqCost cost = quantize_ptq(vit, images, ptq4vit(8, 8), line.callback(), line.warn());
  vit.clear();
  double search = 0;
  for (const auto& [site, seconds] : cost.search) search += seconds;
  return {cost.total, cost.total - search, 0, search};
}

Cost calibrate_opt(Model& opt, ProgressLine& line) {
  std::mt19937 random{4};
  std::vector<Batch> windows(128);
  for (Batch& window : windows) {
    window.windows = 1;
    window.length = opt.info().max_length;
    for (int64_t i = 0; i < window.length; ++i)
      window.ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(opt.info().outputs)));
  }
  LanguageRun run;
  run.method = "gptq";
  run.weights.bits = 3;
  run.bc = "channel";
  const Timer timer;
  const CalibrationSeconds a = quantize_language(opt, windows, run, line.callback(), line.warn()).seconds;
  const CalibrationSeconds b = compensate_language(opt, windows, run, line.callback()).seconds;
  return {timer.seconds(), a.passes + b.passes, a.sums + b.sums, a.solve + b.solve};
}

}  // namespace

void bench_calibration(const std::filesystem::path& folder, Model& vit, const Wanted& wanted, json& records) {
  print("\n| calibration, once                        | s      | passes | sums  | choices | peak MB |\n");
  print("|------------------------------------------|--------|--------|-------|---------|---------|\n");
  const auto row = [&](const char* work, const auto& calibrate) {
    if (!wanted(work)) return;
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
  row("GPTQ 3 bit + BC, OPT-125M, 128 windows",
      [&](ProgressLine& line) { return calibrate_opt(*random_opt_125m(folder / "calibration"), line); });
}

}  // namespace bcq
