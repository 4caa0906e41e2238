// The hash by which rows are sampled. Its high bits depend on all bits of the row: numbers of rows
// are dense, or multiples of something, and low ones are often the popular ones.
//
// A row is sampled if the highest bits of its hash are zero, those of a mask; one more halves the
// sample, and keeps a part of the one before. 32 bits, because so many more products fit in a
// vector, and no more mixing than high bits need. It has nothing in common with cache/row_hash.h,
// by which caches take samples of their own. Multipliers: C. Wellons, "Prospecting for Hash
// Functions", 2018. Inlined always, as lanes.h says why. Thread-safety: a pure function.
#pragma once

#include <cstdint>

namespace te {

__attribute__((always_inline)) inline uint32_t sample_hash(uint64_t row) {
  uint32_t h = static_cast<uint32_t>(row) + static_cast<uint32_t>(row >> 32) * 0x9e3779b9u;
  h *= 0x21f0aaadu;
  return (h ^ h >> 15) * 0xd35a2d97u;
}

}  // namespace te
