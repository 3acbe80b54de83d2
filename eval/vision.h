// Top-1 of a vision model, in float or quantized and compensated: one cell of the vision table.
#pragma once
#include <string>
#include <vector>

#include "data/image/image_folder.h"
#include "engine/file/json.h"
#include "eval/vision_options.h"
#include "models/model.h"
#include "quant/bias_comp.h"

namespace bcq {

struct VisionRun {
  std::string method = "fp32";  // fp32, base-ptq, easyquant, ptq4vit
  int wbits = 8, abits = 8;
  int64_t calib_images = 32;
  uint32_t seed = 3;
  std::string bc = "none";  // none, channel, position
  std::string bc_sites = "conv,linear,matmul";
  int64_t bc_images = 32;
  uint32_t bc_seed = 3;
  int64_t limit = 0;  // images to evaluate, spread over all; 0: every one
  int64_t batch_size = 32;
  int64_t bc_batch = 16;              // images that are averaged first; batches weigh equally
  std::string bc_stream = "float";    // inputs of what is compensated: float, quantized
  std::string swin_mask = "applied";  // while attention of a Swin is measured: applied, official
  PtqOverrides choices;               // where they are not the preset's
  std::string runtime = "simulate";   // of a quantized model: simulate, integer
};

// The options of a run that imagenet and table share: what quantizes and what compensates, but not method, bits and bc.
void add_calibration_options(CLI::App& app, VisionRun& run);
void add_bc_options(CLI::App& app, VisionRun& run);

// What the model tells apart, for list_images().
ModelClasses classes_of(const ModelInfo& info);

// The preset of run.method with the run's bits, seed and overrides. UsageError on an unknown method.
PtqOptions options_of(const VisionRun& run);

// Say so when the checkpoint is not the one the paper's row of this architecture is of.
void warn_of_tag(const Model& model, const Warn& warn);

// Quantize on images drawn from `calib`; nothing for fp32.
PtqCost quantize_vision(Model& model, const ImageFolder& calib, const VisionRun& run, const Progress& progress,
                        const Warn& warn);
// What run.bc is fitted on, in batches of run.bc_batch images.
std::vector<Batch> bc_batches(const Model& model, const ImageFolder& calib, const VisionRun& run);
// The options of run.bc with these outputs compensated.
BcOptions bc_options_of(const VisionRun& run, const std::string& sites);
// The number of values fitted (0 for bc none).
int64_t compensate_vision(Model& model, const ImageFolder& calib, const VisionRun& run, const Progress& progress);

// For run.runtime "integer": make every product ready that has an integer form. What becomes of them, as JSON:
// "integer_products", "simulated_products" by name, "integer_weight_bytes"; nothing for other runtimes. UsageError when
// there is none.
json prepare_runtime(Model& model, const VisionRun& run);

// Logits [B, classes] of pixels [B, 3, H, W].
Tensor logits_of(const Model& model, Precision precision, const Tensor& pixels);

struct Accuracy {
  std::vector<uint8_t> hit;             // per readable image: 1 when the first class is right
  std::vector<std::string> unreadable;  // a message for each of the others: no figure counts them
  double top1 = 0, top5 = 0;            // percent
  double top1_se = 0;                   // standard error of top1, percent points (binomial)
  std::string outputs_hash;             // checksum() of the bits of all logits, in hexadecimal
};
// Throws Error when an output is not finite.
Accuracy evaluate_vision(const Model& model, const ImageFolder& data, const VisionRun& run, const Progress& progress);

// Mean of a - b and its standard error over the same images, percent points.
struct Difference {
  double mean = 0, se = 0;
};
Difference paired_difference(const Accuracy& a, const Accuracy& b);

// "12 s: network 2 s, qkv 3 s, ...": what was calibrated, by kind of product; as JSON with the number of products.
std::string cost_text(const PtqCost& cost);
json to_json(const PtqCost& cost);

// What a compensation costs: "1234 values, 0 bytes added (0.00 % of the parameters)".
std::string bc_text(Model& model, int64_t values);

// The JSON record of a run, except what run_facts() adds.
json vision_record(Model& model, const VisionRun& run, const Accuracy& accuracy, int64_t bc_parameters, double seconds);

}  // namespace bcq
