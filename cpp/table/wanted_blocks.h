// WantedBlocks: which blocks of the log hold rows that batches of the lookahead window will use.
//
// So that a block that is read for one batch serves others too. A hash table of blocks and uses;
// nothing is removed when a row comes or goes or is moved by the reclaimer: whoever asks checks the
// row's location word. Entries whose use has left the window go when the table is built anew.
// Thread-safety: none; the engine's mutex guards it. Ownership: borrows the window. Cost: a cache
// miss and the entries of the block, an `add` or `visit`; at most 6 bytes a lookup of the window,
// which is room for one of eight; what has no room is forgotten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"
#include "cache/lookahead_window.h"

namespace te {

class WantedBlocks {
 public:
  using Use = LookaheadWindow::Use;

  explicit WantedBlocks(const LookaheadWindow& window) : window_(window) {}

  // The row of this use lies in the block.
  void add(BlockAddress block, Use use);
  // Calls f(use) for what is in the window of what was added with the block.
  template <class F>
  void visit(BlockAddress block, F f) const {
    if (table_.empty()) return;
    for (size_t at = place_of(block); table_[at].block != 0; at = next(at)) {
      if (table_[at].block == block.value + 1 && window_.holds(table_[at].use)) f(table_[at].use);
    }
  }
  void prefetch(BlockAddress block) const {
    if (!table_.empty()) __builtin_prefetch(&table_[place_of(block)]);
  }
  bool is_empty() const { return entries_ == 0; }
  uint64_t memory_bytes() const { return (table_.size() + kept_.capacity()) * sizeof(Entry); }
  // At most, beside a window with so many lookups.
  static uint64_t memory_bytes_for(size_t lookups);

 private:
  struct Entry {
    uint32_t block = 0;  // its address + 1; 0: free
    Use use = 0;
    bool operator==(const Entry&) const = default;
  };

  bool make_room();
  void insert(Entry entry);
  size_t place_of(BlockAddress block) const {
    return block.value * 0x9E3779B97F4A7C15ull >> table_shift_;
  }
  size_t next(size_t at) const { return (at + 1) & (table_.size() - 1); }

  const LookaheadWindow& window_;
  std::vector<Entry> table_;
  std::vector<Entry> kept_;  // scratch of make_room
  int table_shift_ = 64;
  size_t entries_ = 0;
  uint64_t built_at_ = 0;  // lookups that had been pushed by then
};

}  // namespace te
