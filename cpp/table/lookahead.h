// Lookahead: tells the eviction policies which batches to come will use the rows in their slots.
//
// The ids of a batch are pushed long before it is planned; its rows that stand in dram and were not
// expected by an earlier batch become candidates in another order. When a plan ends, each of its
// rows is expected by the next batch that has it. Nothing but the order of evictions depends on
// what is pushed. Thread-safety: none; the engine's mutex guards it. Ownership: borrows the tiers.
// Cost: that of cache/lookahead_window.h, and a location word a row that was not expected; memory
// within a part of the budget, charged to it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/lookahead_window.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

class Lookahead {
 public:
  explicit Lookahead(Tiers& tiers) : tiers_(tiers) {}

  // Whether there is something to gain: rows are evicted, by a policy that looks ahead.
  bool is_useful() const;
  // Whether the budget has room for the window with so many lookups more.
  bool has_room(size_t lookups) const;
  // The next batch; its number. Ids that are no rows, which its plan will refuse, are passed over.
  uint32_t push(std::span<const FeatureInput> features);
  // A plan of the window has been made: notes where its rows come first.
  void note_first_uses(Plan& plan) const;
  // It ends, while its slots are still pinned.
  void expect_next(const Plan& plan);
  // The batch is over, or will not come.
  void finish(uint32_t batch);

 private:
  void expect_first_uses(uint32_t batch);

  Tiers& tiers_;
  LookaheadWindow window_;
  // Scratch of one call.
  std::vector<RowId> rows_;
  std::vector<RowId> first_uses_;
  std::vector<SlotIndex> slots_;
  std::vector<uint32_t> batches_;
};

}  // namespace te
