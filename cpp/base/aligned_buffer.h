// AlignedBuffer: owned bytes on a page boundary, as O_DIRECT needs.
//
// ReservedMemory: address space that takes physical memory only where it is written, and can give
// the pages of a range back. Arenas use it, so that a limit can grow and shrink without moving
// rows. Ownership: both free on destruction and move. Thread-safety: none needed beyond the bytes
// themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace te {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);  // zeroed
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(AlignedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

class ReservedMemory {
 public:
  ReservedMemory() = default;
  // Reserves `bytes` of zeroed address space, in huge pages where the system grants them; aborts
  // when the address space itself is exhausted.
  explicit ReservedMemory(size_t bytes);
  ~ReservedMemory();
  ReservedMemory(ReservedMemory&& other) noexcept { swap(other); }
  ReservedMemory& operator=(ReservedMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  // Whether so much address space can be had at present.
  static bool can_reserve(size_t bytes);
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Gives the whole pages inside [begin, end) back to the system; they read as zero afterwards.
  void discard(size_t begin, size_t end);
  // Takes physical memory for the first `end` bytes, which keep their values, ahead of writes all
  // over: up to `bytes` more at each call. True when there is no more to take.
  bool touch_some(size_t bytes, size_t end);

 private:
  void swap(ReservedMemory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(touched_, other.touched_);
  }
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  size_t touched_ = 0;  // touch_some has come so far
};

}  // namespace te
