// ResidentRows: which rows stand in dram, one bit a row, where every row has a slot of its own.
//
// A lookup whose bit is set needs no location word: the slot's number follows from the row's. One
// bit instead of 32 keeps the whole set in the processor's cache. Thread-safety: none; the engine's
// mutex guards it. Cost: O(1), one load; memory is taken as rows are first added.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/types.h"

namespace te {

class ResidentRows {
 public:
  ResidentRows() = default;
  explicit ResidentRows(uint64_t rows)
      : memory_(std::max<uint64_t>((rows + 63) / 64, 1) * sizeof(uint64_t)),
        words_(reinterpret_cast<uint64_t*>(memory_.data())) {}

  bool contains(RowId row) const { return (words_[row.value / 64] >> (row.value % 64) & 1) != 0; }
  void add(RowId row) { words_[row.value / 64] |= uint64_t{1} << (row.value % 64); }
  void remove(RowId row) { words_[row.value / 64] &= ~(uint64_t{1} << (row.value % 64)); }

  const uint64_t* words() const { return words_; }

 private:
  ReservedMemory memory_;
  uint64_t* words_ = nullptr;
};

}  // namespace te
