// Loads and stores of the first bytes of a vector, for instruction sets without masks. A prefix is
// copied in pieces of 8, 4 and 2 bytes, so that every copy has a fixed size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define TE_INLINE inline __attribute__((always_inline))

namespace te {
namespace {

// `bytes` is even and at most `kBytes`.
template <size_t kBytes>
TE_INLINE void copy_prefix(std::byte* to, const std::byte* from, uint32_t bytes) {
  if (bytes == kBytes) {
    std::memcpy(to, from, kBytes);
    return;
  }
  if constexpr (kBytes > 8) {
    if ((bytes & 8) != 0) {
      std::memcpy(to, from, 8);
      to += 8, from += 8;
    }
  }
  if ((bytes & 4) != 0) {
    std::memcpy(to, from, 4);
    to += 4, from += 4;
  }
  if ((bytes & 2) != 0) std::memcpy(to, from, 2);
}

template <class Vector>
TE_INLINE Vector load_first(const std::byte* from, uint32_t bytes) {
  Vector v;
  std::byte buffer[sizeof(v)] = {};
  copy_prefix<sizeof(v)>(buffer, from, bytes);
  std::memcpy(&v, buffer, sizeof(v));
  return v;
}

template <class Vector>
TE_INLINE void store_first(std::byte* to, Vector v, uint32_t bytes) {
  std::byte buffer[sizeof(Vector)];
  std::memcpy(buffer, &v, sizeof(v));
  copy_prefix<sizeof(v)>(to, buffer, bytes);
}

}  // namespace
}  // namespace te
