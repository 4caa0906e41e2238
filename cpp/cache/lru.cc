// LRU: the victim is the row whose last use lies furthest back. One ParkQueue.
//
// Not good for: rows used once, which push out rows that are used often (a scan empties the cache).
// It is here as the baseline that everybody knows. Cost: one append a unique row and plan.
#include <algorithm>

#include "cache/eviction_policy.h"
#include "cache/park_queue.h"

namespace te {
namespace {

// So many entries are looked at for each that is parked, once the queue is nearly full.
constexpr size_t kTidiedPerParked = 8;

class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(SlotDirectory& directory) : directory_(directory), queue_(chunks_) {}

  std::string_view name() const override { return "lru"; }
  void admit(std::span<const SlotIndex>) override {}
  void evicted(std::span<const SlotIndex>) override {}
  void clear() override { queue_.clear(); }
  void set_limit(uint32_t limit) override {
    // Half of all entries may be stale; the chunk keeps tiny caches from compacting at every step.
    entries_max_ = uint64_t{limit} + limit / 2 + ParkChunk::kEntries;
  }
  bool tidy(size_t candidates) override {
    return queue_.compact_some(candidates,
                               [&](ParkedSlot e) { return ParkQueue::is_current(directory_, e); });
  }
  bool touch_memory() override { return true; }  // its queue is written from end to end
  bool give_back(uint32_t, uint32_t) override { return chunks_.give_memory_back(); }

  void park(std::span<const SlotIndex> slots) override {
    if (queue_.size() + slots.size() > entries_max_ - entries_max_ / 12)
      tidy(kTidiedPerParked * slots.size());
    if (queue_.size() + slots.size() > entries_max_) {
      queue_.compact([&](ParkedSlot e) { return ParkQueue::is_current(directory_, e); });
    }
    for (SlotIndex s : slots) queue_.push({s, directory_.mark(s)});
  }

  void pop_victims(size_t count, std::vector<SlotIndex>& out) override {
    ParkedSlot entry;
    while (count > 0 && queue_.pop(&entry)) {
      if (!ParkQueue::is_current(directory_, entry)) continue;
      out.push_back(entry.slot);
      --count;
    }
  }

 private:
  SlotDirectory& directory_;
  ParkChunkPool chunks_;
  ParkQueue queue_;
  uint64_t entries_max_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_policy(SlotDirectory& directory) {
  return std::make_unique<LruPolicy>(directory);
}

}  // namespace te
