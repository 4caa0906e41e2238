// EvictionPolicy: which unpinned row leaves a tier, dram or hbm, first.
//
// The planner parks a slot when the last plan that pinned it ends, and asks for victims when it
// needs slots. A policy only orders candidates; it may hold stale entries, so a candidate counts
// only if its slot is still unpinned and its mark is the one it was parked with
// (ParkQueue::is_current). Policies see batches, never single lookups: one virtual call a plan.
// Adding one: a file that implements the class, and a line in make_eviction_policy.
// Thread-safety: none; the engine's mutex guards it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "base/types.h"
#include "cache/slot_directory.h"

namespace te {

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;
  // Rows that have just entered their slots.
  virtual void admit(std::span<const SlotIndex> slots) = 0;
  // Slots whose last pin ended, in the order of the plan.
  virtual void park(std::span<const SlotIndex> slots) = 0;
  // The same, with the help of threads where that is worth it. The slots differ.
  virtual void park_many(std::span<const SlotIndex> slots, ThreadPool& threads) {
    (void)threads;
    park(slots);
  }
  // Slots that a plan which ends has used, and that stay pinned: their rows are on a device too.
  virtual void used(std::span<const SlotIndex> slots) { (void)slots; }
  // The rows of parked slots stand in others now, with their marks and frequencies.
  virtual void moved(std::span<const SlotIndex> from, std::span<const SlotIndex> to) {
    (void)from;
    park(to);
  }
  // The next batches that will use the rows of these slots, 0 where none is known; batches have
  // numbers from 1 in the order of their use. For slots of a plan that ends, while they are still
  // pinned; and for parked slots whose row has turned up in a later batch, or will not be used by
  // the one that was told.
  virtual void expect(std::span<const SlotIndex> slots, std::span<const uint32_t> batches) {
    (void)slots, (void)batches;
  }
  // The batches up to this one are over: what was expected of them is no longer.
  virtual void finished(uint32_t batch) { (void)batch; }
  // The batch that will use the row of the next victim: kNoKnownUse where none is known to, 0 where
  // there is no victim, or where nothing is expected.
  static constexpr uint32_t kNoKnownUse = 0xffffffff;
  virtual uint32_t victim_next_use() { return 0; }
  // Appends up to `count` victims to `out` and forgets them. Fewer only if there are no more. None
  // is given again before it is told as evicted, or parked.
  virtual void pop_victims(size_t count, std::vector<SlotIndex>& out) = 0;
  // The rows of these slots are about to leave them.
  virtual void evicted(std::span<const SlotIndex> slots) = 0;
  // Whether a slot's frequency is a number of uses, which a row on a device has before it is
  // admitted (`PolicyOf::kDevice`); and how often all such numbers have been halved so far.
  virtual bool counts_uses() const { return false; }
  virtual uint32_t halvings() const { return 0; }
  // Forgets all candidates; the caller parks them anew.
  virtual void clear() = 0;
  // The arena may now use `limit` slots. Where that is much less than before, `tidy` first: else
  // the next park drops all that is stale at once.
  virtual void set_limit(uint32_t limit) = 0;
  // Looks at some candidates, and drops those that are stale; it goes on at the next call. True
  // when it has come to the end.
  virtual bool tidy(size_t candidates) = 0;
  // Takes a few MiB of the memory that evictions write all over, so that the first of many does not
  // pay for all of it. True if no more is to be taken.
  virtual bool touch_memory() = 0;
  // Gives memory back that a lower limit does not need: what there is about slots [begin, end),
  // none of which holds a row, and a few MiB besides. True if nothing besides was left.
  virtual bool give_back(uint32_t begin, uint32_t end) = 0;

  // Upper bound of the memory a policy takes, for the budget; besides, 1 KiB for each batch that is
  // expected to use a parked row, and 16 bytes for each of the most slots parked at once.
  static constexpr uint32_t kBytesPerSlotMax = 28;

 protected:
  static constexpr size_t kBytesTouchedAtOnce = 4 << 20;
};

// kDram: victims that lie best together in the log come next to one another, and a policy that
// counts uses remembers those of rows that left. kDevice: victims come in the order that costs
// least, and the tier below, which still has the rows, keeps their counts.
enum class PolicyOf { kDram, kDevice };

// `name`: "lookahead", "lfu" (as lookahead, knowing nothing ahead), "lru" or "s3fifo"; null for
// another. `total_rows`: rows that could ever be cached here.
std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name,
                                                     SlotDirectory& directory, uint64_t total_rows,
                                                     PolicyOf tier = PolicyOf::kDram);
std::unique_ptr<EvictionPolicy> make_lookahead_policy(SlotDirectory& directory, uint64_t total_rows,
                                                      PolicyOf tier);
std::unique_ptr<EvictionPolicy> make_lru_policy(SlotDirectory& directory);
std::unique_ptr<EvictionPolicy> make_s3_fifo_policy(SlotDirectory& directory);
std::unique_ptr<EvictionPolicy> make_lfu_policy(SlotDirectory& directory, uint64_t total_rows,
                                                PolicyOf tier);

}  // namespace te
