#include "eval/vision_table.h"

#include <cstring>

#include "engine/check.h"
#include "eval/cli.h"

namespace bcq {

std::string VisionCell::label() const {
  const char* name = method == "fp32"        ? "FP32"
                     : method == "base-ptq"  ? "BasePTQ"
                     : method == "easyquant" ? "EasyQuant"
                                             : "PTQ4ViT";
  return name + (bc == "none" ? "" : " + BC (" + bc + ")");
}

std::string VisionCell::width() const { return std::to_string(bits) + "/" + std::to_string(bits); }

std::vector<VisionCell> vision_cells() {
  std::vector<VisionCell> cells = {{32, "fp32", "none"}};
  for (const int bits : {8, 6, 4})
    for (const auto& [method, bc] :
         {std::pair{"base-ptq", "none"}, std::pair{"easyquant", "none"}, std::pair{"ptq4vit", "none"},
          std::pair{"ptq4vit", "channel"}, std::pair{"ptq4vit", "position"}})
      cells.push_back({bits, method, bc});
  return cells;
}

const PaperColumn kPaperColumns[10] = {
    {"ViT-S", "vit_small_patch16_224"},         {"ViT-B", "vit_base_patch16_224"},
    {"ViT-B*", "vit_base_patch16_384"},         {"DeiT-S", "deit_small_patch16_224"},
    {"DeiT-B", "deit_base_patch16_224"},        {"DeiT-B*", "deit_base_patch16_384"},
    {"Swin-T", "swin_tiny_patch4_window7_224"}, {"Swin-S", "swin_small_patch4_window7_224"},
    {"Swin-B", "swin_base_patch4_window7_224"}, {"Swin-B*", "swin_base_patch4_window12_384"}};

double paper_top1(const VisionCell& cell, size_t column) {
  struct Row {
    int bits;
    const char *method, *bc;
    double top1[10];
  };
  static const Row rows[] = {
      {32, "fp32", "none", {81.39, 84.54, 86.00, 79.85, 81.80, 83.11, 81.39, 83.23, 85.27, 86.44}},
      {8, "base-ptq", "none", {80.46, 83.89, 85.35, 77.65, 80.94, 82.33, 80.96, 82.75, 84.79, 86.16}},
      {8, "easyquant", "none", {80.75, 83.89, 85.53, 78.98, 81.19, 82.10, 80.95, 83.00, 85.10, 86.39}},
      {8, "ptq4vit", "none", {81.00, 84.25, 85.82, 79.47, 81.48, 82.97, 81.24, 83.10, 85.14, 86.39}},
      {8, "ptq4vit", "position", {81.15, 84.33, 85.96, 79.58, 81.76, 83.12, 81.34, 83.18, 85.21, 86.44}},
      {6, "base-ptq", "none", {70.24, 75.66, 46.88, 72.26, 78.78, 68.44, 78.45, 81.74, 83.35, 85.22}},
      {6, "easyquant", "none", {75.13, 81.42, 82.02, 75.27, 79.47, 81.26, 79.51, 82.45, 84.30, 85.89}},
      {6, "ptq4vit", "none", {78.63, 81.65, 83.34, 76.28, 80.25, 81.55, 80.47, 82.38, 84.01, 85.38}},
      {6, "ptq4vit", "position", {79.22, 83.00, 85.00, 78.60, 81.29, 82.44, 80.56, 82.46, 84.28, 85.60}},
      {4, "ptq4vit", "none", {34.02, 35.30, 31.40, 24.05, 60.72, 75.93, 74.46, 76.46, 74.49, 77.26}},
      {4, "ptq4vit", "position", {54.74, 67.27, 68.29, 67.47, 75.78, 80.15, 74.74, 76.79, 77.78, 79.97}}};
  for (const Row& row : rows)
    if (row.bits == cell.bits && row.method == cell.method && row.bc == cell.bc) return row.top1[column];
  return 0;
}

void measure_cells(Model& model, const ImageFolder& data, const ImageFolder& calib, VisionRun run,
                   const std::function<bool(const VisionCell&)>& wanted, const Progress& progress, const Warn& warn,
                   const CellDone& done) {
  double calibration_seconds = 0;
  std::string calibrated;  // method and bits the model is quantized by
  for (const VisionCell& cell : vision_cells()) {
    if (!wanted(cell)) continue;
    run.method = cell.method;
    run.bc = cell.bc;
    run.wbits = run.abits = cell.bits;
    if (cell.method != "fp32" && calibrated != cell.method + cell.width()) {
      Timer calibration;
      quantize_vision(model, calib, run, progress, warn);
      calibration_seconds = calibration.seconds();
      calibrated = cell.method + cell.width();
    }
    Timer rest;
    model.clear_compensation();
    const int64_t values = compensate_vision(model, calib, run, progress);
    const Accuracy accuracy = evaluate_vision(model, data, run, progress);
    done(cell, run, accuracy, values, rest.seconds() + (cell.method == "fp32" ? 0 : calibration_seconds));
  }
}

}  // namespace bcq
