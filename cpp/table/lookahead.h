// Lookahead: tells the eviction policies which batches to come will use the rows in their slots,
// and which rows on ssd will be used that lie in the same blocks.
//
// The ids of a batch are pushed long before it is planned; its rows that stand in dram and were not
// expected by an earlier batch become candidates in another order. When a batch is
// pooled, each of its rows is expected by the next batch that has it. Nothing but when rows move
// depends on what is pushed. Thread-safety: none; the engine's mutex guards it. Ownership: borrows
// the tiers. Cost: that of cache/lookahead_window.h, a location word a row that was not expected,
// and a lookup or two in wanted_blocks.h a row that is fetched; memory within a part of the budget,
// charged to it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/lookahead_window.h"
#include "table/plan.h"
#include "table/tiers.h"
#include "table/wanted_blocks.h"

namespace te {

class Lookahead {
 public:
  explicit Lookahead(Tiers& tiers) : tiers_(tiers), wanted_(window_) {}

  // Whether there is something to gain: rows are evicted, by a policy that looks ahead.
  bool is_useful() const;
  // Whether the budget has room for the window with so many lookups more.
  bool has_room(size_t lookups) const;
  // The next batch; its number. Ids that are no rows, which its plan will refuse, are passed over.
  uint32_t push(std::span<const FeatureInput> features);
  // A plan of the window has been made: notes where its rows come first.
  void note_first_uses(Plan& plan) const;
  // Rows that have left their slots.
  void left(std::span<const RowId> rows);
  // A row in a block that a plan reads, and a later batch that will use it.
  struct Companion {
    RowId row;
    BlockAddress block;
    LayoutId layout;
    uint32_t batch = 0;
  };
  // Of a plan of the window: by layout, those that are used first first. Of rows that left their
  // slots the batch may be a later one than the next with the row.
  std::span<const Companion> companions(const Plan& plan);
  // It ends, while its slots are still pinned.
  void expect_next(const Plan& plan);
  // Whether this batch is over, and all before it.
  bool is_over(uint32_t batch) const { return batch < window_.first(); }
  // The batch is over, or will not come.
  void finish(uint32_t batch);

 private:
  void expect_first_uses(uint32_t batch);
  void expect(LayoutId layout, std::span<const SlotIndex> slots, std::span<const uint32_t> batches);
  void charge() { tiers_.set_lookahead_bytes(window_.memory_bytes() + wanted_.memory_bytes()); }

  Tiers& tiers_;
  LookaheadWindow window_;
  WantedBlocks wanted_;
  // Scratch of one call.
  std::vector<RowId> rows_;
  std::vector<LookaheadWindow::Use> first_uses_;
  std::vector<SlotIndex> slots_;
  std::vector<uint32_t> batches_;
  std::vector<SlotIndex> device_slots_;
  std::vector<uint32_t> device_batches_;
  std::vector<BlockAddress> blocks_;
  std::vector<Companion> companions_;
};

}  // namespace te
