// RowIndex: the location word of every row.
//
// Memory follows the rows ever written, not the size of the tables. Three shapes, chosen by fill:
//   direct  one array over all rows, when that is small beside the budget: one load a lookup;
//   sparse  regions of 65,536 rows behind a directory; a region with few words is a small
//   open-addressed
//           map of 6-byte entries (16-bit row in region, word), grown by doubling;
//   dense   a region that outgrew its map is an array of 65,536 words.
// So 2e10 untouched rows cost a 2.4 MB directory, and a scattered row 8 to 16 bytes instead of a
// page. A word of "never written" is not stored. Thread-safety: none; the engine's mutex guards it.
// Ownership: owns its memory. Cost: get is one to three dependent loads; set may allocate.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/function_ref.h"
#include "base/types.h"

namespace te {

class RowIndex {
 public:
  // `direct_bytes_max`: use one flat array when 4 bytes a row do not exceed this.
  RowIndex(uint64_t total_rows, uint64_t direct_bytes_max);
  ~RowIndex();
  RowIndex(const RowIndex&) = delete;
  RowIndex& operator=(const RowIndex&) = delete;

  LocationWord get(RowId row) const {
    if (direct_ != nullptr) return LocationWord::from_bits(direct_[row.value]);
    return get_from_region(row);
  }
  void set(RowId row, LocationWord word) {
    if (direct_ != nullptr) {
      direct_[row.value] = word.bits();
    } else {
      set_in_region(row, word);
    }
  }
  void prefetch(RowId row) const {
    __builtin_prefetch(direct_ != nullptr
                           ? static_cast<const void*>(direct_ + row.value)
                           : static_cast<const void*>(&regions_[row.value >> kRegionBits]));
  }
  // Every row whose word is not "never written", in ascending order. `f` must not call set.
  void visit(FunctionRef<void(RowId, LocationWord)> f) const {
    visit(RowId(0), RowId(total_rows_), f);
  }
  // The same in [first, end).
  void visit(RowId first, RowId end, FunctionRef<void(RowId, LocationWord)> f) const;
  // Memory held, counting a direct array in full.
  uint64_t memory_bytes() const { return memory_bytes_; }
  bool is_direct() const { return direct_ != nullptr; }

 private:
  static constexpr int kRegionBits = 16;
  static constexpr uint32_t kRegionRows = 1u << kRegionBits;
  struct Map;
  // Exactly one of the two is set in a region that has words.
  struct Region {
    std::unique_ptr<uint32_t[]> dense;
    std::unique_ptr<Map> map;
  };

  LocationWord get_from_region(RowId row) const;
  void set_in_region(RowId row, LocationWord word);
  void grow(Region& region);

  const uint64_t total_rows_;
  ReservedMemory direct_memory_;
  uint32_t* direct_ = nullptr;
  std::vector<Region> regions_;
  uint64_t memory_bytes_ = 0;
};

}  // namespace te
