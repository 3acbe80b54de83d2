// The one tensor of the engine: float32, contiguous, row-major, shared by handle.
//
// Letters used for shapes in the whole repository:
//   B batch (images or windows)   N tokens of an image   T tokens of a text window
//   C, D channels                 H heads                d channels of one head
//   P patch side                  V vocabulary
// A tensor owns its memory, or borrows it from a mapped file through `owner`.
// Borrowed memory is read-only: weights are never written in place.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace bcq {

using Shape = std::vector<int64_t>;

int64_t numel(const Shape& shape);          // product of the dimensions; 1 for a scalar
std::string to_string(const Shape& shape);  // "[2, 3]"

inline size_t at(int64_t i) { return static_cast<size_t>(i); }  // an index or a size of a std::vector

struct Tensor {
  Shape shape;
  float* data = nullptr;
  std::shared_ptr<void> owner;
  int slot = -1;  // index of its gradient on the tape that recorded it; -1: a constant

  Tensor() = default;
  explicit Tensor(Shape s);                           // zeros
  Tensor(Shape s, const std::vector<float>& values);  // copies; sizes must agree
  static Tensor uninitialized(Shape s);
  static Tensor borrow(Shape s, const float* bytes, std::shared_ptr<void> owner);

  bool empty() const { return data == nullptr; }
  int64_t size() const { return numel(shape); }
  int rank() const { return static_cast<int>(shape.size()); }
  int64_t dim(int i) const { return shape[at(i < 0 ? i + rank() : i)]; }
  int64_t rows() const { return size() / dim(-1); }  // product of all but the last dimension

  Tensor reshaped(Shape s) const;  // same memory and slot; sizes must agree
  Tensor clone() const;            // own memory, no slot
  // Entries [begin, end) of the first dimension: same memory, no slot.
  Tensor slice(int64_t begin, int64_t end) const;

  float& operator[](int64_t i) { return data[i]; }
  float operator[](int64_t i) const { return data[i]; }
};

// Tensors [n, ...], whose samples have one shape, one after the other. Error for other shapes.
Tensor concatenate(const std::vector<Tensor>& parts);
Tensor transposed(const Tensor& x);  // [rows, columns] to [columns, rows]

// What a model consumes: either pixels or token ids.
struct Batch {
  Tensor pixels;                  // [B, 3, height, width], normalised
  std::vector<int32_t> ids = {};  // [B, T] token ids, row-major
  int64_t windows = 0;            // B of ids
  int64_t length = 0;             // T of ids

  // One window of these.
  static Batch window(std::vector<int32_t> tokens) {
    const int64_t length = static_cast<int64_t>(tokens.size());
    return {{}, std::move(tokens), 1, length};
  }
  int64_t size() const { return pixels.empty() ? windows : pixels.dim(0); }
};

// How an image becomes pixels: read from a model's config, obeyed by data/image.
struct ImageConfig {
  int64_t height = 224, width = 224;  // that the network takes
  // What a picture is resized to. CropPct is timm's rule: by crop_pct and crop_mode. The others are transformers':
  // not at all; to height resize_to[0] and width [1]; the shorter side to [0], with the longer at most [1] unless that
  // is 0; as large as fits into height [0] and width [1].
  enum class Resize { CropPct, None, Exact, Shortest, Within };
  Resize resize = Resize::CropPct;
  int64_t resize_to[2] = {0, 0};
  double crop_pct = 0.875;           // these defaults: timm's PretrainedCfg
  std::string crop_mode = "center";  // keep the picture's shape and cut; or "squash" it into a square before
  std::string interpolation = "bicubic";
  // Then the centre of height x width is cut out. An odd rest: torchvision's crop rounds half of it to even,
  // transformers' rounds down; of what is missing the one pads the smaller half before, the other the larger. None:
  // the picture must have that size by now.
  enum class Crop { Torchvision, Transformers, None };
  Crop crop = Crop::Torchvision;
  double rescale = 1.0 / 255;  // of a byte's value, to which mean and std belong; without any: 1, 0 and 1
  float mean[3] = {0.485f, 0.456f, 0.406f};
  float std[3] = {0.229f, 0.224f, 0.225f};
};

}  // namespace bcq
