// Planner: turns the ids of a batch into a Plan. Every decision of a step is made here, on the CPU.
//
// Order of work: validate everything; find the rows of the batch and pin those that have slots
// (row_finder.h). Only when the number of the others is known, and room for them is certain, choose
// victims and commit. Until then everything can be undone, so a batch that cannot fit is refused
// before anything has changed. Where every row fits, nothing is evicted and nothing pinned.
// Thread-safety: none; the engine's mutex guards it. Ownership: borrows the tiers and the mover.
// Cost: that of row_finder.h, and a few cache misses a row that moves; a batch whose rows are all
// in dram allocates nothing once buffers have grown.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/scratch.h"
#include "base/status.h"
#include "table/hbm_planner.h"
#include "table/lookahead.h"
#include "table/lookup_sample.h"
#include "table/mover.h"
#include "table/plan.h"
#include "table/row_finder.h"
#include "table/tiers.h"

namespace te {

struct PlannerStats {
  uint64_t plans = 0;
  uint64_t lookups = 0;      // occurrences that are pooled
  uint64_t lookup_hits = 0;  // those whose row was in dram when the batch was planned
  uint64_t unique_rows = 0;
  uint64_t missing_rows = 0;      // unique rows that had no slot
  uint64_t piggybacked_rows = 0;  // others that came with them, from the same blocks
  uint64_t plans_revoked = 0;
};

class Planner {
 public:
  // `mark_first`: of the first plan; tests begin close to where the numbers start again.
  Planner(Tiers& tiers, Mover& mover, HbmPlanner& hbm, uint32_t mark_first = 1)
      : tiers_(tiers),
        mover_(mover),
        hbm_(hbm),
        finder_(tiers, sample_),
        lookahead_(tiers),
        mark_next_(mark_first) {}

  // Where slots are short: take them from plans that are not at work, then from shares, or be
  // refused (kBudgetExceeded).
  enum class Pressure : uint8_t { kRevokePlans, kRefuse };
  // Plans a batch, whose window_batch is set; on success all its rows have pinned slots and
  // `plan.acquired.fills` says which of them the mover has still to bring. On error nothing has
  // changed.
  Status plan(std::span<const FeatureInput> features, bool will_update, Plan& plan,
              ThreadPool& threads, Pressure pressure = Pressure::kRevokePlans);
  // Makes sure that at least one slot for rows of this table is not pinned, taking it from plans
  // that wait.
  Status make_way(TableId table);
  // Gives a revoked plan slots again.
  Status reacquire(Plan& plan);
  // The fills of the plan failed: their rows go back to where they were, all pins end.
  void abandon(Plan& plan);
  // Ends the pins of the plan; its rows become candidates for eviction.
  void release(Plan& plan);
  // The plan's rows are in their slots. Under pressure it loses them, after the plans that wait.
  void ready(Plan& plan);
  // The plan is pooled and may wait for its backward; under pressure it loses its slots.
  void wait(Plan& plan);

  // Takes the slots of a plan that is not at work: the oldest that waits, else the newest that is
  // ready. False if there is none.
  bool revoke_one();
  void revoke_all();
  // Marks of plans to come are at least this.
  uint32_t mark_next() const { return mark_next_; }

  // Adds a user's batch to the lookup sample when it is first planned; plans that only serve writes
  // are not noted.
  void note(Plan& plan);
  // Adds a user's batch that is looked up to the counters, and to the sample if it is not there.
  void count(Plan& plan);
  // A batch was pooled without being planned: all its lookups were hits.
  void count_resident(Plan& plan);

  Lookahead& lookahead() { return lookahead_; }
  const PlannerStats& stats() const { return stats_; }
  LookupSample& sample() { return sample_; }

 private:
  uint32_t take_marks(size_t rows);
  void restart_marks();
  Status commit(Acquisition& acquired, Pressure pressure, bool may_repack);
  // Gives the rows of an acquisition that has lost its slots new ones, in the same order.
  Status place_again(Acquisition& acquired);
  // The acquisition's own pins, or shares, stand in the way of room for it: without them, makes
  // room and starts again.
  Status repack(Acquisition& acquired);
  void forget_marks(SlotDirectory& directory, EvictionPolicy* policy, uint32_t end);
  static void follow_slots(Plan& plan);
  void drop_repeats(Plan& plan);
  static size_t sampled_rows(const Plan& plan);
  void note(Plan& plan, uint64_t cost, uint64_t work);
  static uint64_t cost_of(const Plan& plan, size_t hashed);
  Status reserve(std::span<const uint32_t> missing, const Acquisition& acquired, Pressure pressure);
  uint64_t bytes_for(const Acquisition& acquired) const;
  Status too_large(const Acquisition& acquired) const;
  Status take_victims(LayoutId layout, size_t missing);
  // Empties the slots in slots_. On error they keep their rows, and are candidates again.
  Status spill(LayoutId layout);
  Status piggyback(Plan& plan);
  Status piggyback(LayoutId layout, std::span<const Lookahead::Companion> rows, Plan& plan);
  // The piggybacked rows of the plan have come.
  void let_go_of_piggybacked(Plan& plan);
  void unpin(Acquisition& acquired);
  // Its batch is over for the lookahead: at its forward, since its backward may never come.
  void leave_window(Plan& plan);
  Tiers& tiers_;
  Mover& mover_;
  HbmPlanner& hbm_;  // is told of plans that lose their slots
  PlannerStats stats_;
  LookupSample sample_;
  RowFinder finder_;
  Lookahead lookahead_;
  uint32_t mark_next_;          // from 1: 0 marks slots that no plan has used
  std::vector<Plan*> waiting_;  // oldest first
  std::vector<Plan*> ready_;    // likewise
  // Scratch of one call.
  Scratch<RowId> seen_;
  std::vector<SlotIndex> slots_;
  std::vector<SlotIndex> on_device_;
  std::vector<RowId> rows_;
  std::vector<uint32_t> missing_;  // by layout
  std::vector<uint32_t> needed_;   // likewise
};

}  // namespace te
