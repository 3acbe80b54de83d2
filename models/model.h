// What every network is to the rest of the engine: embed, a row of blocks, head.
//
// Float evaluation, gradients block by block, PTQ calibration, GPTQ's walk and
// perplexity are loops over this one interface.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/nn/site.h"

namespace bcq {

enum class Family { Vision, Language };

struct ModelInfo {
  std::string name;       // architecture or folder name: "vit_base_patch16_224", "opt-125m"
  std::string tag;        // checkpoint tag of a timm config ("augreg_in21k_ft_in1k"), else ""
  std::string directory;  // where config.json was found
  std::string weights;    // the file, or the index of the files, they were read from
  bool packed = false;    // the weights are codes: quantized as loaded
  Family family = Family::Vision;
  ImageConfig image;       // vision: how pixels are made
  int64_t outputs = 0;     // classes, or vocabulary entries
  int64_t max_length = 0;  // language: longest window
  int64_t parameters = 0;  // values of all tensors the network uses
};

class Model {
 public:
  virtual ~Model() = default;

  const ModelInfo& info() const { return info_; }
  virtual int depth() const = 0;  // number of blocks

  // Vision: pixels -> [B, N, D].  Language: token ids -> [B, T, D].
  virtual Tensor embed(const Context& ctx, const Batch& batch) const = 0;
  // Block i, with its compensation when the context is Fake.  [B, N, D] -> [B, N, D]
  Tensor block(const Context& ctx, int i, const Tensor& x) const;
  // Vision: [B, N, D] -> [B, classes].  Language: [B, T, D] -> [B, T, V].
  virtual Tensor head(const Context& ctx, const Tensor& x) const = 0;
  Tensor forward(const Context& ctx, const Batch& batch) const;
  // Language: the logits after the last token of each window, [B, V]. The tokens follow those in ctx.cache and join
  // them.
  Tensor next_logits(const Context& ctx, const Batch& batch) const;

  // Whether block i only merges patches, between two stages of a Swin: [B, N, C] -> [B, N/4, 2C].
  virtual bool is_merge(int) const { return false; }

  // The sites of block i in the order they run; -1: of the embedding, depth(): of the head.
  virtual std::vector<Site*> sites(int i) = 0;
  std::vector<Site*> all_sites();

  // The vector [D] whose addition ends block i, into which a per-channel compensation of its output is folded:
  // the bias of its last site, or of the norm after it where a block ends in one.
  struct BlockEnd {
    std::string name;    // of the tensor, without what precedes the blocks: "layers.0.fc2.bias"
    const Tensor* bias;  // as loaded; may be empty
    Tensor* bias_hat;    // used instead in Fake unless empty
  };
  virtual BlockEnd block_end(int i);
  // Is the output of a block its input plus those of its Proj and of its Fc2?
  virtual bool is_sum() const { return false; }
  // Compensations of block outputs that cannot be folded; one per block, empty where there is none.  [N, D]
  std::vector<Tensor> block_bc;

  // Make Precision::Integer ready, once grids and compensations stand. Returns the names of sites it will simulate.
  std::vector<std::string> prepare_integer();

  void clear();               // every site and block as loaded
  void clear_compensation();  // keep the grids, forget the biases

 protected:
  virtual Tensor block_body(const Context& ctx, int i, const Tensor& x) const = 0;
  // InputError unless the batch has pixels [B, 3, height, width] as info() says.
  void require_pixels(const Batch& batch) const;
  ModelInfo info_;
};

// Load a network from a folder (config.json beside model.safetensors, its sharded index, or the one
// *.safetensors there is) or from a .safetensors file with config.json in the same folder.
// Throws InputError naming file, key or tensor, what was expected and what was found.
std::unique_ptr<Model> load_model(const std::string& path);

}  // namespace bcq
