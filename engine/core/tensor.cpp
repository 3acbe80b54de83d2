#include "engine/core/tensor.h"

#include <algorithm>
#include <cstring>

#include "engine/core/buffer.h"
#include "engine/core/check.h"

namespace bcq {
int64_t numel(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string to_string(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

Tensor Tensor::uninitialized(Shape s) {
  Tensor t;
  t.shape = std::move(s);
  const auto memory = std::make_shared<Buffer<float>>(std::max<int64_t>(t.size(), 1));
  t.data = memory->data();
  t.owner = memory;
  return t;
}

Tensor::Tensor(Shape s) : Tensor(uninitialized(std::move(s))) { std::fill_n(data, size(), 0.f); }

Tensor::Tensor(Shape s, const std::vector<float>& values) : Tensor(uninitialized(std::move(s))) {
  require(static_cast<int64_t>(values.size()) == size(), "%d values for a tensor of shape %s", values.size(),
          to_string(shape));
  std::copy(values.begin(), values.end(), data);
}

Tensor Tensor::borrow(Shape s, const float* bytes, std::shared_ptr<void> owner) {
  Tensor t;
  t.shape = std::move(s);
  t.data = const_cast<float*>(bytes);
  t.owner = std::move(owner);
  return t;
}

Tensor Tensor::reshaped(Shape s) const {
  require(numel(s) == size(), "cannot reshape %s to %s", to_string(shape), to_string(s));
  Tensor t = *this;
  t.shape = std::move(s);
  return t;
}

Tensor Tensor::clone() const {
  Tensor t = uninitialized(shape);
  if (size() > 0) std::memcpy(t.data, data, static_cast<size_t>(size()) * sizeof(float));
  return t;
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  require(0 <= begin && begin <= end && end <= dim(0), "slice [%d, %d) of a tensor of shape %s", begin, end,
          to_string(shape));
  Tensor t = *this;
  t.shape[0] = end - begin;
  t.data += dim(0) ? begin * (size() / dim(0)) : 0;
  t.slot = -1;
  return t;
}

Tensor concatenate(const std::vector<Tensor>& parts) {
  if (parts.size() == 1) return parts[0];
  int64_t n = 0;
  for (const Tensor& part : parts) {
    n += part.dim(0);
    require(part.size() / part.dim(0) == parts[0].size() / parts[0].dim(0), "tensors of shapes %s and %s do not join",
            to_string(parts[0].shape), to_string(part.shape));
  }
  Shape shape = parts.at(0).shape;
  shape[0] = n;
  Tensor all = Tensor::uninitialized(shape);
  float* to = all.data;
  for (const Tensor& part : parts) to = std::copy_n(part.data, part.size(), to);
  return all;
}

Tensor transposed(const Tensor& x) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  Tensor y = Tensor::uninitialized({columns, rows});
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) y[c * rows + r] = x[r * columns + c];
  return y;
}

}  // namespace bcq
