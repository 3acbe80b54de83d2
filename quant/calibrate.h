// The one loop over a network that quantizers and compensations share.
//
// Parts (embedding, blocks, head) are taken in order. Two streams of hidden states go along, one tensor a batch each:
// what the float network makes of the data, and what the network as quantized so far makes of it. In each part methods
// are shown what they need, in the order they are given, and change the part; then both streams move on. A method that
// needs gradients is shown the float network, from the head back to the embedding. Batches may be taken side by side;
// what is summed over them is added up in their order, so that results do not depend on the number of threads.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/core/progress.h"
#include "quant/method.h"

namespace bcq {

// Finished parts of a calibration, by its name and the part's number, kept so that an interrupted one can go on. A part
// restored is that part to the last bit, or results would depend on interruptions.
struct PartStore {
  virtual ~PartStore() = default;
  virtual bool has(const std::string& calibration, int i) const = 0;  // whether load() will find it
  // Put part i back into the model as done() saw it; false when it was not finished.
  virtual bool load(const std::string& calibration, Model& model, int i, PartRecord& record) = 0;
  virtual void done(const std::string& calibration, Model& model, int i, const PartRecord& record) = 0;
};

struct CalibrationOptions {
  std::string name = "calibration";  // for progress and store
  Progress progress = {};
  PartStore* store = nullptr;
  int window_bits = 24;  // Context::window_bits of all passes
};

// Wall time, in seconds.
struct CalibrationSeconds {
  double total = 0;
  double passes = 0;  // data through parts of the network, and gradients
  double sums = 0;    // second moments and means
  double solve = 0;   // in methods
  // The same by the first layer of each group; of layers that are shared out, in the rank that had them.
  std::map<const Layer*, double> of_layer;
};

struct CalibrationResult {
  std::vector<PartRecord> parts;
  CalibrationSeconds seconds;

  // Values of compensations.
  int64_t fitted() const {
    int64_t sum = 0;
    for (const PartRecord& part : parts) sum += part.fitted;
    return sum;
  }
};

// Calibrate a model by these methods on `data` (may be empty if none of them needs any). Vision: batches of pixels;
// language: windows of ids, of one length where a compensation is per position. UsageError for points or needs the
// model has nothing for. Error naming the layer whose input stops being finite.
CalibrationResult calibrate(Model& model, const std::vector<Batch>& data, const std::vector<Method*>& methods,
                            const CalibrationOptions& options = {});

// Images [B, 3, H, W], B >= 1, in batches that are on one tape. UsageError for a language model or no image.
std::vector<Batch> vision_batches(const Model& model, const Tensor& images);

}  // namespace bcq
