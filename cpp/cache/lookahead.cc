// Lookahead: Belady's rule for rows whose next use is known, aged LFU for the others.
//
// The victim is a row of which no use is expected, of the lowest level of log2(uses, decayed), the
// oldest of its level; where there is none, one whose next use lies furthest. A use is a plan that
// needs the row, however often. Every kAgingTurns x limit uses all counts are halved: the counts in
// the slots and of absent rows by one sweep, the queues by joining each level to the one below.
// Counts are in 1/kUse of a use, so that a use of the last turns counts for more than one before;
// they saturate at eight uses, because a row that was hot for long must not outlive by long the
// rows that are hot now. Rows that left keep the level of their count in a table of half a byte
// each (by row if all rows fit, else hashed, the newest wins), because a row that returns should
// not start from nothing: with four such rows a slot in place of 24 there were up to 23% more
// misses. After Belady (IBM Systems Journal 5(2), 1966) and TinyLFU (Einziger, Friedman, Manes, ACM
// ToS 2017), with a FIFO a level and a FIFO a batch in place of a heap. As "lfu" it does not look
// ahead. The constants are the best found over the streams of benchmarks/bench_cache.py: slower
// aging favours popularities that stay (Zipf), faster aging those that move (a real trace). Not
// good for: loops slightly larger than the cache, where nothing is known ahead. Cost: one append a
// unique row and plan, and one more where a row that waits turns up in a later batch. Memory: up to
// 28 bytes a slot, of which the queues take 12 and the absent rows 12.
#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "base/aligned_buffer.h"
#include "cache/eviction_policy.h"
#include "cache/park_queue.h"

namespace te {
namespace {

constexpr uint64_t kAgingTurns = 10;
constexpr uint64_t kAbsentPerSlot = 24;
constexpr uint64_t kAbsentMax = (uint64_t{1} << 32) - 1;
constexpr size_t kSlotsAhead = 16;  // prefetched
constexpr unsigned kUse = 32;
constexpr unsigned kFrequencyMax = 255;

// Half a byte for each of many rows that are not resident: the width in bits of its count.
class AbsentCounts {
 public:
  // Forgets all counts if that changes the table's size.
  void set_rows(uint64_t rows, uint64_t total_rows) {
    is_by_row_ = total_rows <= rows;
    places_ = std::max(std::min(rows, total_rows), uint64_t{1});
    const uint64_t bytes = (places_ / kPlacesPerWord + 1) * sizeof(uint64_t);
    if (bytes != memory_.bytes()) memory_ = ReservedMemory(bytes);
  }

  // The middle of the counts of that width.
  uint8_t get(RowId row) const {
    const uint64_t place = place_of(row);
    const uint64_t width = words()[place / kPlacesPerWord] >> shift_of(place) & 15;
    return static_cast<uint8_t>(width < 2 ? width : uint64_t{3} << width >> 2);
  }

  void set(RowId row, uint8_t count) {
    const uint64_t place = place_of(row);
    uint64_t& word = words()[place / kPlacesPerWord];
    const uint64_t width = static_cast<uint64_t>(std::bit_width(count));
    word = (word & ~(uint64_t{15} << shift_of(place))) | width << shift_of(place);
  }

  void halve() {
    for (uint64_t i = 0; i <= places_ / kPlacesPerWord; ++i) {
      const uint64_t word = words()[i];
      if (word == 0) continue;  // a page that was never written stays unwritten
      words()[i] = word - ((word | word >> 1 | word >> 2 | word >> 3) & 0x1111111111111111ull);
    }
  }

 private:
  static constexpr uint64_t kPlacesPerWord = 16;

  uint64_t* words() const { return reinterpret_cast<uint64_t*>(memory_.data()); }
  static uint64_t shift_of(uint64_t place) { return place % kPlacesPerWord * 4; }
  uint64_t place_of(RowId row) const {
    if (is_by_row_) return row.value % places_;
    return (row.value * 0x9E3779B97F4A7C15ull >> 32) * places_ >> 32;
  }

  ReservedMemory memory_;
  uint64_t places_ = 1;  // fewer than 2^32 if rows are hashed
  bool is_by_row_ = false;
};
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
    absent_.set_rows(std::min(kAbsentPerSlot * limit, kAbsentMax), total_rows_);
  }

  void clear() override {
    for (ParkQueue& queue : levels_) queue.clear();
    for (ParkQueue& queue : batches_) queue.clear();
    entries_ = 0;
  }

  void admit(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) directory_[s].frequency = absent_.get(directory_[s].row);
  }

  void evicted(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) {
      absent_.set(directory_[s].row, directory_[s].frequency);
      expected_[s.value] = 0;
    }
  }

  void park(std::span<const SlotIndex> slots) override {
    make_room(slots.size());
    for (SlotIndex s : slots) {
      Slot& slot = directory_[s];
      slot.frequency = static_cast<uint8_t>(std::min(slot.frequency + kUse, kFrequencyMax));
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
      const SlotIndex ahead = slots[std::min(i + kSlotsAhead, slots.size() - 1)];
      directory_.prefetch(ahead);
      directory_.prefetch_mark(ahead);
      __builtin_prefetch(&expected_[ahead.value], 1);
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

  void age() {
    uses_ = 0;
    for (uint32_t i = 0; i < directory_.ever_used(); ++i) {
      directory_[SlotIndex(i)].frequency /= 2;
    }
    absent_.halve();
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
  AbsentCounts absent_;
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
