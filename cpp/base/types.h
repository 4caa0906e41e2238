// Strong types for the nouns of the system, so that a row is never passed where a slot is expected.
//
// Ownership: plain values. Thread-safety: values. Cost: every type is its representation.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace te {

// An integer with a name. `none()` is the largest value and stands for "no such thing".
template <class Tag, class Rep>
struct StrongId {
  using rep = Rep;
  Rep value = std::numeric_limits<Rep>::max();

  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  static constexpr StrongId none() { return StrongId(); }
  constexpr bool is_none() const { return value == std::numeric_limits<Rep>::max(); }
  friend constexpr auto operator<=>(StrongId, StrongId) = default;
};

// A row, numbered over all tables of an engine: first row of its table + row within the table.
using RowId = StrongId<struct RowIdTag, uint64_t>;
// A slot of the dram arena of one layout.
using SlotIndex = StrongId<struct SlotIndexTag, uint32_t>;
// A block of the log: segment * blocks_per_segment + block within the segment. At most 31 bits.
using BlockAddress = StrongId<struct BlockAddressTag, uint32_t>;
// A segment file of the log. Numbers are reused after a segment is reclaimed.
using SegmentId = StrongId<struct SegmentIdTag, uint32_t>;
// A row layout: tables with the same dim, dtype and optimizer share one. In the engine a table with
// a share of dram has one of its own; in a store it has not.
using LayoutId = StrongId<struct LayoutIdTag, uint16_t>;
// A table of the engine, in the order of construction.
using TableId = StrongId<struct TableIdTag, uint32_t>;

static_assert(sizeof(RowId) == 8 && sizeof(SlotIndex) == 4 && sizeof(BlockAddress) == 4);

// Where a row is, in 32 bits: never written, in a dram slot, or in a block of the ssd log.
// Encoding: 0 = never written; top bit set = slot (31 bits); else block address + 1.
class LocationWord {
 public:
  static constexpr uint32_t kSlotsMax = uint32_t{1} << 31;
  static constexpr uint32_t kBlocksMax = (uint32_t{1} << 31) - 1;

  constexpr LocationWord() = default;
  static constexpr LocationWord never_written() { return LocationWord(0); }
  static constexpr LocationWord slot(SlotIndex s) { return LocationWord(s.value | kSlotsMax); }
  static constexpr LocationWord block(BlockAddress b) { return LocationWord(b.value + 1); }
  static constexpr LocationWord from_bits(uint32_t bits) { return LocationWord(bits); }

  constexpr bool is_never_written() const { return bits_ == 0; }
  constexpr bool is_slot() const { return (bits_ & kSlotsMax) != 0; }
  constexpr bool is_block() const { return bits_ != 0 && !is_slot(); }
  constexpr SlotIndex slot_index() const { return SlotIndex(bits_ & ~kSlotsMax); }
  constexpr BlockAddress block_address() const { return BlockAddress(bits_ - 1); }
  constexpr uint32_t bits() const { return bits_; }
  friend constexpr bool operator==(LocationWord, LocationWord) = default;

 private:
  constexpr explicit LocationWord(uint32_t bits) : bits_(bits) {}
  uint32_t bits_ = 0;
};
static_assert(sizeof(LocationWord) == 4);

}  // namespace te
