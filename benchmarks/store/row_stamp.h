// What the rows of the benchmark hold, so that no store can answer with something else.
//
// A row begins with its number and a version, 4 bytes each; the rest repeats a word that is a hash
// of both. Rows have at least 8 bytes. Thread-safety: pure functions. Cost: a row's bytes once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/types.h"

namespace te::bench {

inline constexpr uint32_t kRowBytesMin = 8;

// Finaliser of MurmurHash3, Austin Appleby: a bijection of 64 bits that mixes them well.
inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdULL;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ULL;
  return x ^ x >> 33;
}

inline void stamp_row(std::byte* data, uint32_t row_bytes, RowId row, uint32_t version) {
  const uint64_t head = uint64_t{version} << 32 | static_cast<uint32_t>(row.value);
  const uint64_t word = mix(head);
  std::memcpy(data, &head, sizeof(head));
  for (uint32_t at = sizeof(head); at < row_bytes; at += sizeof(word)) {
    std::memcpy(data + at, &word, std::min<size_t>(sizeof(word), row_bytes - at));
  }
}

// Whether the bytes are those of this row, in whatever version.
inline bool is_row(const std::byte* data, RowId row) {
  uint32_t id;
  std::memcpy(&id, data, sizeof(id));
  return id == row.value;
}

// Whether every byte is as stamped.
inline bool is_row_version(const std::byte* data, uint32_t row_bytes, RowId row, uint32_t version) {
  const uint64_t head = uint64_t{version} << 32 | static_cast<uint32_t>(row.value);
  const uint64_t word = mix(head);
  if (std::memcmp(data, &head, sizeof(head)) != 0) return false;
  for (uint32_t at = sizeof(head); at < row_bytes; at += sizeof(word)) {
    if (std::memcmp(data + at, &word, std::min<size_t>(sizeof(word), row_bytes - at)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace te::bench
