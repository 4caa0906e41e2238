// How a dram budget becomes slots.
//
// The budget covers the rows in slots and everything that grows with use: slot directory, eviction
// policy and location words. Only the first kFreeOverheadBytes of that overhead are not
// charged, so that a small table's budget can be thought of as its rows. I/O buffers are not
// counted. Layouts with a share keep slots for that share of their rows; all others get the same
// fraction of theirs. A plan that needs more of one layout takes it from the others, from shares
// last (Mover::make_room). Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace te {

inline constexpr uint64_t kFreeOverheadBytes = 8 << 20;

// The index grows with the rows written; this much of its growth is charged ahead, so that limits
// are kept between two looks at it.
constexpr uint64_t index_headroom_bytes(uint64_t dram_bytes) {
  return dram_bytes / 128 > (1 << 16) ? dram_bytes / 128 : 1 << 16;
}

struct LayoutDemand {
  uint64_t rows = 0;                 // of all tables of the layout
  uint64_t stride_bytes = 0;         // a row in its slot
  uint64_t slot_overhead_bytes = 0;  // a slot's share of what is kept of an hbm tier
  double share = 0;                  // of its rows that keep their slots; 0: as many as others
};

// Slots that a layout keeps; 0 without a share.
uint32_t share_slots(const LayoutDemand& layout);

// Bytes of dram that hold every row, with its overhead and `fixed_bytes` besides.
uint64_t dram_bytes_for_all_rows(std::span<const LayoutDemand> layouts, uint64_t fixed_bytes = 0);
// Dram bytes that `slots` of each layout take beside an index of `index_bytes`; `evicting` adds the
// policy.
uint64_t dram_bytes_for_slots(std::span<const LayoutDemand> layouts,
                              std::span<const uint32_t> slots, uint64_t index_bytes, bool evicting);
// The most slots of each layout within `dram_bytes`, at least one each. Where the budget cannot
// hold the shares and one slot of each other layout, all shares are scaled down.
std::vector<uint32_t> slots_within(std::span<const LayoutDemand> layouts, uint64_t dram_bytes,
                                   uint64_t index_bytes);
// The most slots of each layout that `hbm_bytes` of a device hold, none more than it has rows;
// empty if it cannot hold one of each.
std::vector<uint32_t> hbm_slots_within(std::span<const LayoutDemand> layouts, uint64_t hbm_bytes);

}  // namespace te
