// A site is one matrix product of a network: x Wᵀ + bias, q kᵀ or A v.
//
// It is the only place where precision is branched on. A site holds the float
// operands and what quantization makes of them side by side, so that the float and
// the quantized network are the same object run with another Context, and the error
// BC removes is the difference of two calls. (BC: "Minimize Quantization Output
// Error with Bias Compensation"; the sites are those of its scripts.)
#pragma once
#include <functional>
#include <string>

#include "engine/gemm/packed.h"
#include "engine/gemm/weight.h"
#include "engine/nn/tape.h"

namespace bcq {

// What a site does in its block: all that a quantization policy needs to know of it.
enum class Role { Patch, QKV, Query, Key, Value, QK, AV, Proj, Fc1, Fc2, Reduction, Head };

enum class Precision {
  Float,   // the network as loaded
  Fake,    // operands rounded to their grids, compensated; computed in float
  Integer  // the same from 8-bit codes and exact sums, where a site was prepared for it; else as Fake
};

struct KvCache;
struct Site;
struct IntegerSite;  // engine/nn/integer.h
struct Context;
using Body = std::function<Tensor(const Context& ctx, const Tensor& x)>;

// Sees every product that is computed. For a linear site b is empty: the other operand is its weight.
struct Observer {
  virtual ~Observer() = default;
  // Before the product. An observer that has seen what it needs may throw, and so end the pass.
  virtual void input(const Site&, const Tensor& /*a*/) {}
  virtual void site(const Site&, const Tensor& /*a*/, const Tensor& /*b*/, const Tensor& /*y*/) {}
  // A chain of sites made y out of x; `body` can be run again, in another precision.
  virtual void chain(const Site& /*last*/, const Tensor& /*x*/, const Tensor& /*y*/, const Body& /*body*/) {}
};

struct Context {
  Precision precision = Precision::Float;
  Tape* tape = nullptr;  // records gradients; Float only
  Observer* observer = nullptr;
  bool masked = true;        // whether a Swin masks its shifted windows: BC of attention may be measured without
  KvCache* cache = nullptr;  // language: the tokens before these (engine/nn/attention.h)
};

struct Site {
  std::string name;  // as the checkpoint names it: "blocks.0.attn.qkv"; products "blocks.0.attn.matmul1"
  Role role = Role::Proj;
  Weight weight;  // [out, in]; empty for QK and AV, whose operands are both activations
  Tensor bias;    // [out] or empty

  // What quantization and compensation fill in. Identity and empty mean: as in Float.
  Grid a, b;                                   // grids of the left and the right operand
  Weight weight_hat;                           // weight rounded to b; [out, in]
  std::shared_ptr<const PackedWeight> packed;  // what weight_hat is, and the grid it has instead of b, where it is
  Tensor bias_hat;                             // bias with a per-channel compensation folded in; [out]
  Tensor bc;  // a compensation that cannot be folded: the output's shape less the batch,
              // with 1 where it is shared
  std::shared_ptr<const IntegerSite> integer;  // of all this, what Precision::Integer computes with

  bool is_linear() const { return !weight.empty(); }
  bool is_quantized() const { return packed || !is_identity(a) || !is_identity(b); }

  // x [B, ..., in] -> [B, ..., out]
  Tensor run(const Context& ctx, const Tensor& x) const;
  // QK: a [B, H, N, d], b [B, H, M, d] -> a bᵀ.  AV: a [B, H, N, M], b [B, H, M, d] -> a b.
  Tensor run(const Context& ctx, const Tensor& a, const Tensor& b) const;
  // The product in one precision, seen by nobody. b is ignored for a linear site. `first`: what position of a
  // compensation per position a begins at.
  Tensor product(Precision precision, Tape* tape, const Tensor& a, const Tensor& b, int64_t first = 0) const;

  void set_packed(PackedWeight w);  // as packed and weight_hat
  // Make `integer`, once grids and compensation stand; weight_hat is decoded from it from then on. False when this
  // site has to be simulated. Of a site with the same weight_hat, if given, the weight's codes are shared.
  bool prepare_integer(const IntegerSite* same_weight = nullptr);
  void clear();  // forget quantization and compensation
};

// Run a chain of sites whose output is that of `last`, so that an observer sees it as a whole:
// attention ends in proj, the MLP in fc2.
Tensor run_chain(const Context& ctx, const Site& last, const Tensor& x, const Body& body);

}  // namespace bcq
