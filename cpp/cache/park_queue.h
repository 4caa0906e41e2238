// ParkQueue: a FIFO of parked slots whose entries go stale in place instead of being removed.
//
// Parking is an append and a hit costs nothing: a slot that is used again carries a newer mark,
// which makes its old entry stale, and stale entries are skipped when popped. Entries live in
// chunks from a ParkChunkPool that queues of one policy share; whole queues can be joined in O(1).
// When stale entries pile up the policy compacts its queues, at an amortised O(1) a park.
// Thread-safety: none. Ownership: chunks belong to the pool; queues must be cleared before it goes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/types.h"
#include "cache/slot_directory.h"

namespace te {

struct ParkedSlot {
  SlotIndex slot;
  uint32_t mark = 0;
};

struct ParkChunk {
  static constexpr uint32_t kEntries = 126;
  std::array<ParkedSlot, kEntries> entries;
  uint32_t first = 0;
  uint32_t last = 0;  // entries in [first, last)
  ParkChunk* next = nullptr;
};

class ParkChunkPool {
 public:
  ParkChunk* take();
  void give_back(ParkChunk* chunk);

 private:
  std::vector<std::unique_ptr<ParkChunk>> owned_;
  ParkChunk* free_ = nullptr;
};

class ParkQueue {
 public:
  explicit ParkQueue(ParkChunkPool& pool) : pool_(&pool) {}

  uint64_t size() const { return size_; }  // stale entries included
  void push(ParkedSlot entry);
  // False when empty.
  bool pop(ParkedSlot* entry);
  // What pop would give; null when empty.
  const ParkedSlot* front();
  // Appends all of `other`, which becomes empty.
  void append(ParkQueue& other);
  // Likewise, but in the order of marks, if both queues are.
  void merge(ParkQueue& other);
  void clear();
  // Drops the entries that `keep` does not want, keeping the order. `prefetch` is told of most of
  // them a while before.
  template <class Keep, class Prefetch>
  void compact(Keep keep, Prefetch prefetch) {
    ParkQueue kept(*pool_);
    ParkedSlot entry;
    while (pop(&entry)) {
      if (const ParkedSlot* later = ahead()) prefetch(later->slot);
      if (keep(entry)) kept.push(entry);
    }
    append(kept);
  }
  template <class Keep>
  void compact(Keep keep) {
    compact(keep, [](SlotIndex) {});
  }
  // One that will be popped soon; null where none is known.
  const ParkedSlot* ahead() const {
    if (size_ == 0 || head_->first + kAhead >= head_->last) return nullptr;
    return &head_->entries[head_->first + kAhead];
  }

  // Whether the entry still stands for its slot: same use, no pin.
  static bool is_current(const SlotDirectory& directory, ParkedSlot entry) {
    const Slot& slot = directory[entry.slot];
    return directory.mark(entry.slot) == entry.mark && slot.pins == 0 && !slot.row.is_none();
  }

 private:
  static constexpr uint32_t kAhead = 12;

  void drop_head();

  ParkChunkPool* pool_;
  ParkChunk* head_ = nullptr;
  ParkChunk* tail_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace te
