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
    unlink(s);
  } else {
    TE_CHECK(next_unused_ < limit_);
    s = SlotIndex(next_unused_++);
    used_end_ = std::max(used_end_, next_unused_);
  }
  hold(s, row, home);
  return s;
}

void SlotDirectory::take_own(SlotIndex s, RowId row, BlockAddress home) {
  TE_CHECK(s.value < limit_);
  used_end_ = std::max(used_end_, s.value + 1);
  hold(s, row, home);
}

void SlotDirectory::hold(SlotIndex s, RowId row, BlockAddress home) {
  Slot* slot = new (&slots_[s.value]) Slot();
  slot->row = row;
  slot->home = home;
  marks_[s.value] = 0;
  ++used_;
}

void SlotDirectory::release_own(SlotIndex s) {
  Slot& slot = slots_[s.value];
  TE_CHECK(!slot.row.is_none() && slot.pins == 0);
  slot = Slot();
  --used_;
}

void SlotDirectory::release(SlotIndex s) {
  release_own(s);
  if (s.value < limit_) return link(s);
  if (--stranded_ == 0) used_end_ = next_unused_;
}

void SlotDirectory::leave_own_slots() { next_unused_ = used_end_ = limit_; }

void SlotDirectory::add_free(SlotIndex s) {
  slots_[s.value] = Slot();
  link(s);
}

void SlotDirectory::link(SlotIndex s) {
  slots_[s.value].home = BlockAddress(free_head_.value);
  marks_[s.value] = SlotIndex::none().value;
  if (!free_head_.is_none()) marks_[free_head_.value] = s.value;
  free_head_ = s;
}

void SlotDirectory::unlink(SlotIndex s) {
  const SlotIndex next(slots_[s.value].home.value);
  const SlotIndex previous(marks_[s.value]);
  if (!next.is_none()) marks_[next.value] = previous.value;
  if (previous.is_none()) {
    free_head_ = next;
  } else {
    slots_[previous.value].home = BlockAddress(next.value);
  }
}

void SlotDirectory::set_limit(uint32_t limit) {
  TE_CHECK(limit <= slots_max_ && used_ <= limit);
  for (uint32_t i = limit; i < next_unused_; ++i) {
    if (slots_[i].row.is_none()) {
      unlink(SlotIndex(i));
    } else {
      ++stranded_;
    }
  }
  next_unused_ = std::min(next_unused_, limit);
  // What lies between the limits is not in the list of free slots where some are stranded.
  const uint32_t end = stranded_ == 0 ? 0 : std::min(limit, used_end_);
  for (; next_unused_ < end; ++next_unused_) {
    if (slots_[next_unused_].row.is_none()) {
      link(SlotIndex(next_unused_));
    } else {
      --stranded_;
    }
  }
  limit_ = limit;
  if (stranded_ == 0) used_end_ = next_unused_;
}

void SlotDirectory::discard(uint32_t begin, uint32_t end) {
  TE_CHECK(begin >= used_end_);
  memory_.discard(uint64_t{begin} * sizeof(Slot), uint64_t{end} * sizeof(Slot));
  mark_memory_.discard(uint64_t{begin} * sizeof(uint32_t), uint64_t{end} * sizeof(uint32_t));
}

}  // namespace te
