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
  BlockAddress home;      // block with the same bytes, or none; next in the list of free slots
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
  uint32_t limit() const { return limit_; }         // slots that may be in use
  uint32_t used() const { return used_; }           // slots that hold a row
  uint32_t pinned() const { return pinned_; }       // slots with pins
  uint32_t ever_used() const { return used_end_; }  // slots below this may hold a row
  uint32_t free_slots() const { return limit_ - used_; }

  // Slots at and above the limit that hold a row, as its pins did not let it go.
  uint32_t stranded() const { return stranded_; }

  // A free slot below the limit, which then holds `row`, unpinned and clean. There must be one.
  SlotIndex take(RowId row, BlockAddress home);
  void release(SlotIndex s);  // unpinned slot -> free
  // The free slot `s`, and back. Where rows have slots of their own, only these two are used; slots
  // below ever_used() that were never taken are zero: clean, unpinned.
  void take_own(SlotIndex s, RowId row, BlockAddress home);
  void release_own(SlotIndex s);
  // Rows no longer have slots of their own, none of which is free until `add_free` says so.
  void leave_own_slots();
  void add_free(SlotIndex s);  // one that holds no row
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
  // At least used(). Rows in slots at and above a lower limit are stranded: they count as in use,
  // so that there is always a free slot below for each of them, and their slots are not given
  // again. Cost: a look at each slot between the two limits that was ever used.
  void set_limit(uint32_t limit);
  // Gives the memory of slots [begin, end) back, which were not used since `limit` was lowered;
  // none is stranded.
  void discard(uint32_t begin, uint32_t end);

 private:
  void hold(SlotIndex s, RowId row, BlockAddress home);
  void link(SlotIndex s);
  void unlink(SlotIndex s);

  const uint32_t slots_max_;
  ReservedMemory memory_;
  Slot* slots_;
  ReservedMemory mark_memory_;
  uint32_t* marks_;
  uint32_t limit_ = 0;
  uint32_t used_ = 0;
  uint32_t pinned_ = 0;
  uint32_t stranded_ = 0;
  uint32_t next_unused_ = 0;  // slots from here to the limit are free, and in no list
  uint32_t used_end_ = 0;
  SlotIndex free_head_;  // linked through Slot::home, and back through marks
};

}  // namespace te
