// A hash of row numbers, all of whose bits depend on all of the row's.
//
// For tables that take a place from some bits and a tag or a sample from others; numbers of rows
// are dense or multiples of something. Thread-safety: a pure function. Cost: two multiplications.
#pragma once

#include <cstdint>

#include "base/types.h"

namespace te {

constexpr uint64_t row_hash(RowId row) {
  uint64_t h = (row.value + 1) * 0x9E3779B97F4A7C15ull;
  h = (h ^ h >> 32) * 0xD6E8FEB86659FD93ull;
  return h ^ h >> 32;
}

}  // namespace te
