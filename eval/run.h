// The flow all programs share: a model is calibrated by a recipe, on data of its family, measured, and recorded.
// Nothing else in eval/ calls the quantizers and compensations of quant/.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "engine/file/json_fwd.h"
#include "models/model.h"
#include "quant/bias_comp.h"
#include "quant/recipe.h"

namespace bcq {

// What a model was measured to be on one data set.
struct Measured {
  std::vector<double> units;  // the figure is a mean of: 100 or 0 per image; nll per window
  double figure = 0, se = 0;  // top-1 in percent, or perplexity; NaN: not known
};

// A number, and its standard error.
struct Estimate {
  double value = 0, se = 0;
};

// A model and the data of its family: what a recipe is applied to.
class Task {
 public:
  explicit Task(Model& m) : model(m) {}
  virtual ~Task() = default;
  // Inputs to quantize on, and to compensate on. A task draws each once: recipes it is given agree in their numbers.
  virtual std::vector<Batch> calibration(const Recipe& recipe) = 0;
  virtual const std::vector<Batch>& compensation(const Recipe& recipe) = 0;
  // The model is as loaded, and about to be quantized.
  virtual void before_quantization(const Progress&) {}
  // Measure the model as it stands on data set `i`; adds what there is to say of it to `record`.
  virtual Measured measure(const Recipe& recipe, size_t i, json& record, const Progress& progress) = 0;
  Model& model;
};

// What quantization and compensation did.
struct Outcome {
  CalibrationResult solved, compensated;
  std::vector<OutputError> before, after;  // with `report`, of a vision model: without and with compensation
  int64_t fitted = 0;                      // values of compensations
};
// Quantize the model by the recipe; what it held of quantization before is forgotten. `store` (may be null) keeps
// finished blocks and has those of an interrupted run.
Outcome quantize(Task& task, const Recipe& recipe, const Progress& progress, const Warn& warn,
                 PartStore* store = nullptr);
// What quantize() has left to do: compensate the quantized model anew.
void compensate(Task& task, const Recipe& recipe, Outcome& outcome, const Progress& progress,
                PartStore* store = nullptr, bool report = false);

// Of a model that was stored quantized: the recipe becomes that of the method Stored. UsageError when it would quantize
// or compensate again; also when it says Stored and the model is not. Returns whether it was stored.
bool set_stored_method(const Model& model, Recipe& recipe);

// What the model computes with as the recipe has it evaluated.
Precision precision_of(const Recipe& recipe);
// Average bits of a quantizable weight, scales and zero points included; 32 for a float model.
double bits_per_weight(Model& model);
int most_common(const std::map<int, int64_t>& counts);  // of equal ones the least
const char* op_name(Role role);  // "qkv", "matmul1", "fc2": as the published code calls the product

const char* version();  // git describe of the sources
// Of the contents of a model's files: *.safetensors and *.json in its folder, or beside it. 16 hex digits.
std::string fingerprint(const std::string& model);
std::string file_hash(const std::string& path);
// Of several ranks, whose disks may differ: UsageError unless all have the same model, and the same data by this hash.
void require_same_files(const std::string& model, const std::string& data_hash);

// A recipe as records have it: every option of the family, null where it does not apply, and `recipe` itself.
json flat_recipe(Model& model, const Recipe& recipe);
// What all records say of a model that was quantized and compensated.
json model_record(Model& model, const Recipe& recipe, int64_t fitted);
// "1234 values, 0 parameters and 0 bytes added: 0.00 % of the model's"
std::string bc_text(Model& model, int64_t fitted);

}  // namespace bcq
