// LookupSample: what has been looked up lately, a sample of bounded size that is always kept.
//
// Spatial sampling (SHARDS: Waldspurger, Park, Garthwaite, Ahmad, FAST 2015): a row is in the
// sample if the high bits of a hash of it are zero, and then every batch that looks it up is noted.
// So a cache of the sampled rows alone behaves as the whole one, scaled by the rate.
//
// The size is fixed, the rate follows. Whoever simulates a cache of any size wants two things:
// several thousand distinct rows, and uses enough of each, for the first use of a row is a miss of
// every cache and tells nothing. The sample begins with all rows. When its 65,536 places are taken,
// and by more than 8,192 distinct rows (which SHARDS found to be enough), half the rows are dropped
// and the rate is halved: the places last for twice as many batches. Else the oldest batch goes. So
// a full sample holds about 4,096 rows or more, if so many are in use, and eight uses of each on
// average. It never reaches back farther than 16,384 batches, which matters where rows seldom come
// again. If batches have become so small that these fill less than a sixteenth of the places, the
// sample begins anew.
//
// All entries are of one rate at any time, and in order. Thread-safety: none; the engine's mutex
// guards it. Ownership: owns its memory, which is taken as it is first written. Cost: a copy of
// what is noted, and a pass over the entries each time that four times as many have been noted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/types.h"

namespace te {

class LookupSample {
 public:
  static constexpr size_t kEntries = 1 << 16;
  static constexpr size_t kBatchesMax = 1 << 14;
  static constexpr size_t kBytes = kEntries * sizeof(RowId) + kBatchesMax * sizeof(uint32_t);

  LookupSample();

  // A row is sampled if these bits are zero in its sample_hash (rows/sample_hash.h).
  uint32_t mask() const { return mask_; }
  // The next batch: its distinct rows, in one or more calls, all that are sampled by the mask that
  // there was at `begin_batch`.
  void begin_batch();
  void note(std::span<const RowId> rows);
  void end_batch();

  struct Copy {
    double rate = 1;                 // of all rows, those that are sampled
    uint64_t first_batch = 0;        // batches are numbered from 0
    std::vector<uint32_t> in_batch;  // entries of each batch from then on
    std::vector<RowId> rows;         // batch after batch
  };
  Copy copy() const;

 private:
  static constexpr size_t kNotedPerCount = 4 * kEntries;

  void append(std::span<const RowId> rows);
  bool is_sampled(RowId row) const;
  // Gives room in return for a part of the sample: see above.
  void make_room();
  void drop_oldest_batch();
  void halve_rate();
  void clear();
  size_t distinct_rows() const;
  RowId& entry(size_t i) const { return entries()[(first_ + i) % kEntries]; }
  uint32_t& in_batch(uint64_t batch) const { return batch_sizes()[batch % kBatchesMax]; }
  RowId* entries() const { return reinterpret_cast<RowId*>(memory_.data()); }
  uint32_t* batch_sizes() const { return reinterpret_cast<uint32_t*>(entries() + kEntries); }

  ReservedMemory memory_;  // rings of entries, and of how many each batch has
  uint32_t mask_ = 0;
  uint32_t mask_of_batch_ = 0;
  size_t first_ = 0;  // place of the oldest entry
  size_t used_ = 0;
  uint64_t first_batch_ = 0;
  uint64_t end_batch_ = 0;
  // Entries since the distinct rows were counted and found few enough; at first, count them when
  // full.
  size_t noted_ = kNotedPerCount;
};

}  // namespace te
