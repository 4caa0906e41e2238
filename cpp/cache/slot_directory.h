// SlotDirectory: what is in each slot of one dram arena: its row, pins, dirty bit and home block.
//
// Invariants: a slot is free, or holds exactly one row; a pinned slot is never freed; `home` is the
// block of the log that holds the same bytes, so it is none while the slot is dirty or its row was
// never written. `stamp` is the sequence number of the plan that last used the slot and `unique`
// the row's position in that plan: how a plan recognises a row it has already seen, without a hash
// table. Thread-safety: none; the engine's mutex guards it. Cost: 24 bytes a slot; all operations
// are O(1).
#pragma once

#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/types.h"

namespace te {

struct Slot {
  RowId row;            // none: the slot is free
  BlockAddress home;    // block with the same bytes, or none
  uint32_t stamp = 0;   // last plan that used it; next free slot while free
  uint32_t unique = 0;  // position among that plan's unique rows
  uint16_t pins = 0;    // unfinished plans that use it
  uint8_t dirty = 0;    // differs from every copy on ssd
  uint8_t frequency =
      0;  // the eviction policy's; kept here because the planner touches this line anyway
};
static_assert(sizeof(Slot) == 24);

class SlotDirectory {
 public:
  // Address space for `slots_max` slots; memory is taken as slots are first used.
  explicit SlotDirectory(uint32_t slots_max);

  Slot& operator[](SlotIndex s) { return slots_[s.value]; }
  const Slot& operator[](SlotIndex s) const { return slots_[s.value]; }
  void prefetch(SlotIndex s) const { __builtin_prefetch(&slots_[s.value], 1); }

  uint32_t slots_max() const { return slots_max_; }
  uint32_t limit() const { return limit_; }            // slots that may be in use
  uint32_t used() const { return used_; }              // slots that hold a row
  uint32_t pinned() const { return pinned_; }          // slots with pins
  uint32_t ever_used() const { return next_unused_; }  // slots below this may hold a row
  uint32_t free_slots() const { return limit_ - used_; }

  // A free slot, which then holds `row`, unpinned and clean. There must be one.
  SlotIndex take(RowId row, BlockAddress home);
  // The free slot `s`. Where rows have slots of their own, `take` is not used; slots below
  // ever_used() that were never taken are zero: clean, unpinned.
  void take_own(SlotIndex s, RowId row, BlockAddress home);
  void release(SlotIndex s);  // unpinned slot -> free
  void pin(Slot& slot) {
    if (slot.pins++ == 0) ++pinned_;
  }
  // Whether that was the last pin.
  bool unpin(Slot& slot) {
    if (--slot.pins != 0) return false;
    --pinned_;
    return true;
  }
  // From now on `take` gives slots below `below` only, as long as there are free ones.
  void restrict_free_slots(uint32_t below);
  // The caller has emptied all slots at and above the new limit.
  void set_limit(uint32_t limit);

 private:
  void hold(SlotIndex s, RowId row, BlockAddress home);

  const uint32_t slots_max_;
  ReservedMemory memory_;
  Slot* slots_;
  uint32_t limit_ = 0;
  uint32_t used_ = 0;
  uint32_t pinned_ = 0;
  uint32_t next_unused_ = 0;
  SlotIndex free_head_;  // linked through Slot::stamp
};

}  // namespace te
