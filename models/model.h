// What every network is to the rest of the engine: embed, a row of blocks, head.
//
// Float evaluation, gradients block by block, PTQ calibration, GPTQ's walk and
// perplexity are loops over this one interface.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/nn/layer.h"

namespace bcq {

class OnnxGraph;
class OnnxLayers;

enum class Family { Vision, Language };

struct ModelInfo {
  std::string name;       // architecture or folder name: "vit_base_patch16_224", "opt-125m"
  std::string tag;        // checkpoint tag of a timm config ("augreg_in21k_ft_in1k"), else ""
  std::string directory;  // where config.json was found
  std::string weights;    // the file, or the index of the files, they were read from
  bool packed = false;    // quantized as loaded: the float network is that of the stored weights
  Family family = Family::Vision;
  ImageConfig image;                // vision: how pixels are made
  int64_t outputs = 0;              // classes, vocabulary entries, or features of a network without a classifier
  int64_t max_length = 0;           // language: longest window
  int64_t read_tokens = 0;          // vision: the first tokens, which alone the head reads; 0: all
  int64_t parameters = 0;           // values of all tensors the network uses
  bool timm = false;                // vision: timm's config.json, not transformers'
  std::vector<std::string> labels;  // vision: names of the classes as the model carries them; empty: it has none
  std::vector<std::string> notes;   // what a person should know of how it was read: defaults that were taken
  std::map<std::string, std::vector<std::string>> places;  // vision: of each tensor, its names in the file
};

// A layer norm: its scale and shift, [D]. A block that ends in one folds the compensation of its output into the shift.
struct Norm {
  Tensor weight;
  Bias bias;
  std::string name = {};  // "blocks.0.norm1"
  bool centred = true;    // LayerNorm; an RMSNorm leaves the mean, and its files have no shift
};

// The per-channel scale and shift a tensor comes with: they can be changed here, and undone in the layers it is fed to,
// without changing the network.
struct FoldSource {
  Norm* norm = nullptr;            // makes the tensor
  Layer* layer = nullptr;          // or makes it, through operations that leave channels apart (attention, ReLU)
  std::vector<int64_t> rows = {};  // of that layer: which of its outputs is channel c; empty: output c
};

// Layers that are fed one tensor, in the order they run; a product of two activations is a group of its own.
struct LayerGroup {
  std::vector<Layer*> layers;
  FoldSource source = {};  // empty where nothing can be folded
};

// A part of a network: what runs between two streams of hidden states.
struct Part {
  enum class Kind { Embedding, Block, Merge, Head };  // Merge: of patches, between two stages of a Swin
  Kind kind = Kind::Block;
  std::string name = {};                // what the names of its layers begin with: "blocks.0"
  std::vector<LayerGroup> groups = {};  // in the order they run
  std::vector<Point> branches = {};     // attention and MLP, where they run as residual branches
  Point output = {};                    // of a block or merge
  // Whether its output is its input plus the outputs of its Proj and of its Fc2.
  bool is_sum = false;
  bool ends_stage = false;  // of a network that has several

  std::vector<Layer*> layers() const;
  const LayerGroup& group_of(const Layer& layer) const;  // Error when it is no layer of the part
};

class Model {
 public:
  virtual ~Model() = default;

  const ModelInfo& info() const { return info_; }
  virtual int depth() const = 0;  // number of blocks

  // Vision: pixels -> [B, N, D].  Language: token ids -> [B, T, D].
  virtual Tensor embed(const Context& ctx, const Batch& batch) const = 0;
  // Block i, compensated unless the context is Float.  [B, N, D] -> [B, N, D]; a merge [B, N, C] -> [B, N/4, 2C].
  Tensor block(const Context& ctx, int i, const Tensor& x) const;
  // Vision: [B, N, D] -> [B, classes].  Language: [B, T, D] -> [B, T, V].
  virtual Tensor head(const Context& ctx, const Tensor& x) const = 0;
  // Part -1: the embedding of `batch`. Part i: block i of x. Part depth(): the head of x.
  Tensor run(const Context& ctx, int i, const Batch& batch, const Tensor& x) const;
  Tensor forward(const Context& ctx, const Batch& batch) const;
  // Language: the logits after the last token of each window, [B, V]. The tokens follow those in ctx.cache and join
  // them.
  Tensor next_logits(const Context& ctx, const Batch& batch) const;

  // What part i is made of, -1 ... depth(). Of a language model's embedding and head nothing can be quantized.
  virtual Part part(int i) = 0;
  std::vector<Layer*> layers(int i) { return part(i).layers(); }
  std::vector<Layer*> all_layers();
  Part::Kind kind(int i) { return part(i).kind; }

  // Where a compensation of a layer's output goes.
  static Point point_of(Layer& layer);
  Point model_point();              // of the logits; without a place where the head is not quantized
  std::vector<Point> all_points();  // of all layers and blocks

  // Add W x + b, in float, to what block i makes of x in the quantized network. W [D, D], b [D]. clear() forgets it.
  void set_block_linear(int i, const Tensor& weight, const Tensor& bias);
  std::pair<Weight, Tensor> block_linear(int i) const;  // W and b, empty where there is none
  int64_t block_linear_values() const;                  // of all of these

  // Make Precision::Integer ready, once grids stand. Returns the names of layers it will simulate.
  std::vector<std::string> prepare_int8();

  // Vision, of a network that is only run, in float: hold its weights as the panels that products read (Weight), in
  // memory of their own, so that no pass makes them again. The same outputs, to the last bit; quantizing it is slower.
  void make_panels();

  // Put every LayerScale into the layer before it (Layer::fold_gamma), before anything is quantized; clear() undoes it.
  void fold_layer_scale();

  // Channel c of the tensor a group is fed becomes x_c / scale_c - shift_c: its source makes that instead (the norm's
  // scale and shift, or rows of a layer, which may be quantized already), and the layers undo it, W' = W diag(scale),
  // b' = b + W' shift, for both the float and the quantized network. Of q kᵀ it is the keys that are shifted, with
  // scales of 1. What the network computes stays as it is, up to rounding; clear() undoes it. scale > 0 and shift are
  // [in]. Error when the group has no source. (RepQ-ViT, section 3.2; SmoothQuant)
  void fold(const LayerGroup& group, const std::vector<float>& scale, const std::vector<float>& shift);
  bool is_folded() const { return !unfold_.empty(); }
  // clear() puts back what `of`, a weight, a norm or a bias of this model, holds now.
  template <class T>
  void keep(T& of) {
    unfold_.push_back([&of, was = of] { of = was; });
  }

  // The network as an ONNX graph, pixel_values [B, 3, height, width] -> logits [B, classes]: as loaded in
  // Precision::Float, else quantized and compensated. UsageError naming what the graph cannot say (a language model).
  OnnxGraph onnx(Precision precision) const;

  void clear();               // everything as loaded
  void clear_compensation();  // keep the grids, forget the biases

 protected:
  virtual Tensor block_body(const Context& ctx, int i, const Tensor& x) const = 0;
  // Part i, -1 ... depth(), as nodes of a graph: embed() of pixels x, block_body() or head().
  virtual std::string onnx_part(OnnxLayers& to, int i, const std::string& x) const;
  // The output of block i as a point that folds into `bias`, by the name it has in checkpoints.
  Point block_point(int i, const std::string& name, Bias* bias, const std::string& tensor);
  // InputError unless the batch has pixels [B, 3, height, width] as info() says.
  void require_pixels(const Batch& batch) const;
  ModelInfo info_;
  std::vector<std::function<void()>> unfold_;            // undo what was folded, the last first
  std::vector<std::pair<Weight, Tensor>> block_linear_;  // of each block, or empty
  std::vector<Tensor> block_added_;  // of each block: a compensation that is not folded, [N, D]; or empty
};

// What Model::fold() makes of a tensor that is there already, in place: x[..., c] = x[..., c] / scale_c - shift_c.
void fold_channels(Tensor& x, const std::vector<float>& scale, const std::vector<float>& shift);

// Load a network from a folder (config.json beside model.safetensors, its sharded index, or the one
// *.safetensors there is) or from a .safetensors file with config.json in the same folder.
// Throws InputError naming file, key or tensor, what was expected and what was found.
std::unique_ptr<Model> load_model(const std::string& path);

}  // namespace bcq
