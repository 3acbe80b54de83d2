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
#include <vector>

namespace bcq {

using Shape = std::vector<int64_t>;

int64_t numel(const Shape& shape);          // product of the dimensions; 1 for a scalar
std::string to_string(const Shape& shape);  // "[2, 3]"

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
  int64_t dim(int i) const { return shape[static_cast<size_t>(i < 0 ? i + rank() : i)]; }
  int64_t rows() const { return size() / dim(-1); }  // product of all but the last dimension

  Tensor reshaped(Shape s) const;  // same memory and slot; sizes must agree
  Tensor clone() const;            // own memory, no slot
  // Entries [begin, end) of the first dimension: same memory, no slot.
  Tensor slice(int64_t begin, int64_t end) const;

  float& operator[](int64_t i) { return data[i]; }
  float operator[](int64_t i) const { return data[i]; }
};

// What a model consumes: either pixels or token ids.
struct Batch {
  Tensor pixels;             // [B, 3, height, width], normalised
  std::vector<int32_t> ids;  // [B, T] token ids, row-major
  int64_t windows = 0;       // B of ids
  int64_t length = 0;        // T of ids

  int64_t size() const { return pixels.empty() ? windows : pixels.dim(0); }
};

// How an image becomes pixels: read from a model's config, obeyed by data/image.
struct ImageConfig {
  int64_t height = 224, width = 224;
  double crop_pct = 0.9;
  std::string interpolation = "bicubic";
  std::string crop_mode = "center";  // keep the picture's shape and cut; or "squash" it into a square before
  float mean[3] = {0.5f, 0.5f, 0.5f};
  float std[3] = {0.5f, 0.5f, 0.5f};
};

}  // namespace bcq
