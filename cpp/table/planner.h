// Planner: turns the ids of a batch into a Plan. Every decision of a step is made here, on the CPU.
//
// Order of work: validate everything; find rows that have slots and pin them (a slot's stamp tells
// a row seen before in this batch: no hash table, no sort); dedupe the missing ones by writing a
// provisional slot number into their location words for a moment. Only when their count is known,
// and room for them is certain, choose victims and commit. Until then everything can be undone, so
// a batch that cannot fit is refused before anything has changed. Thread-safety: none; the engine's
// mutex guards it. Ownership: borrows the tiers and the mover. Cost: about three cache misses an
// id, prefetched ahead.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/status.h"
#include "table/mover.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

struct PlannerStats {
  uint64_t plans = 0;
  uint64_t lookups = 0;      // occurrences that are pooled
  uint64_t lookup_hits = 0;  // those whose row was in dram when the batch was planned
  uint64_t unique_rows = 0;
  uint64_t missing_rows = 0;  // unique rows that had no slot
  uint64_t plans_revoked = 0;
};

class Planner {
 public:
  Planner(Tiers& tiers, Mover& mover) : tiers_(tiers), mover_(mover) {}

  // Plans a batch; on success all its rows have pinned slots and `plan.acquired.fills` says which
  // of them the mover has still to bring. On error nothing has changed.
  Status plan(std::span<const FeatureInput> features, bool will_update, Plan& plan);
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

  // Adds a user's batch to the counters; plans that only serve writes are not counted.
  void count(const Plan& plan);
  // A batch was pooled without being planned: all its lookups were hits.
  void count_resident(const Plan& plan);

  const PlannerStats& stats() const { return stats_; }

 private:
  void begin(Acquisition& acquired, size_t positions);
  // Pins the rows of positions [first, first + count), all of one table, or lists them as fills.
  // row_at(position) is the row, or none to leave the position out.
  template <class RowAt>
  void acquire(TableId table, size_t first, size_t count, RowAt row_at, Acquisition& acquired);
  // `Slots` finds the slot of a row that has one.
  template <class Slots, class RowAt>
  void acquire_with(const Slots& slots, TableId table, size_t first, size_t count, RowAt row_at,
                    Acquisition& acquired);
  void dedupe_missing(TableId table, FunctionRef<RowId(size_t)> row_at, Acquisition& acquired);
  Status commit(Acquisition& acquired, bool may_repack);
  // Gives the rows of an acquisition that has lost its slots new ones, in the same order.
  Status place_again(Acquisition& acquired);
  // The acquisition's own pins stand in the way of room for it: without them, makes room and starts
  // again.
  Status repack(Acquisition& acquired);
  Status reserve(std::span<const uint32_t> missing, const Acquisition& acquired);
  Status too_large(const Acquisition& acquired) const;
  Status take_victims(LayoutId layout, size_t missing);
  void unpin(Acquisition& acquired);
  // Takes the slots of a plan that is not at work: the oldest that waits, else the newest that is
  // ready.
  bool revoke_one();
  void restart_stamps();
  void finish_occurrences(Plan& plan);
  void build_csr(Plan& plan);

  Tiers& tiers_;
  Mover& mover_;
  PlannerStats stats_;
  uint32_t sequence_ = 0;
  std::deque<Plan*> waiting_;  // oldest first
  std::deque<Plan*> ready_;    // likewise
  // Scratch of one call.
  std::vector<size_t> missing_positions_;
  std::vector<SlotIndex> slots_;
  std::vector<uint32_t> csr_next_;
};

}  // namespace te
