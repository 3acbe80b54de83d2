// Top-1 of a vision model, in float or quantized and compensated: one cell of the vision table.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/image/image_folder.h"
#include "eval/run.h"

namespace bcq {

// How far quantized logits are from the float network's on the same images.
struct Paired {
  double agreement = 0, agreement_se = 0;  // images whose first class is the float network's, percent; binomial
  double kl = 0, kl_se = 0;                // mean over images of KL(float || quantized) of the softmaxed logits, nats
  double sqnr_db = 0;                      // 10 log10 of the mean squares of float logits over those of the differences
  double logit_mse = 0;                    // the latter
};
class PairedSums {
 public:
  void add(const float* real, const float* quantized, int64_t classes);  // of an image
  Paired result() const;

 private:
  double images_ = 0, agreeing_ = 0, kl_ = 0, kl_squares_ = 0, values_ = 0, signal_ = 0, noise_ = 0;
};
json to_json(const Paired& paired);       // without logit_mse; sqnr_db null where nothing differs
std::string kl_text(const json& record);  // "0.0123 +/- 0.0012", of a record that has it

struct Accuracy {
  std::vector<uint8_t> hit;             // per readable image: 1 when the first class is right
  std::vector<std::string> unreadable;  // a message for each of the others: no figure counts them
  double top1 = 0, top5 = 0;            // percent
  double top1_se = 0;                   // standard error of top1, percent points (binomial)
  std::string outputs_hash;             // checksum() of the bits of all logits, in hexadecimal
  std::optional<Paired> paired;
};

// Mean of a - b over the same units of Measured.
Estimate paired_difference(const Measured& a, const Measured& b);

class VisionTask : public Task {
 public:
  // InputError for a network without a classifier.
  VisionTask(Model& m, ImageFolder d, ImageFolder c);
  std::vector<Batch> calibration(const Recipe& recipe) override;          // one batch of all images
  const std::vector<Batch>& compensation(const Recipe& recipe) override;  // of recipe.bc_batch images each
  // With `paired`: the float network is run as loaded, for scales folded into it would move its logits in the last
  // bits.
  void before_quantization(const Progress& progress) override;
  Measured measure(const Recipe& recipe, size_t i, json& record, const Progress& progress) override;

  // Logits [B, classes] of pixels [B, 3, H, W].
  Tensor logits(Precision precision, const Tensor& pixels) const;

  ImageFolder data, calib;
  int64_t limit = 0;        // images to evaluate, spread over all; 0: every one
  int64_t batch_size = 32;  // images at a time
  bool paired = false;      // compare quantized logits with the float network's, which is run once beside them
  Accuracy accuracy;        // as last measured

 private:
  struct Outputs;
  Outputs outputs(Precision precision, std::vector<int64_t> images);
  Accuracy evaluate(Precision precision, const Progress& progress);
  const Tensor& float_logits(const std::vector<int64_t>& images, const Tensor& pixels);
  std::vector<Batch> compensation_;
  std::map<std::vector<int64_t>, Tensor> float_logits_;  // by images
};

// One choice of outputs to compensate, and what the network compensated there is worth.
struct BcRanking {
  std::string sites;   // as --bc-sites has it; empty: nothing is compensated
  int64_t values = 0;  // fitted
  Paired paired;
};
// The grid search of the official scripts (--gsfb), selecting without test images.
// Fit and rank nothing and each of the 31 unions of layers (conv, linear, matmul), attention, MLPs, blocks (and a
// Swin's merges and stages) and the output; lowest divergence first, of equal ones the first in this order. Each is
// fitted on the recipe's BC images and scored on up to `images` others of task.calib that neither it nor the quantizer
// has seen; UsageError when there are none. The quantized model is left without compensation.
std::vector<BcRanking> search_compensations(VisionTask& task, const Recipe& recipe, int64_t images,
                                            const Progress& progress);
json to_json(const std::vector<BcRanking>& ranking);

// What the model tells apart, for list_images().
ModelClasses classes_of(const ModelInfo& info);

// Say so when the checkpoint is not the one the paper's row of this architecture is of.
void warn_of_tag(const Model& model, const Warn& warn);

// For a recipe evaluated in integers: make every product ready that has an integer form. What becomes of them, as JSON:
// "integer_products", "simulated_products" by name, "integer_weight_bytes"; an empty object for other recipes.
// UsageError when there is none.
json prepare_runtime(Model& model, const Recipe& recipe);

// Of a model that was saved quantized: method Stored, with the bits that most of its operands have. UsageError as
// set_stored_method() has it, and for an integer runtime of a model that is not quantized.
void set_stored_vision(Model& model, Recipe& recipe);
// Before anything is computed: UsageError unless what the recipe makes can be saved.
void check_saving_vision(const Recipe& recipe);

// "12 s: network 2 s, qkv 3 s, ...": what was calibrated, by kind of product; as JSON with the number of products.
std::string cost_text(const CalibrationSeconds& cost);
json to_json(const CalibrationSeconds& cost);
std::string hash_of(const ImageFolder& folder);  // of the images' names and labels

}  // namespace bcq
