// simulate_cache: the misses of an eviction policy on a stream of rows, without their bytes.
//
// Drives SlotDirectory, EvictionPolicy and LookaheadWindow in the order of the planner, one batch
// in flight: pin the rows that are there, choose victims for the others, end the pins. What it
// counts is what an engine with one table would read; benchmarks/bench_cache.py compares that to
// the optimum. Thread-safety: calls share nothing. Cost: 8 bytes a row of the table, and a cache
// miss or two a lookup beside what policy and window take.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/status.h"

namespace te {

struct CacheSetup {
  std::string_view policy;       // a name of make_eviction_policy
  uint32_t capacity = 0;         // slots
  uint64_t rows = 0;             // ids are below
  size_t batch_lookups = 1;      // the last batch may have fewer
  size_t window_lookups = 0;     // whole batches that the policy knows of ahead; 0: none
  uint64_t warm_up_lookups = 0;  // in whole batches, not counted
};

struct CacheCounts {
  uint64_t lookups = 0;
  uint64_t unique_rows = 0;    // of each batch, summed
  uint64_t misses = 0;         // of these, neither resident nor new: each costs a read
  uint64_t first_touches = 0;  // of these, never used before: they cost no read
  // Time in the policy; and in the window, with finding the slots to tell the policy of. Over the
  // batches at whose start the window could still be filled, which have so many lookups.
  uint64_t policy_ns = 0;
  uint64_t window_ns = 0;
  uint64_t timed_lookups = 0;
  uint64_t window_bytes = 0;  // the most that the window took
};

// An error where there is no such policy, an id is out of range, or a batch has more distinct rows
// than the capacity.
Result<CacheCounts> simulate_cache(const CacheSetup& setup, std::span<const int64_t> ids);

}  // namespace te
