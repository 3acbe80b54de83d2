// Reverse-mode gradients of activations, enough for dL/d(output) of every site.
//
// An op that is handed a tape gives its output a slot and leaves a closure that
// adds to the gradients of its inputs; backward() runs the closures in reverse.
// Inputs without a slot (weights, pixels) are constants. First order only.
#pragma once
#include <functional>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

class Tape {
 public:
  // Make x a variable whose gradient is wanted.
  void watch(Tensor& x) { x.slot = new_slot(x); }

  // y was computed by an op; `backward(dy)` adds dL/dx into grad(x) for each input x with a slot.
  void record(Tensor& y, std::function<void(const Tensor& dy)> backward);

  // The accumulated gradient, in the shape t was recorded with (zeros before anything reached it). t must have a
  // slot.
  Tensor& grad(const Tensor& t);
  void add_to_grad(const Tensor& t, const Tensor& g);  // grad(t) += g where t has a slot

  // Propagate dL/dy back to everything y was computed from. Once per tape.
  void backward(const Tensor& y, const Tensor& dy);

 private:
  int new_slot(const Tensor& t);
  struct Step {
    int slot;
    std::function<void(const Tensor&)> backward;
  };
  std::vector<Step> steps_;
  std::vector<Shape> shapes_;
  std::vector<Tensor> grads_;
};

}  // namespace bcq
