// Whole operands of layers on the calibration samples, for methods that try grids on them; and the calibration that
// shows them on the float network, with gradients if wanted, from the head back to the embedding.
#pragma once
#include <map>

#include "quant/calibrate.h"

namespace bcq {

// Gathers the operands and outputs of layers, batch by batch, each in its place among all samples.
class OperandCapture {
 public:
  explicit OperandCapture(const std::vector<Batch>& data);

  void start(size_t batch);  // what add() is given next is of this batch
  void add(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& y);
  // Adds the squares of a gradient at the layer's output, on this batch.
  void add_gradient(const Layer& layer, const Tensor& g);
  // All of a layer, which is forgotten here. Error when it never ran.
  Operands take(const Layer* layer);

 private:
  struct Entry {
    Operands operands;
    int exponent = 0;  // g2 is the sum of (G / 2^exponent)²
  };
  void put(Tensor& all, const Tensor& batch) const;

  std::vector<int64_t> first_;  // sample of each batch, and their number
  size_t batch_ = 0;
  std::map<const Layer*, Entry> layers_;
};

// Calibrate by one method that is shown operands of the float network, all layers in parallel. Each rank fits whole
// parts: what a method keeps from layer to layer, it keeps within a part.
CalibrationResult calibrate_on_float(Model& model, const std::vector<Batch>& data, Method& method,
                                     const CalibrationOptions& options);

}  // namespace bcq
