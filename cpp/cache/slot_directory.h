// SlotDirectory: what is in each slot of a tier's layout: its row, pins, dirty bit and home block.
//
// Invariants: a slot is free, or holds exactly one row; a pinned slot is never freed; `home` is the
// block of the log that holds the same bytes, so it is none while the slot is dirty or its row was
// never written. A slot's mark is a number of the plan that last used it, plus the row's position
// in that plan; plans have ranges of numbers, and later ones have higher ones. So a plan recognises
// a row that it has already seen by one word, without a hash table. Marks lie by themselves: they
// are what every id of a batch touches. Thread-safety: none; the engine's mutex guards it, and a
// plan's threads work on different slots. Cost: 20 bytes a slot; all operations are O(1).
#pragma once

#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/types.h"

namespace te {

struct Slot {
  RowId row;              // none: the slot is free
  BlockAddress home;      // block with the same bytes, or none; next free slot while free
  uint16_t pins = 0;      // unfinished plans that use it
  uint8_t dirty = 0;      // differs from every copy on ssd
  uint8_t frequency = 0;  // the eviction policy's
};
static_assert(sizeof(Slot) == 16);

class SlotDirectory {
 public:
  static constexpr uint32_t kBytesPerSlot = sizeof(Slot) + sizeof(uint32_t);

  // Address space for `slots_max` slots; memory is taken as slots are first used.
  explicit SlotDirectory(uint32_t slots_max);

  Slot& operator[](SlotIndex s) { return slots_[s.value]; }
  const Slot& operator[](SlotIndex s) const { return slots_[s.value]; }
  void prefetch(SlotIndex s) const { __builtin_prefetch(&slots_[s.value], 1); }
  // 0: no plan has used the slot since its row came.
  uint32_t& mark(SlotIndex s) { return marks_[s.value]; }
  uint32_t mark(SlotIndex s) const { return marks_[s.value]; }
  uint32_t* marks() { return marks_; }
  void prefetch_mark(SlotIndex s) const { __builtin_prefetch(&marks_[s.value], 1); }

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
  // For threads that pin different slots at once, or unpin them: whether that was the first pin,
  // or the last; their number follows.
  static bool pin_uncounted(Slot& slot) { return slot.pins++ == 0; }
  static bool unpin_uncounted(Slot& slot) { return --slot.pins == 0; }
  void count_pinned(uint32_t slots) { pinned_ += slots; }
  void count_unpinned(uint32_t slots) { pinned_ -= slots; }
  // From now on `take` gives slots below `below` only, as long as there are free ones.
  void restrict_free_slots(uint32_t below);
  // The caller has emptied all slots at and above the new limit.
  void set_limit(uint32_t limit);

 private:
  void hold(SlotIndex s, RowId row, BlockAddress home);

  const uint32_t slots_max_;
  ReservedMemory memory_;
  Slot* slots_;
  ReservedMemory mark_memory_;
  uint32_t* marks_;
  uint32_t limit_ = 0;
  uint32_t used_ = 0;
  uint32_t pinned_ = 0;
  uint32_t next_unused_ = 0;
  SlotIndex free_head_;  // linked through Slot::home
};

}  // namespace te
