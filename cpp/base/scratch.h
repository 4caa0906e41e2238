// Scratch<T>: an array of plain values that keeps its memory between uses and does not clear it.
//
// For the buffers of a plan: `resize` leaves the contents undefined, so a step writes each byte
// once. Ownership: owns its memory. Thread-safety: none. Cost: allocates only when it grows past
// its peak.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <span>
#include <type_traits>
#include <utility>

#include "base/check.h"

namespace te {

template <class T>
class Scratch {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Scratch() = default;
  ~Scratch() { std::free(data_); }
  Scratch(Scratch&& other) noexcept { swap(other); }
  Scratch& operator=(Scratch&& other) noexcept {
    swap(other);
    return *this;
  }

  // Room for `size` values; the first `keep` of the old ones stay, the rest is undefined.
  void resize(size_t size, size_t keep = 0) {
    if (size > capacity_) {
      const size_t capacity = size + size / 2;
      void* data = std::malloc(capacity * sizeof(T));
      TE_CHECK(data != nullptr);
      for (size_t i = 0; i < keep; ++i) static_cast<T*>(data)[i] = data_[i];
      std::free(data_);
      data_ = static_cast<T*>(data);
      capacity_ = capacity;
    }
    size_ = size;
  }
  void clear() { size_ = 0; }
  void push_back(T value) {
    resize(size_ + 1, size_);
    data_[size_ - 1] = value;
  }

  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<const T> span() const { return {data_, size_}; }

  void swap(Scratch& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace te
