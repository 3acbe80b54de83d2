// A layer is one matrix product of a network: x Wᵀ + bias, q kᵀ or A v.
//
// It is the only place where precision is branched on, but for the fused forms of attention and MLP, which compute the
// same values. A layer holds what was loaded and, beside it, what quantization makes of it, so that the float and the
// quantized network are one object run with another Context, and the error that bias compensation removes is the
// difference of two calls. (BC: "Minimize Quantization Output Error with Bias Compensation")
#pragma once
#include <functional>
#include <string>

#include "engine/gemm/gemm_packed.h"
#include "engine/gemm/weight.h"
#include "engine/nn/tape.h"

namespace bcq {

// What a layer does in its block: all that a quantization policy needs to know of it.
enum class Role { Patch, QKV, Query, Key, Value, QK, AV, Proj, Fc1, Fc2, Reduction, Head };

enum class Precision {
  Float,   // the network as loaded
  Fake,    // operands rounded to their grids, compensated; computed in float
  Integer  // the same from 8-bit codes and exact sums, where a layer was prepared for it; else as Fake
};

struct KvCache;
struct Layer;
struct Int8Layer;  // engine/nn/int8_layer.h
struct Context;
using Branch = std::function<Tensor(const Context& ctx, const Tensor& x)>;

// Sees every product that is computed. For a linear layer b is empty: the other operand is its weight.
struct Observer {
  virtual ~Observer() = default;
  virtual void input(const Layer&, const Tensor& /*a*/, const Tensor& /*b*/) {}  // before the product
  // Whether this pass has shown all that is wanted: products and attention then return zeros of the right shape at
  // once, for nobody looks at what follows.
  virtual bool is_done() const { return false; }
  // What this layer is fed, where that is known and the pass begins with it: until then is_done() holds. Null: what it
  // is given.
  virtual const Tensor* known_input(const Layer&) { return nullptr; }
  virtual void product(const Layer&, const Tensor& /*a*/, const Tensor& /*b*/, const Tensor& /*y*/) {}
  // A residual branch (attention, MLP) made y out of x; it can be run again, in another precision.
  virtual void branch(const Layer& /*last*/, const Tensor& /*x*/, const Tensor& /*y*/, const Branch&) {}
};

struct Context {
  Precision precision = Precision::Float;
  Tape* tape = nullptr;  // records gradients; Float only
  Observer* observer = nullptr;
  bool masked = true;        // whether a Swin masks its shifted windows: BC of attention may be measured without
  KvCache* cache = nullptr;  // language: the tokens before these (engine/nn/attention.h)
  int window_bits = 24;      // of PackedWeight::multiply

  bool is_done() const { return observer && observer->is_done(); }
  int64_t first_position() const;  // of what is computed: the tokens in the cache
};

// A vector that is added: of a layer or a norm, and what a compensation of its output makes of it.
struct Bias {
  Tensor loaded;       // [out], or empty
  Tensor compensated;  // with a compensation per channel folded in, [out]; empty: none was

  const Tensor& in(Precision precision) const {
    return precision == Precision::Float || compensated.empty() ? loaded : compensated;
  }
};

// What quantization makes of a layer. Made whole, never changed, replaced whole.
struct Quantized {
  Grid left, right;  // of the operands; identity: it stays float. Of a packed weight, PackedWeight knows the grid
  Weight weight;     // rounded to `right`, [out, in]; empty where it stays float
  std::shared_ptr<const PackedWeight> packed;  // what `weight` is, or null
  std::shared_ptr<const Int8Layer> int8;       // what Precision::Integer computes with, or null
  // AV: softmax is rounded as exp(score - largest of its row), and the product divided by the sum of the rounded row,
  // so that the weights of a row still sum to 1 and `left` has the same range for flat and for sharp rows.
  bool renormalized = false;
};

// Divides x[0..n), n >= 1 values that are not negative, by the largest; all zeros stay.
void scale_to_largest(float* x, int64_t n);

struct Layer {
  std::string name;  // as the checkpoint names it: "blocks.0.attn.qkv"; products "blocks.0.attn.matmul1"
  Role role = Role::Proj;
  Weight weight;  // [out, in]; empty for QK and AV, whose operands are both activations
  Bias bias;
  Tensor gamma;  // a LayerScale behind it, [out]: what it puts out is multiplied by this by its block; empty: none
  std::shared_ptr<const Quantized> quantized;  // null: as loaded
  Tensor added;  // a compensation that cannot be folded: the output's shape less the batch, 1 where it is shared

  bool is_linear() const { return !weight.empty(); }
  bool is_quantized() const;  // whether anything is rounded
  const PackedWeight* packed() const { return quantized ? quantized->packed.get() : nullptr; }
  const BinaryPlanes* binarized() const;  // or null
  const Int8Layer* int8() const { return quantized ? quantized->int8.get() : nullptr; }
  const Grid& left_grid() const;  // identity where it is not quantized
  const Weight& weight_in(Precision precision) const;

  // x [B, ..., in] -> [B, ..., out]
  Tensor run(const Context& ctx, const Tensor& x) const { return run(ctx, x, Tensor{}); }
  // QK: a [B, H, N, d], b [B, H, M, d] -> a bᵀ.  AV: a [B, H, N, M], b [B, H, M, d] -> a b.
  Tensor run(const Context& ctx, const Tensor& a, const Tensor& b) const;
  // The product alone, seen by nobody. b is ignored for a linear layer.
  Tensor product(const Context& ctx, const Tensor& a, const Tensor& b) const;

  // Put gamma into the rows of the float weight and the bias: the same network but for rounding. Error when quantized.
  void fold_gamma();
  void quantize(Quantized q) { quantized = std::make_shared<const Quantized>(std::move(q)); }
  void quantize(Grid left, Grid right);                       // of the operands; a weight is rounded to `right`
  void quantize(PackedWeight w);                              // the weight; the grid of the input stays as it is
  void quantize(std::shared_ptr<const BinaryPlanes> planes);  // the same
  // Make the form for Precision::Integer. False when this layer has to be simulated. Of one that has the same weight on
  // the same grid, if given, the weight's codes are shared.
  bool prepare_int8(const Int8Layer* same_weight = nullptr);
};

// A place where the quantized network may add a vector to an output (bias compensation).
struct Point {
  enum class Kind { Conv, Linear, Matmul, Attention, Mlp, Block, Downsample, Stage, Model };
  Kind kind = Kind::Linear;
  std::string name;               // of the output: "blocks.0.attn.qkv", "blocks.0.attn", "blocks.0", "stage.1", "model"
  const Layer* layer = nullptr;   // whose output it is, or the last of the branch; null for parts of the network
  std::vector<Bias*> folds_into;  // take one value per channel (of two heads that are averaged both); none: it is added
  std::vector<Tensor*> added;     // take all others
  std::string tensor;             // name of what it folds into in a checkpoint, without what precedes the blocks
  Tensor gamma = {};              // what stands between a bias and the output: it takes a value divided by this

  bool is_product() const { return kind <= Kind::Matmul; }
  // On top of what is there. Where gamma has a 0, nothing folds. Error when shapes differ.
  void add(const Tensor& b) const;
  void clear() const;
};

// y += a vector kept by a point, in the quantized network: the only place where one is added, but for fused forms.
void add_compensation(const Context& ctx, const Tensor& added, Tensor& y);

// Run a residual branch whose output is that of `last`, so that an observer sees it as a whole: attention ends in proj,
// the MLP in fc2.
Tensor run_branch(const Context& ctx, const Layer& last, const Tensor& x, const Branch& branch);

}  // namespace bcq
