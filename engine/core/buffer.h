// Uninitialized memory of one owner: a tensor's, or for what is no tensor: codes, sums, panels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace bcq {

// n values that begin at a cache line, which is a register of AVX-512, too.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n)
      : data_(static_cast<T*>(::operator new (static_cast<size_t>(n) * sizeof(T), std::align_val_t{64}))) {}
  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace bcq
