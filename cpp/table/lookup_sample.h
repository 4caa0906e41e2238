// LookupSample: what has been looked up lately, a sample of bounded size that costs next to
// nothing.
//
// Spatial sampling (SHARDS: Waldspurger, Park, Garthwaite, Ahmad, FAST 2015): a row is in the
// sample if the high bits of a hash of it are zero, and then every batch that looks it up is noted.
// So a cache of the sampled rows alone behaves as the whole one, scaled by the rate.
//
// The size is fixed, the rate follows. Whoever simulates a cache of any size wants two things:
// several thousand distinct rows, and uses enough of each, for the first use of a row is a miss of
// every cache and tells nothing. The sample begins with all rows. When its 65,536 places are taken,
// and by more than 8,192 distinct rows (which SHARDS found to be enough), half the rows are dropped
// and the rate is halved: the places last for twice as many batches. Likewise if there are less
// than 48 batches. Else the oldest batch goes. So after a halving for their number there are some
// 4,096 rows, and eight uses of each on average. It never reaches back farther than 16,384 batches,
// which matters where rows seldom come again. If batches have become so small that these fill less
// than a sixteenth of the places, or rows in use so few that less than 2,048 are left, of many
// batches, the sample begins anew.
//
// Batches are watched in bursts (bursty tracing: Arnold, Ryder, PLDI 2001): once a burst alone has
// filled the sample, batches pass unseen until they have been 64 times as much work as watching
// was. The next burst follows the last one in the sample, and takes its place batch by batch; a
// copy has whichever is the larger part, since what came between the two is not known.
//
// All entries are of one rate at any time, and in order. Thread-safety: none; the engine's mutex
// guards it. Ownership: owns its memory, which is taken as it is first written. Cost: of batches
// that are watched, a hash of each row and a copy of what is noted, and twice a burst or more a
// pass over the entries; of others none.
#pragma once

#include <cstdint>
#include <optional>
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

  // Whether the next batch is to be noted; else it is to be passed.
  bool is_watching() const { return held_.value_or(rest_ == 0); }
  // A row is sampled if these bits are zero in its sample_hash (rows/sample_hash.h).
  uint32_t mask() const { return mask_; }
  // The next batch: its distinct rows, in one or more calls, all that are sampled by the mask that
  // there was at `begin_batch`; `cost`: what has been spent on it, in lookups.
  void begin_batch();
  void note(std::span<const RowId> rows);
  void end_batch(uint64_t cost);
  // A batch that is not watched, which was so much work, in lookups.
  void pass(uint64_t work);
  // From now on all batches are watched, or none; without a value, in bursts again. To measure: a
  // burst that was interrupted is copied as if it had not been.
  void hold(std::optional<bool> watching) { held_ = watching; }
  uint64_t watched_batches() const { return end_batch_; }

  struct Copy {
    double rate = 1;                 // of all rows, those that are sampled
    uint64_t first_batch = 0;        // batches that were watched are numbered from 0
    std::vector<uint32_t> in_batch;  // entries of each batch from then on
    std::vector<RowId> rows;         // batch after batch
  };
  Copy copy() const;  // of batches one after another, with half of the entries or more

 private:
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
  uint64_t gap_ = 0;          // before this batch others passed
  uint64_t burst_begin_ = 0;  // its first batch
  uint64_t burst_cost_ = 0;   // in lookups
  uint64_t rest_ = 0;         // work to pass until the next burst, in lookups
  std::optional<bool> held_;
};

}  // namespace te
