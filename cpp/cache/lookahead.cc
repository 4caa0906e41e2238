// Lookahead: Belady's rule for rows whose next use is known, aged LFU for the others.
//
// The victim is a row of which no use is expected, of the lowest level of log2(uses, decayed), the
// oldest of its level; where there is none, one whose next use lies furthest. A use is a plan that
// needs the row, however often. Every kAgingTurns x limit uses all counts are halved: the counts in
// the slots and of absent rows by one sweep, the queues by joining each level to the one below.
// Rows that left keep a one-byte count in a table of kGhostsPerSlot x limit bytes (by row if all
// rows fit, else hashed, the newest wins), because a row that returns should not start from
// nothing. After Belady (IBM Systems Journal 5(2), 1966) and TinyLFU (Einziger, Friedman, Manes,
// ACM ToS 2017), with a FIFO a level and a FIFO a batch in place of a heap. As "lfu" it does not
// look ahead. Not good for: loops slightly larger than the cache, where nothing is known ahead.
// Cost: one append a unique row and plan, and one more where a row that waits turns up in a later
// batch.
#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "base/aligned_buffer.h"
#include "cache/eviction_policy.h"
#include "cache/park_queue.h"

namespace te {
namespace {

constexpr uint64_t kAgingTurns = 8;
constexpr uint64_t kGhostsPerSlot = 4;
constexpr uint8_t kFrequencyMax = 255;
// In place of a batch: the slot has just become a victim, and other entries of it are stale. What
// was expected and has not come may leave several.
constexpr uint32_t kTaken = 0xffffffff;

class LookaheadPolicy final : public EvictionPolicy {
 public:
  LookaheadPolicy(SlotDirectory& directory, uint64_t total_rows, bool looks_ahead)
      : directory_(directory),
        total_rows_(total_rows),
        looks_ahead_(looks_ahead),
        expected_memory_(uint64_t{std::max(directory.slots_max(), 1u)} * sizeof(uint32_t)),
        expected_(reinterpret_cast<uint32_t*>(expected_memory_.data())),
        levels_{ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_),
                ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_), ParkQueue(chunks_)} {}

  std::string_view name() const override { return looks_ahead_ ? "lookahead" : "lfu"; }

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
    for (ParkQueue& queue : batches_) queue.clear();
    entries_ = 0;
  }

  void admit(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) directory_[s].frequency = ghost(directory_[s].row);
  }

  void evicted(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) {
      ghost(directory_[s].row) = directory_[s].frequency;
      expected_[s.value] = 0;
    }
  }

  void park(std::span<const SlotIndex> slots) override {
    make_room(slots.size());
    for (SlotIndex s : slots) {
      Slot& slot = directory_[s];
      if (slot.frequency < kFrequencyMax) ++slot.frequency;
      if (expected_[s.value] == kTaken) expected_[s.value] = 0;  // a victim that stays after all
      push(s);
    }
    uses_ += slots.size();
    if (uses_ >= aging_uses_) age();
  }

  void expect(std::span<const SlotIndex> slots, std::span<const uint32_t> batches) override {
    if (!looks_ahead_) return;
    make_room(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      const SlotIndex s = slots[i];
      expected_[s.value] = batches[i];
      if (directory_[s].pins == 0 && batches[i] > finished_) push(s);
    }
  }

  // Rows that a batch was expected to use and that still wait: what is known of them has not come.
  void finished(uint32_t batch) override {
    for (; finished_ < std::min(batch, furthest_); ++finished_) {
      const uint32_t late = finished_ + 1;
      ParkQueue& queue = queue_of(late);
      ParkedSlot entry;
      while (queue.pop(&entry)) {
        --entries_;
        if (!is_current(entry, late)) continue;
        expected_[entry.slot.value] = 0;
        push(entry.slot);
      }
    }
    finished_ = std::max(finished_, batch);
    furthest_ = std::max(furthest_, finished_);
  }

  void pop_victims(size_t count, std::vector<SlotIndex>& out) override {
    for (ParkQueue& queue : levels_) count -= pop_from(queue, 0, count, out);
    while (count > 0 && furthest_ > finished_) {
      count -= pop_from(queue_of(furthest_), furthest_, count, out);
      if (queue_of(furthest_).size() == 0) --furthest_;
    }
  }

 private:
  ParkQueue& queue_of(uint32_t batch) { return batches_[batch & (batches_.size() - 1)]; }

  // Whether an entry of the queue of this batch, or of a level (0), stands for its slot.
  bool is_current(ParkedSlot entry, uint32_t batch) const {
    const uint32_t expected = expected_[entry.slot.value];
    return ParkQueue::is_current(directory_, entry) &&
           (batch == 0 ? expected <= finished_ : expected == batch);
  }

  void push(SlotIndex s) {
    const ParkedSlot entry{s, directory_.mark(s)};
    const uint32_t batch = expected_[s.value];
    ++entries_;
    if (batch <= finished_) return levels_[level(directory_[s].frequency)].push(entry);
    if (batch - finished_ > batches_.size()) reach(batch);
    furthest_ = std::max(furthest_, batch);
    queue_of(batch).push(entry);
  }

  // Queues for all batches up to this one.
  void reach(uint32_t batch) {
    std::vector<ParkQueue> queues(std::bit_ceil(batch - finished_), ParkQueue(chunks_));
    for (uint32_t b = finished_ + 1; b <= furthest_; ++b)
      queues[b & (queues.size() - 1)].append(queue_of(b));
    batches_.swap(queues);
  }

  size_t pop_from(ParkQueue& queue, uint32_t batch, size_t count, std::vector<SlotIndex>& out) {
    ParkedSlot entry;
    size_t popped = 0;
    while (popped < count && queue.pop(&entry)) {
      --entries_;
      if (!is_current(entry, batch)) continue;
      expected_[entry.slot.value] = kTaken;
      out.push_back(entry.slot);
      ++popped;
    }
    return popped;
  }

  void make_room(size_t entries) {
    if (entries_ + entries <= entries_max_) return;
    entries_ = 0;
    const auto compact = [&](ParkQueue& queue, uint32_t batch) {
      queue.compact([&](ParkedSlot entry) { return is_current(entry, batch); });
      entries_ += queue.size();
    };
    for (ParkQueue& queue : levels_) compact(queue, 0);
    for (uint32_t b = finished_ + 1; b <= furthest_; ++b) compact(queue_of(b), b);
  }

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
  const bool looks_ahead_;
  ReservedMemory expected_memory_;
  uint32_t* expected_;     // by slot: the batch that will use its row; none if it is over
  uint32_t finished_ = 0;  // batches up to this one are over
  uint32_t furthest_ = 0;  // no row is expected by a batch after this one
  ParkChunkPool chunks_;
  std::array<ParkQueue, 8> levels_;  // of rows that no batch is expected to use
  std::vector<ParkQueue> batches_;   // a ring: of the others
  ReservedMemory ghosts_;            // one byte each
  int ghost_shift_ = 64;
  uint64_t entries_ = 0;  // of all queues
  uint64_t entries_max_ = 0;
  uint64_t aging_uses_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lookahead_policy(SlotDirectory& directory,
                                                      uint64_t total_rows) {
  return std::make_unique<LookaheadPolicy>(directory, total_rows, true);
}

std::unique_ptr<EvictionPolicy> make_aged_lfu_policy(SlotDirectory& directory,
                                                     uint64_t total_rows) {
  return std::make_unique<LookaheadPolicy>(directory, total_rows, false);
}

}  // namespace te
