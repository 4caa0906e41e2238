// ParkQueue: a FIFO of parked slots whose entries go stale in place instead of being removed.
//
// Parking is an append and a hit costs nothing: a slot that is used again carries a newer mark,
// which makes its old entry stale, and stale entries are skipped when popped. Entries live in
// chunks from a ParkChunkPool that queues of one policy share; whole queues can be joined in O(1).
// Where stale entries pile up the policy compacts its queues in small portions, a few entries a
// park; all at once only if that is not enough.
// Thread-safety: none. Ownership: chunks belong to the pool; queues must be cleared before it goes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
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
  uint16_t first = 0;
  uint16_t last = 0;  // entries in [first, last)
  uint32_t slab = 0;  // of the pool
  ParkChunk* next = nullptr;
};
static_assert(sizeof(ParkChunk) == 1024);

// Chunks by the MiB, which go back to the system one at a time when nothing is left in them.
class ParkChunkPool {
 public:
  ParkChunk* take();
  void give_back(ParkChunk* chunk);
  // Frees the memory of a few slabs without a chunk in use; true if there are no more.
  bool give_memory_back();

 private:
  static constexpr uint32_t kChunks = 1024;
  struct Slab {
    ReservedMemory memory;
    uint32_t fresh = 0;  // chunks from here on were never taken
    uint32_t used = 0;
    bool is_listed = false;  // in open_
    ParkChunk* free = nullptr;
  };
  uint32_t open_slab();

  std::vector<Slab> slabs_;
  std::vector<uint32_t> open_;  // slabs with chunks to give
};

class ParkQueue {
 public:
  explicit ParkQueue(ParkChunkPool& pool) : pool_(&pool) {}

  uint64_t size() const { return size_; }  // stale entries included
  void push(ParkedSlot entry) {
    if (tail_ == nullptr || tail_->last == ParkChunk::kEntries) add_chunk();
    tail_->entries[tail_->last++] = entry;
    ++size_;
  }
  // False when empty.
  bool pop(ParkedSlot* entry);
  // What pop would give; null when empty.
  const ParkedSlot* front();
  // Takes entries from the head for as long as `take` wants them. `prefetch` is told of most of
  // them a while before.
  template <class Take, class Prefetch>
  void pop_while(Take take, Prefetch prefetch) {
    while (size_ != 0) {
      ParkChunk& chunk = *head_;
      uint32_t i = chunk.first;
      bool goes_on = true;
      for (; i < chunk.last; ++i) {
        if (i + kAhead < chunk.last) prefetch(chunk.entries[i + kAhead].slot);
        if (!(goes_on = take(chunk.entries[i]))) break;
      }
      size_ -= i - chunk.first;
      chunk.first = static_cast<uint16_t>(i);
      if (!goes_on) return;
      if (const ParkChunk* next = chunk.next; next != nullptr) {
        const uint32_t end = std::min<uint32_t>(next->first + kAhead, next->last);
        for (i = next->first; i < end; ++i) prefetch(next->entries[i].slot);
      }
      drop_head();
      if (head_ == nullptr) tail_ = nullptr;
    }
  }
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
    const auto take = [&](ParkedSlot entry) {
      if (keep(entry)) kept.push(entry);
      return true;
    };
    pop_while(take, prefetch);
    append(kept);
  }
  template <class Keep>
  void compact(Keep keep) {
    compact(keep, [](SlotIndex) {});
  }
  // The same to some `entries`, less those it has looked at, and goes on there at the next call;
  // true at the end of the queue. Entries that are pushed meanwhile may be left out.
  template <class Keep, class Prefetch>
  bool compact_some(size_t& entries, Keep keep, Prefetch prefetch) {
    for (;;) {
      ParkChunk* chunk = compacted_ == nullptr ? head_ : compacted_->next;
      if (chunk == nullptr || chunk == tail_) {
        compacted_ = nullptr;
        return true;
      }
      if (entries == 0) return false;
      entries -= std::min<size_t>(entries, chunk->last - chunk->first);
      filter(*chunk, keep, prefetch);
    }
  }
  template <class Keep>
  bool compact_some(size_t& entries, Keep keep) {
    return compact_some(entries, keep, [](SlotIndex) {});
  }
  // One that will be popped soon; null where none is known.
  const ParkedSlot* ahead() const {
    if (size_ == 0 || head_->first + kAhead >= head_->last) return nullptr;
    return &head_->entries[head_->first + kAhead];
  }

  // Whether the entry still stands for its slot: same use, no pin. What there was about slots
  // beyond those in use may have gone back to the system.
  static bool is_current(const SlotDirectory& directory, ParkedSlot entry) {
    if (entry.slot.value >= directory.ever_used()) return false;
    const Slot& slot = directory[entry.slot];
    return directory.mark(entry.slot) == entry.mark && slot.pins == 0 && !slot.row.is_none();
  }

 private:
  static constexpr uint32_t kAhead = 16;

  void add_chunk();
  void drop_head();
  // The chunk behind compacted_: what is kept of it joins that one, if there is room.
  template <class Keep, class Prefetch>
  void filter(ParkChunk& chunk, Keep keep, Prefetch prefetch) {
    uint16_t end = chunk.first;
    for (uint16_t i = chunk.first; i < chunk.last; ++i) {
      if (i + kAhead < chunk.last) prefetch(chunk.entries[i + kAhead].slot);
      if (keep(chunk.entries[i])) chunk.entries[end++] = chunk.entries[i];
    }
    size_ -= chunk.last - end;
    chunk.last = end;
    const uint32_t kept = end - chunk.first;
    if (compacted_ == nullptr || compacted_->last + kept > ParkChunk::kEntries) {
      compacted_ = &chunk;
      return;
    }
    std::copy_n(chunk.entries.begin() + chunk.first, kept,
                compacted_->entries.begin() + compacted_->last);
    compacted_->last = static_cast<uint16_t>(compacted_->last + kept);
    compacted_->next = chunk.next;
    pool_->give_back(&chunk);
  }

  ParkChunkPool* pool_;
  ParkChunk* head_ = nullptr;
  ParkChunk* tail_ = nullptr;
  ParkChunk* compacted_ = nullptr;  // compact_some has come as far as this chunk
  uint64_t size_ = 0;
};

}  // namespace te
