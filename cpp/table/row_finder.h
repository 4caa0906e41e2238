// RowFinder: which rows the ids of a batch name, which slots they have, and where each row occurs.
//
// A batch is cut into parts that share no row: a feature, or of a large one the ids whose hash
// falls into one share of it. Parts are found by all threads at once, each in one pass over its
// ids; a slot's mark tells a row seen before in this batch, so there is no hash table and no sort.
// Rows without a slot are listed, then deduped one part after another by provisional slot numbers
// that stand in their location words for a moment. How a batch is cut may depend on the number of
// threads only where nothing is ever evicted: the order of unique rows is the order in which they
// are parked. Thread-safety: none; the engine's mutex guards it. Ownership: borrows the tiers.
// Cost: about two cache misses an id (one where every row has a slot of its own), prefetched ahead;
// allocates nothing once its buffers have grown.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/scratch.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "table/lookup_sample.h"
#include "table/plan.h"
#include "table/tiers.h"

namespace te {

// Which of 2^share_bits shares of a batch an id falls into. By the square root of 2, because hash
// tables of rows go by the golden ratio: rows that come share by share would crowd one part of them
// after another, and each probe would pass hundreds.
inline size_t share_of(uint64_t id, int share_bits) {
  return static_cast<uint32_t>(id * 0x6A09E667u) >> (32 - share_bits);
}

class RowFinder {
 public:
  // Fills keep the n-th row without a slot as slot number kProvisionalSlot + n.
  static constexpr uint32_t kProvisionalSlot = 0x60000000u;

  // `sample`: whose rows are picked out for it.
  RowFinder(Tiers& tiers, const LookupSample& sample) : tiers_(tiers), sample_(sample) {}

  // Checks a batch that is laid out, and finds its unique rows, the slots of those that have one
  // (pinned, where rows may be evicted), fills without slots for the others, those that are
  // sampled, and if the plan will update, the occurrences of every row. plan.acquired.mark_base +
  // plan.occurrences does not wrap. On error nothing has changed.
  Status find(std::span<const FeatureInput> features, bool will_update, Plan& plan,
              ThreadPool& threads);
  // When fills have slots: what was left open for them. Follows `find` at once.
  void finish(Plan& plan, ThreadPool& threads);

 private:
  struct Part {
    size_t feature = 0;
    size_t first = 0;        // its place in all arrays by occurrence or unique row
    size_t positions = 0;    // ids
    bool is_listed = false;  // its positions are listed; else they are all of the feature
    // Found:
    size_t missing = 0;
    size_t hits = 0;
    uint32_t pinned = 0;
  };

  void make_room(Plan& plan);
  void add_up(std::span<const FeatureInput> features, Plan& plan);
  void cut(std::span<const FeatureInput> features, Plan& plan, ThreadPool& threads);
  void list_positions(const FeatureInput& feature, size_t first_part, size_t shares,
                      ThreadPool& threads);
  void group_parts();
  template <class F>
  void for_parts(ThreadPool& threads, F f);
  void find_part(const FeatureInput& feature, Plan& plan, size_t p);
  template <class Slots, class Id, bool kListed>
  void find_rows(Slots slots, const FeatureInput& feature, Plan& plan, size_t p);
  void dedupe_missing(const FeatureInput& feature, Plan& plan, size_t p);
  void list_occurrences(Plan& plan, size_t p);
  template <bool kByPosition>
  void fill_csr(Plan& plan, size_t p);
  // Adds unique rows [first, end) to part p's that are sampled.
  void pick_sampled(Plan& plan, size_t p, size_t first, size_t end) const;
  void scale_bags(const FeatureInput& input, Plan& plan, size_t f) const;

  Tiers& tiers_;
  const LookupSample& sample_;
  // Scratch of one batch.
  std::vector<Part> parts_;
  std::vector<size_t> groups_;      // parts [groups_[g], groups_[g + 1]) are one task
  Scratch<uint32_t> positions_;     // of listed parts, ascending, at their `first`
  Scratch<uint32_t> next_;          // fill_csr
  Scratch<uint32_t> missing_;       // positions of rows without a slot, at the part's `first`
  std::vector<size_t> share_ends_;  // list_positions
};

}  // namespace te
