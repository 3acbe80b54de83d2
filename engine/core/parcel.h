// A value as bytes, for another process of the same program on the same kind of machine.
//
// A type of several fields lists them once, for both directions: void fields(auto visit) { visit(a, b, c); }
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine/core/buffer.h"
#include "engine/core/tensor.h"

namespace bcq {

class Parcel {
 public:
  explicit Parcel(int64_t size) : size_(size), bytes_(size) {}  // to be filled
  template <class T>
  static Parcel of(T& x) {
    int64_t size = 0;
    visit(x, [&](void*, int64_t n) { size += n; });
    Parcel parcel(size);
    char* to = parcel.data();
    visit(x, [&](void* value, int64_t n) {
      std::memcpy(to, value, static_cast<size_t>(n));
      to += n;
    });
    return parcel;
  }

  char* data() const { return bytes_.data(); }
  int64_t size() const { return size_; }

  // Into x, which is as it was constructed.
  template <class T>
  void unpack(T& x) const {
    const char* from = data();
    visit(x, [&](void* value, int64_t n) {
      std::memcpy(value, from, static_cast<size_t>(n));
      from += n;
    });
  }

 private:
  // copy(address, bytes) of all there is in x; of a vector or a tensor first its size, which makes room.
  template <class T, class Copy>
  static void visit(T& x, const Copy& copy) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      copy(&x, sizeof x);
    } else if constexpr (std::is_same_v<T, Tensor>) {
      bool has_values = !x.empty();
      copy(&has_values, sizeof has_values);
      visit(x.shape, copy);
      if (has_values && x.empty()) x = Tensor::uninitialized(x.shape);
      if (has_values) copy(x.data, 4 * x.size());
    } else if constexpr (requires { x.fields([](auto&...) {}); }) {
      x.fields([&](auto&... field) { (visit(field, copy), ...); });
    } else {  // std::vector, std::string
      size_t n = x.size();
      copy(&n, sizeof n);
      x.resize(n);
      if constexpr (std::is_trivially_copyable_v<typename T::value_type>) {
        if (n > 0) copy(x.data(), static_cast<int64_t>(n * sizeof x[0]));
      } else {
        for (auto& item : x) visit(item, copy);
      }
    }
  }

  int64_t size_;
  Buffer<char> bytes_;
};

}  // namespace bcq
