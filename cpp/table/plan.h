// Plan: everything one batch needs, decided before anything moves.
//
// A batch has one feature a table: the ids of its bags. The arrays of all features lie one after
// another; each feature owns a range of occurrences (ids of its input), of bags and of unique rows.
// Life: kPlanned (slots chosen, pinned) -> kReady (rows are in their slots, pinned) -> kWaiting
// (pooled, its backward may come; pinned, but may be revoked when slots are short) -> kReleased. A
// revoked plan keeps its rows and occurrences and gets new slots when its backward comes.
// Ownership: the engine's; Python holds a handle. Thread-safety: the engine's mutex.
#pragma once

#include <cstdint>
#include <vector>

#include "base/scratch.h"
#include "base/types.h"

namespace te {

// The ids of one table for one batch, as the caller holds them. Arrays are int32 or int64.
struct FeatureInput {
  TableId table;
  const void* ids = nullptr;
  size_t ids_count = 0;
  bool ids_are_64 = true;
  const void* offsets =
      nullptr;  // [bags], or [bags + 1] with include_last_offset; null: see bag_size
  size_t offsets_count = 0;
  bool offsets_are_64 = true;
  bool include_last_offset = false;
  size_t bag_size = 0;       // without offsets: ids a bag (2-D input)
  size_t bags = 0;           // without offsets: number of bags
  int64_t padding_id = -1;   // occurrences of this id are left out, or -1
  bool is_weighted = false;  // its backward will have sample weights
};

struct FeaturePlan {
  TableId table;
  LayoutId layout;
  size_t occurrence_first = 0;
  size_t occurrences = 0;
  size_t bag_first = 0;  // into bag_scale; bag_begin has one entry more per feature
  size_t bags = 0;
  size_t begin_first = 0;  // into bag_begin
  size_t range_first = 0;  // into Acquisition::ranges
  size_t ranges = 0;
  size_t uniques = 0;
  bool is_weighted = false;
};

// A row that moves into a slot: from a block, or from its initial value when `from` is none. Once
// it has a slot, that slot's home says where from.
struct Fill {
  RowId row;
  SlotIndex slot;
  BlockAddress from;
  LayoutId layout;
  TableId table;
  uint32_t unique = 0;
};

// Unique rows [first, first + count) of an acquisition belong to one feature; between ranges there
// may be gaps.
struct UniqueRange {
  TableId table;
  LayoutId layout;
  size_t feature = 0;
  size_t first = 0;
  size_t count = 0;
  size_t before = 0;  // unique rows of the feature in ranges before this one
};

// The unique rows of a batch and the slots they have been given.
struct Acquisition {
  uint32_t mark_base = 0;  // unique row u marks its slot with mark_base + u
  std::vector<UniqueRange> ranges;
  Scratch<uint32_t> unique_of;  // [occurrences] unique row of each, or kPaddingSlot
  Scratch<RowId> rows;          // by unique row
  Scratch<SlotIndex> slots;     // likewise
  std::vector<Fill> fills;
  size_t uniques = 0;  // in all ranges
  size_t hits = 0;     // occurrences whose row had a slot already
};

// What has to move in one layout before a staged batch is pooled: spills, then fills. Rows go
// between slots of the device and those in dram.
struct HbmMoves {
  std::vector<SlotIndex> spill_from;
  std::vector<SlotIndex> spill_to;
  std::vector<SlotIndex> fill_from;
  std::vector<SlotIndex> fill_to;
  uint64_t after = 0;  // what they overwrite was last used before this release (hbm_planner.h)
  void clear() {
    spill_from.clear();
    spill_to.clear();
    fill_from.clear();
    fill_to.clear();
    after = 0;
  }
};

// Rows for the lookup sample (lookup_sample.h), from `first` on in Plan::sampled.
struct SampledRange {
  size_t first = 0;
  size_t count = 0;
};

struct Plan {
  enum class State { kPlanned, kReady, kWaiting, kRevoked, kReleased };
  State state = State::kReleased;
  bool will_update = false;   // CSR is built
  uint32_t window_batch = 0;  // its number in the lookahead window, or 0
  std::vector<FeaturePlan> features;
  Acquisition acquired;
  Scratch<int64_t> bag_begin;  // per feature bags + 1 positions, relative to its occurrences
  Scratch<uint32_t> occurrence_slots;  // [occurrences], kPaddingSlot where left out
  // Occurrences of each unique row in input order (CSR); positions relative to the feature. Range r
  // has count + 1 entries of csr_begin, from its first + r on; csr_occurrences only where sample
  // weights or mode max need it.
  Scratch<uint32_t> csr_begin;
  Scratch<uint32_t> csr_occurrences;
  Scratch<uint32_t> csr_bags;
  Scratch<float> bag_scale;               // [bags], 1 / size; features in mode mean
  std::vector<Scratch<uint32_t>> argmax;  // per feature [bags * dim], mode max
  Scratch<uint32_t> first_uses;           // by unique row, if it is in the window: an occurrence
  // Rows for later batches that lie in the blocks which this one's fills read, with slots of their
  // own, pinned until they have come; and the batches, by number in the lookahead window.
  std::vector<Fill> piggybacked;
  std::vector<uint32_t> piggybacked_for;
  std::vector<bool> tables_seen;  // by lay_out_batch
  // Of its unique rows those that are sampled; of a batch that is pooled without being planned,
  // those of all lookups.
  Scratch<RowId> sampled;
  std::vector<SampledRange> sampled_ranges;
  bool is_watched = false;  // these are filled
  bool is_noted = false;    // in the lookup sample, by this plan or another of the same batch
  // With an hbm tier, once it is staged: where the unique rows are for the device (hbm_tier.h);
  // occurrence_slots name those places too.
  bool is_staged = false;
  bool was_pooled = false;  // its backward is what comes next
  Scratch<uint32_t> places;
  std::vector<HbmMoves> moves;                  // by layout
  std::vector<std::vector<SlotIndex>> in_dram;  // by layout: slots of rows that found no room
  size_t occurrences = 0;
  size_t lookups = 0;  // occurrences that are pooled
  size_t bags = 0;
};

}  // namespace te
