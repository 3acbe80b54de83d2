// A linear layer beside each block that makes up for what is left of its error ("QwT: Quantization without Tears").
#pragma once
#include "quant/method.h"

namespace bcq {

// Of every block whose output has the shape of its input, with x its input and e what its output lacks of the float
// network's, both streams as they come, tokens weighted as by the joint method:
//   min_W,b E || W x + b - e ||² + λ || W ||²   =>   W = Cov(e, x) (Cov(x) + λ)⁻¹,  b = E e - W E x,
// λ a hundredth of Cov(x)'s mean diagonal. Costs D² products a token and D² + D parameters a block.
class Qwt : public Method {
 public:
  Needs needs() const override { return {.stream = Stream::Quantized, .sequential = true, .blocks = true}; }
  void see_block(const Tensor& x, const Tensor& error) override;
  void fit_block(int i, PartRecord& record) override;

 private:
  std::vector<Tensor> seen_, errors_;
};

}  // namespace bcq
