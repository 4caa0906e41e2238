#include "cache/slot_directory.h"

#include <algorithm>
#include <new>

#include "base/check.h"

namespace te {

SlotDirectory::SlotDirectory(uint32_t slots_max)
    : slots_max_(slots_max),
      memory_(uint64_t{std::max(slots_max, 1u)} * sizeof(Slot)),
      slots_(reinterpret_cast<Slot*>(memory_.data())),
      mark_memory_(uint64_t{std::max(slots_max, 1u)} * sizeof(uint32_t)),
      marks_(reinterpret_cast<uint32_t*>(mark_memory_.data())) {}

SlotIndex SlotDirectory::take(RowId row, BlockAddress home) {
  SlotIndex s = free_head_;
  if (!s.is_none()) {
    free_head_ = SlotIndex(slots_[s.value].home.value);
  } else {
    TE_CHECK(next_unused_ < limit_);
    s = SlotIndex(next_unused_++);
  }
  hold(s, row, home);
  return s;
}

void SlotDirectory::take_own(SlotIndex s, RowId row, BlockAddress home) {
  TE_CHECK(s.value < limit_);
  next_unused_ = std::max(next_unused_, s.value + 1);
  hold(s, row, home);
}

void SlotDirectory::hold(SlotIndex s, RowId row, BlockAddress home) {
  Slot* slot = new (&slots_[s.value]) Slot();
  slot->row = row;
  slot->home = home;
  marks_[s.value] = 0;
  ++used_;
}

void SlotDirectory::release(SlotIndex s) {
  Slot& slot = slots_[s.value];
  TE_CHECK(!slot.row.is_none() && slot.pins == 0);
  slot = Slot();
  slot.home = BlockAddress(free_head_.value);
  free_head_ = s;
  --used_;
}

void SlotDirectory::restrict_free_slots(uint32_t below) {
  free_head_ = SlotIndex::none();
  for (uint32_t i = std::min(below, next_unused_); i-- > 0;) {
    if (!slots_[i].row.is_none()) continue;
    slots_[i].home = BlockAddress(free_head_.value);
    free_head_ = SlotIndex(i);
  }
}

void SlotDirectory::set_limit(uint32_t limit) {
  TE_CHECK(limit <= slots_max_ && used_ <= limit);
  if (limit < next_unused_) {
    next_unused_ = limit;
    restrict_free_slots(limit);
  }
  limit_ = limit;
}

}  // namespace te
