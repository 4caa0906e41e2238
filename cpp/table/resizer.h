// Resizer: brings the dram budget of an engine to another size while batches go on.
//
// A larger one is there at once: slots are address space that was reserved. A smaller one is
// reached in portions, one before each batch, whose work is bounded whatever the size: the eviction
// policy drops what is stale; limits fall by some thousand slots, rows leave by the policy's choice
// or move below the limit, and their memory goes back to the system; then what was kept for the old
// size does. Rows that batches in flight pin stay where they are (they are stranded) until they are
// let go; if that takes long, the plans of those batches give their slots up and get new ones, as
// under pressure. Where every row had a slot of its own, rows first become candidates for eviction.
// So a resize changes when rows move and nothing else.
// Thread-safety: none; in a turn, under the engine's mutex. Ownership: borrows. Cost of a portion:
// some milliseconds; nothing once the size is reached.
#pragma once

#include <cstdint>
#include <vector>

#include "base/function_ref.h"
#include "base/status.h"
#include "table/mover.h"
#include "table/plan_pool.h"
#include "table/planner.h"
#include "table/tiers.h"

namespace te {

class Resizer {
 public:
  Resizer(Tiers& tiers, Mover& mover, Planner& planner, const PlanPool& plans)
      : tiers_(tiers), mover_(mover), planner_(planner), plans_(plans) {}

  // Waits until every planned row stands in its slot, and keeps it so to the end of the turn.
  using Quiet = FunctionRef<void()>;
  // Sets the size to be reached. On error (kInvalidArgument, kBudgetExceeded) nothing has changed.
  Status begin(uint64_t dram_bytes, Quiet quiet);
  // A portion of the work, if there is any. Where the disk is full it is tried again later.
  Status step(Quiet quiet);

 private:
  enum class Phase : uint8_t { kIdle, kDisown, kTidy, kShrink, kRescue, kTidyAgain, kGiveBack };
  Status check(uint64_t dram_bytes) const;
  std::vector<uint32_t> rows_in_flight() const;
  std::vector<uint32_t> limits_for(uint64_t dram_bytes) const;
  LayoutTier& layout(size_t l) { return tiers_.layout(LayoutId(static_cast<uint16_t>(l))); }
  bool disown();
  bool tidy();
  bool is_over_target() const;
  bool has_stranded() const;
  Status shrink(bool& is_done);
  bool rescue(Quiet quiet);
  void grow();
  bool give_back();
  void note_highest();

  Tiers& tiers_;
  Mover& mover_;
  Planner& planner_;
  const PlanPool& plans_;
  Phase phase_ = Phase::kIdle;
  size_t layout_ = 0;              // the next one, of phases that go through them
  bool has_seen_end_ = false;      // of the candidates of that layout, in tidy()
  std::vector<uint32_t> highest_;  // by layout: the highest limit since memory was given back
  std::vector<uint32_t> given_;    // likewise: that has been done up to this slot
  uint32_t batches_waited_ = 0;    // with rows that are stranded
  uint32_t batches_to_rest_ = 0;   // the disk was full
};

}  // namespace te
