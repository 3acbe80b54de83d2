// The vision table of the paper: its cells, its numbers, and how a column of it is measured.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "eval/vision.h"

namespace bcq {

struct VisionCell {
  int bits;  // of weights and activations; 32: the float model
  std::string method, bc;
  std::string label() const;  // "PTQ4ViT + BC (channel)"
  std::string width() const;  // "4/4"
};
// In the order of the table; the float model first.
std::vector<VisionCell> vision_cells();

struct PaperColumn {
  const char* label;         // "DeiT-B*"
  const char* architecture;  // "deit_base_patch16_384"
};
extern const PaperColumn kPaperColumns[10];
// Top-1 the paper prints for a cell (BC per position) of a column, 0 where it prints none. (README of the official
// repository; its BasePTQ and EasyQuant rows are cited from PTQ4ViT)
double paper_top1(const VisionCell& cell, size_t column);

using CellDone =
    std::function<void(const VisionCell&, const VisionRun&, const Accuracy&, int64_t values, double seconds)>;
// Measure the cells that are wanted, one calibration for all that share it. `run` gives everything but method, bits
// and bc; the model is left quantized.
void measure_cells(Model& model, const ImageFolder& data, const ImageFolder& calib, VisionRun run,
                   const std::function<bool(const VisionCell&)>& wanted, const Progress& progress, const Warn& warn,
                   const CellDone& done);

// The embedded vision models that are in a folder, in the order of the table: "vit", "deit", "swin".
std::vector<std::string> vision_minis(const std::string& folder);

struct VisionTable {
  std::string models, imagenet;              // checkpoints and images; empty: the embedded ones, of
  std::string mini = "data/mini";            // this folder
  std::string labels, cache;                 // as list_images() takes them
  std::string cells = "build/table-vision";  // folder of finished cells
  VisionRun run;                             // everything but method, bits and bc
};
// Measure every cell of the models that are there and is not finished, and print the table: Markdown on stdout, JSON
// to `json_path` (see write_record). A model that cannot be measured leaves its cells "failed", those that are not
// there "not run"; throws Incomplete at the end when any failed.
void vision_table(const VisionTable& options, const std::string& json_path);

}  // namespace bcq
