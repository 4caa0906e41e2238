// Aged LFU: the victim is a row of the lowest level of log2(uses, decayed), the oldest of its
// level.
//
// A use is a plan that needs the row, however often. Every `kAgingTurns` x limit uses all counts
// are halved: the counts in the slots and of absent rows by one sweep, the queues by joining each
// level to the one below. Rows that left keep a one-byte count in a table of kGhostsPerSlot x limit
// bytes (by row if all rows fit, else hashed, the newest wins), because a row that returns should
// not start from nothing. After TinyLFU (Einziger, Friedman, Manes, ACM ToS 2017) with FIFO levels
// in place of a heap. Not good for: loops slightly larger than the cache. Cost: one append a unique
// row and plan.
#include <algorithm>
#include <array>
#include <bit>

#include "base/aligned_buffer.h"
#include "cache/eviction_policy.h"
#include "cache/park_queue.h"

namespace te {
namespace {

constexpr uint64_t kAgingTurns = 8;
constexpr uint64_t kGhostsPerSlot = 4;
constexpr uint8_t kFrequencyMax = 255;

class AgedLfuPolicy final : public EvictionPolicy {
 public:
  AgedLfuPolicy(SlotDirectory& directory, uint64_t total_rows)
      : directory_(directory),
        total_rows_(total_rows),
        levels_{ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_),
                ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_)} {}

  std::string_view name() const override { return "lfu"; }

  void set_limit(uint32_t limit) override {
    entries_max_ = uint64_t{limit} + limit / 2 + ParkChunk::kEntries;
    aging_uses_ = kAgingTurns * std::max(limit, 1u);
    const uint64_t ghosts =
        std::min(std::bit_ceil(kGhostsPerSlot * std::max(limit, 1u)), std::bit_ceil(total_rows_));
    if (ghosts != ghosts_.bytes()) {  // counts of absent rows start anew; those in slots stay
      ghosts_ = ReservedMemory(ghosts);
      ghost_shift_ = 64 - std::countr_zero(ghosts);
    }
  }

  void clear() override {
    for (ParkQueue& queue : levels_) queue.clear();
  }

  void admit(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) directory_[s].frequency = ghost(directory_[s].row);
  }

  void evicted(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) ghost(directory_[s].row) = directory_[s].frequency;
  }

  void park(std::span<const SlotIndex> slots) override {
    uint64_t entries = slots.size();
    for (const ParkQueue& queue : levels_) entries += queue.size();
    if (entries > entries_max_) {
      for (ParkQueue& queue : levels_) queue.compact(directory_);
    }
    for (SlotIndex s : slots) {
      Slot& slot = directory_[s];
      if (slot.frequency < kFrequencyMax) ++slot.frequency;
      levels_[level(slot.frequency)].push({s, directory_.mark(s)});
    }
    uses_ += slots.size();
    if (uses_ >= aging_uses_) age();
  }

  void pop_victims(size_t count, std::vector<SlotIndex>& out) override {
    ParkedSlot entry;
    for (ParkQueue& queue : levels_) {
      while (count > 0 && queue.pop(&entry)) {
        if (!ParkQueue::is_current(directory_, entry)) continue;
        out.push_back(entry.slot);
        --count;
      }
    }
  }

 private:
  static int level(uint8_t frequency) {
    return frequency == 0 ? 0 : std::bit_width(frequency) - 1u;
  }

  uint8_t& ghost(RowId row) {
    auto* counts = reinterpret_cast<uint8_t*>(ghosts_.data());
    if (total_rows_ <= ghosts_.bytes()) return counts[row.value % ghosts_.bytes()];
    return counts[row.value * 0x9E3779B97F4A7C15ull >> ghost_shift_];
  }

  void age() {
    uses_ = 0;
    for (uint32_t i = 0; i < directory_.ever_used(); ++i) {
      directory_[SlotIndex(i)].frequency /= 2;
    }
    auto* counts = reinterpret_cast<uint8_t*>(ghosts_.data());
    for (size_t i = 0; i < ghosts_.bytes(); ++i) {
      if (counts[i] != 0) counts[i] /= 2;  // a page that was never written stays unwritten
    }
    for (size_t i = 1; i < levels_.size(); ++i) levels_[i - 1].append(levels_[i]);
  }

  SlotDirectory& directory_;
  const uint64_t total_rows_;
  ParkChunkPool chunks_;
  std::array<ParkQueue, 8> levels_;
  ReservedMemory ghosts_;  // one byte each
  int ghost_shift_ = 64;
  uint64_t entries_max_ = 0;
  uint64_t aging_uses_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_aged_lfu_policy(SlotDirectory& directory,
                                                     uint64_t total_rows) {
  return std::make_unique<AgedLfuPolicy>(directory, total_rows);
}

}  // namespace te
