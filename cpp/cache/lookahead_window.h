// LookaheadWindow: the rows of batches to come, and for each of their uses the batch of the next.
//
// Batches have numbers from 1 in the order of their use. Rows lie one after another in a ring; a
// hash table knows each row's use in the last batch that has it, so that the next batch with it can
// be noted there. Entries whose use has left the ring stay until the table is built anew; a use is
// checked against the ring, so they do no harm. Thread-safety: none; the engine's mutex guards it.
// Cost: one cache miss a lookup that is pushed, prefetched ahead; 12 bytes a lookup in the ring and
// eight in the table, each times up to two as they grow by doubling; O(window), whatever the
// tables' sizes. Nothing is allocated once they have grown.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/types.h"

namespace te {

class LookaheadWindow {
 public:
  // A lookup of the window, by the low bits of its number.
  using Use = uint32_t;
  static constexpr Use kNoUse = 0xffffffff;

  // Appends the next batch, a row a lookup; none stands for a lookup of no row. Appends to
  // `first_uses` the use of each row that no earlier batch of the window has: it is its next.
  // Returns the batch's number.
  uint32_t push(std::span<const RowId> rows, std::vector<Use>& first_uses);
  // The next batch after `batch`, of those pushed so far, that has the row at this position; 0 if
  // none has. `position`: of the row's first use in the batch.
  uint32_t next_use(uint32_t batch, size_t position) const;
  // The row's first use in the last batch that has it; kNoUse if none has.
  Use last_use(RowId row) const;
  void prefetch(RowId row) const { __builtin_prefetch(&table_[place_of(row)]); }
  // Whether a use that was told is still in the window. Then:
  bool holds(Use use) const { return use - static_cast<uint32_t>(begin_) < end_ - begin_; }
  RowId row_of(Use use) const { return rows_[use & (rows_.size() - 1)]; }
  uint32_t batch_of(Use use) const;
  // A batch is over. Those at the front that are over leave the window; the number of the last one
  // that has left so far.
  uint32_t finish(uint32_t batch);
  // The batches that are not over: [first(), end()).
  uint32_t first() const { return first_; }
  uint32_t end() const { return first_ + static_cast<uint32_t>(batches_.size()); }
  bool contains(uint32_t batch) const { return batch >= first_ && batch < end(); }
  size_t lookups() const { return end_ - begin_; }
  uint64_t lookups_ever() const { return end_; }
  // Ends all batches; numbers go on.
  void clear();
  uint64_t memory_bytes() const;
  // At most, with so many lookups in it.
  static uint64_t memory_bytes_for(size_t lookups);

 private:
  struct Batch {
    uint64_t begin;  // of its uses
    bool is_over = false;
  };
  // Zeros, in huge pages where the system grants them: uses of a row lie far apart.
  template <class T>
  class Zeros {
   public:
    explicit Zeros(size_t size) : memory_(size * sizeof(T)), size_(size) {}
    T& operator[](size_t i) { return reinterpret_cast<T*>(memory_.data())[i]; }
    const T& operator[](size_t i) const { return reinterpret_cast<const T*>(memory_.data())[i]; }
    size_t size() const { return size_; }
    uint64_t bytes() const { return memory_.bytes(); }

   private:
    ReservedMemory memory_;
    size_t size_;
  };

  void make_room(size_t lookups);
  void build_table(size_t entries);
  size_t place_of(RowId row) const { return row.value * 0x9E3779B97F4A7C15ull >> table_shift_; }
  size_t find(RowId row) const;

  uint32_t first_ = 1;
  std::deque<Batch> batches_;
  // Uses have numbers that go on for ever; the ring holds those of [begin_, end_).
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
  Zeros<RowId> rows_{0};      // of each use
  Zeros<uint32_t> next_{0};   // likewise
  Zeros<uint32_t> table_{0};  // low bits of a use + 1; 0: free
  int table_shift_ = 64;
  size_t entries_ = 0;        // of the table that are not free
  uint64_t table_built_ = 0;  // end_ at that time
};

}  // namespace te
