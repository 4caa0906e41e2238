// Lookahead: Belady's rule for rows whose next use is known, learned odds for the others.
//
// The victim is a row of which no use is expected; where there is none, one whose next use lies
// furthest. Rows of no known use wait in a FIFO for each level of log2(uses, decayed), and the head
// that is worth least leaves (reuse_profile.h): plain aged LFU would take the lowest level, but how
// much a past use tells differs from stream to stream and with the window that is known ahead. On
// four streams of benchmarks/bench_cache.py that is 2 to 10% fewer reads than plain LFU with its
// best constants, on customer x sku between 7% fewer and 2% more, and nowhere over 0.6% more than
// LRU or S3-FIFO. A use is a plan that needs the row, however often. Every kAgingTurns x limit uses
// all counts are halved: those in the slots and of absent rows by one sweep, the queues by merging
// each level into the one an octave below. Rows that left keep their count, because one that
// returns should not start from nothing: for a while here (absent_counts.h); of a device, where the
// caller has the rows. After Belady (IBM Systems Journal 5(2), 1966) and TinyLFU (Einziger,
// Friedman, Manes, ACM ToS 2017), with a FIFO a level and a FIFO a batch in place of a heap. As
// "lfu" it does not look ahead. Not good for: loops slightly larger than the cache, where nothing
// is known ahead. Cost: one append a unique row and plan, and one more where a row that waits turns
// up in a later batch; eleven heads to look at for each call of pop_victims, and one for each
// victim. Memory: up to 28 bytes a slot, of which the queues take 17, and at most 200 KiB for the
// profile.
#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "cache/absent_counts.h"
#include "cache/eviction_policy.h"
#include "cache/park_queue.h"
#include "cache/reuse_profile.h"

namespace te {
namespace {

constexpr uint64_t kAgingTurns = 32;
constexpr uint64_t kAbsentPerSlot = 3;
constexpr size_t kSlotsAhead = 16;  // prefetched
constexpr size_t kSlotsPerTask = 1 << 13;
// So many entries are looked at for each that is parked, once queues are seven eighths full.
constexpr size_t kTidiedPerParked = 4;
// Of fewer parked slots a wake-up of the threads would cost more than it saves.
constexpr size_t kSlotsOfThreads = 1 << 15;
// In place of a batch: the slot has just become a victim, and other entries of it are stale. What
// was expected and has not come may leave several.
constexpr uint32_t kTaken = 0xffffffff;
// A bit of a slot's frequency while queues are compacted: an entry of it has been kept.
constexpr uint8_t kIsKept = 0x80;
static_assert(ReuseProfile::kFrequencyMax < kIsKept);
constexpr float kNothing = std::numeric_limits<float>::max();  // the worth of an empty queue

class LookaheadPolicy final : public EvictionPolicy {
 public:
  LookaheadPolicy(SlotDirectory& directory, uint64_t total_rows, PolicyOf tier, bool looks_ahead)
      : directory_(directory),
        total_rows_(total_rows),
        tier_(tier),
        looks_ahead_(looks_ahead),
        expected_memory_(uint64_t{std::max(directory.slots_max(), 1u)} * sizeof(uint32_t)),
        expected_(reinterpret_cast<uint32_t*>(expected_memory_.data())),
        levels_(ReuseProfile::kLevels, ParkQueue(chunks_)) {}

  std::string_view name() const override { return looks_ahead_ ? "lookahead" : "lfu"; }

  bool counts_uses() const override { return true; }
  uint32_t halvings() const override { return halvings_; }

  void set_limit(uint32_t limit) override {
    entries_max_ = 2 * uint64_t{limit} + ParkChunk::kEntries;
    aging_uses_ = kAgingTurns * std::max(limit, 1u);
    if (tier_ == PolicyOf::kDram) absent_.set_rows(std::min(kAbsentPerSlot * limit, total_rows_));
    profile_.set_limit(limit);
  }

  bool tidy(size_t candidates) override {
    for (; tidy_ < levels_.size() + batches_.size(); ++tidy_) {
      const size_t place = tidy_ - levels_.size();  // of the ring
      const auto next = static_cast<uint32_t>(finished_ + 1);
      const bool is_level = tidy_ < levels_.size();
      const uint32_t batch =
          is_level ? 0 : next + static_cast<uint32_t>((place - next) & (batches_.size() - 1));
      ParkQueue& queue = is_level ? levels_[tidy_] : batches_[place];
      entries_ -= queue.size();
      const bool is_done = queue.compact_some(
          candidates, [&](ParkedSlot entry) { return is_current(entry, batch); },
          [&](SlotIndex s) { prefetch(s); });
      entries_ += queue.size();
      if (!is_done) return false;
    }
    tidy_ = 0;
    return true;
  }

  bool touch_memory() override {
    const size_t end = directory_.ever_used() * sizeof(uint32_t);
    return expected_memory_.touch_some(kBytesTouchedAtOnce, end) &&
           absent_.touch_some(kBytesTouchedAtOnce);
  }

  bool give_back(uint32_t begin, uint32_t end) override {
    expected_memory_.discard(begin * sizeof(uint32_t), end * sizeof(uint32_t));
    return chunks_.give_memory_back();
  }

  void clear() override {
    for (ParkQueue& queue : levels_) queue.clear();
    for (ParkQueue& queue : batches_) queue.clear();
    entries_ = 0;
    now_ = 0;
    batch_ended_at_ = 0;
    profile_.forget_times();
  }

  // Of a device: what was expected of rows that left is forgotten by `evicted`.
  void admit(std::span<const SlotIndex> slots) override {
    if (tier_ == PolicyOf::kDevice) return;
    for (size_t i = 0; i < slots.size(); ++i) {
      prefetch_row(slots, i);
      directory_[slots[i]].frequency = absent_.take(directory_[slots[i]].row);
      expected_[slots[i].value] = 0;  // of a row that left unnoticed
    }
  }

  void evicted(std::span<const SlotIndex> slots) override {
    if (tier_ == PolicyOf::kDevice) {
      for (SlotIndex s : slots) expected_[s.value] = 0;
      return;
    }
    for (size_t i = 0; i < slots.size(); ++i) {
      prefetch_row(slots, i);
      const SlotIndex s = slots[i];
      absent_.put(directory_[s].row, directory_[s].frequency);
      expected_[s.value] = 0;
    }
  }

  void moved(std::span<const SlotIndex> from, std::span<const SlotIndex> to) override {
    make_room(to.size());
    for (size_t i = 0; i < to.size(); ++i) {
      expected_[to[i].value] = std::exchange(expected_[from[i].value], 0);
      push(to[i]);
    }
  }

  void park(std::span<const SlotIndex> slots) override {
    make_room(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      prefetch(slots[std::min(i + kSlotsAhead, slots.size() - 1)]);
      const SlotIndex s = slots[i];
      if (expected_[s.value] == kTaken) expected_[s.value] = 0;  // a victim that stays after all
      count_use(s);
      push(s);
    }
    count_uses(slots.size());
  }

  // What there is to do for each slot by threads, its entry into a queue in the order of the slots.
  void park_many(std::span<const SlotIndex> slots, ThreadPool& threads) override {
    const size_t tasks = (slots.size() + kSlotsPerTask - 1) / kSlotsPerTask;
    if (slots.size() < kSlotsOfThreads || threads.threads() == 1) return park(slots);
    make_room(slots.size());
    parked_.resize(slots.size());
    followed_.resize(std::max(followed_.size(), tasks));
    threads.run(tasks, [&](size_t task) {
      const size_t end = std::min((task + 1) * kSlotsPerTask, slots.size());
      prepare(slots, task * kSlotsPerTask, end, followed_[task]);
    });
    for (size_t task = 0; task < tasks; ++task) {
      for (SlotIndex s : followed_[task]) {
        profile_.use(directory_[s].row, directory_.mark(s),
                     ReuseProfile::level(directory_[s].frequency));
      }
    }
    for (const Parked& parked : parked_) {
      now_ = std::max(now_, parked.entry.mark);
      push(parked.entry, parked.batch, parked.level);
    }
    count_uses(slots.size());
  }

  void used(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) count_use(s);
    count_uses(slots.size());
  }

  void expect(std::span<const SlotIndex> slots, std::span<const uint32_t> batches) override {
    if (!looks_ahead_) return;
    make_room(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      prefetch(slots[std::min(i + kSlotsAhead, slots.size() - 1)]);
      const SlotIndex s = slots[i];
      const uint32_t before = std::exchange(expected_[s.value], batches[i]);
      last_told_ = std::max(last_told_, batches[i]);
      if (directory_[s].pins != 0) continue;
      // A parked slot of which nothing is expected any more has left its batch's queue, too.
      const bool was_expected = before > finished_ && before != kTaken;
      if (batches[i] > finished_ || was_expected) push(s);
    }
  }

  // Rows that a batch was expected to use and that still wait: what is known of them has not come.
  void finished(uint32_t batch) override {
    measure_batches(batch);
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

  uint32_t victim_next_use() override {
    for (ParkQueue& level : levels_) {
      if (head_of(level, 0) != nullptr) return kNoKnownUse;
    }
    for (; furthest_ > finished_; --furthest_) {
      if (head_of(queue_of(furthest_), furthest_) != nullptr) return furthest_;
    }
    return 0;
  }

  void pop_victims(size_t count, std::vector<SlotIndex>& out) override {
    count -= pop_least_worth(count, out);
    while (count > 0 && furthest_ > finished_) {
      count -= pop_from(queue_of(furthest_), furthest_, count, out);
      if (queue_of(furthest_).size() == 0) --furthest_;
    }
  }

 private:
  // A slot as it is about to be parked.
  struct Parked {
    ParkedSlot entry;
    uint32_t batch;
    uint32_t level;
  };

  // Slots [begin, end) of a list; those whose rows the profile follows are noted.
  void prepare(std::span<const SlotIndex> slots, size_t begin, size_t end,
               std::vector<SlotIndex>& followed) {
    followed.clear();
    for (size_t i = begin; i < end; ++i) {
      prefetch(slots[std::min(i + kSlotsAhead, end - 1)]);
      const SlotIndex s = slots[i];
      if (expected_[s.value] == kTaken) expected_[s.value] = 0;
      Slot& slot = directory_[s];
      if (slot.frequency < ReuseProfile::kFrequencyMax) ++slot.frequency;
      if (profile_.is_followed(slot.row)) followed.push_back(s);
      parked_[i] = {{s, directory_.mark(s)},
                    expected_[s.value],
                    static_cast<uint32_t>(ReuseProfile::level(slot.frequency))};
    }
  }

  void count_use(SlotIndex s) {
    Slot& slot = directory_[s];
    if (slot.frequency < ReuseProfile::kFrequencyMax) ++slot.frequency;
    now_ = std::max(now_, directory_.mark(s));
    profile_.use(slot.row, directory_.mark(s), ReuseProfile::level(slot.frequency));
  }
  void count_uses(size_t uses) {
    uses_ += uses;
    if (uses_ >= aging_uses_) age();
    profile_.advance(uses, now_, window_marks());
  }

  void prefetch(SlotIndex s) const {
    directory_.prefetch(s);
    directory_.prefetch_mark(s);
    __builtin_prefetch(&expected_[s.value], 1);
  }
  // Slots that follow the i-th, and what is known of their rows when absent.
  void prefetch_row(std::span<const SlotIndex> slots, size_t i) const {
    const SlotIndex far = slots[std::min(i + 2 * kSlotsAhead, slots.size() - 1)];
    directory_.prefetch(far);
    __builtin_prefetch(&expected_[far.value], 1);
    absent_.prefetch(directory_[slots[std::min(i + kSlotsAhead, slots.size() - 1)]].row);
  }
  void prefetch_from(const ParkQueue& queue) const {
    if (const ParkedSlot* later = queue.ahead()) prefetch(later->slot);
  }

  ParkQueue& queue_of(uint32_t batch) { return batches_[batch & (batches_.size() - 1)]; }

  // Whether an entry of the queue of this batch, or of a level (0), stands for its slot.
  bool is_current(ParkedSlot entry, uint32_t batch) const {
    const uint32_t expected = expected_[entry.slot.value];
    return ParkQueue::is_current(directory_, entry) &&
           (batch == 0 ? expected <= finished_ : expected == batch);
  }

  void push(SlotIndex s) {
    push({s, directory_.mark(s)}, expected_[s.value], ReuseProfile::level(directory_[s].frequency));
  }
  void push(ParkedSlot entry, uint32_t batch, size_t level) {
    ++entries_;
    if (batch <= finished_) return levels_[level].push(entry);
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
    const size_t before = out.size();
    pop_while(queue, batch, out, [&](ParkedSlot) { return out.size() < before + count; });
    return out.size() - before;
  }
  // Slots from the head of a queue, for as long as one that stands for its slot is wanted.
  template <class IsWanted>
  void pop_while(ParkQueue& queue, uint32_t batch, std::vector<SlotIndex>& out,
                 IsWanted is_wanted) {
    entries_ -= queue.size();
    const auto take = [&](ParkedSlot entry) {
      if (!is_current(entry, batch)) return true;
      if (!is_wanted(entry)) return false;
      expected_[entry.slot.value] = kTaken;
      out.push_back(entry.slot);
      return true;
    };
    queue.pop_while(take, [&](SlotIndex s) { prefetch(s); });
    entries_ += queue.size();
  }

  void make_room(size_t entries) {
    if (entries_ + entries > entries_max_ - entries_max_ / 8) tidy(kTidiedPerParked * entries);
    if (entries_ + entries <= entries_max_) return;
    entries_ = 0;
    const auto compact = [&](ParkQueue& queue, uint32_t batch) {
      // What was expected of a slot and has not come may have left several entries of it.
      queue.compact(
          [&](ParkedSlot entry) {
            uint8_t& frequency = directory_[entry.slot].frequency;
            if (!is_current(entry, batch) || (frequency & kIsKept) != 0) return false;
            frequency |= kIsKept;
            return true;
          },
          [&](SlotIndex s) { prefetch(s); });
      entries_ += queue.size();
    };
    for (ParkQueue& queue : levels_) compact(queue, 0);
    for (uint32_t b = finished_ + 1; b <= furthest_; ++b) compact(queue_of(b), b);
    for (uint32_t i = 0; i < directory_.ever_used(); ++i)
      directory_[SlotIndex(i)].frequency &= static_cast<uint8_t>(~kIsKept);
  }

  // Up to `count` rows of no known use; for the log in the order of their last use: so rows that
  // were used together come to lie together there.
  size_t pop_least_worth(size_t count, std::vector<SlotIndex>& out) {
    std::array<float, ReuseProfile::kLevels> worth;
    for (size_t l = 0; l < worth.size(); ++l) worth[l] = worth_of_head(l);
    const size_t before = out.size();
    while (out.size() < before + count) {
      const auto least = std::min_element(worth.begin(), worth.end());
      if (*least == kNothing) break;
      const auto l = static_cast<size_t>(least - worth.begin());
      pop_alike(levels_[l], before + count, out);
      *least = worth_of_head(l);
    }
    if (tier_ == PolicyOf::kDram) {
      std::sort(out.begin() + static_cast<std::ptrdiff_t>(before), out.end(),
                [&](SlotIndex a, SlotIndex b) { return directory_.mark(a) < directory_.mark(b); });
    }
    return out.size() - before;
  }

  // The head of a level's queue, which stands for its slot, and those behind it that are worth as
  // much, until `out` has so many: that level stays the least.
  void pop_alike(ParkQueue& queue, size_t size, std::vector<SlotIndex>& out) {
    const uint32_t first = queue.front()->mark;
    const uint32_t alike = now_ - profile_.same_worth_from(now_ - std::min(now_, first));
    const uint32_t last = std::max(first, alike);  // marks may be ahead of now_
    pop_while(queue, 0, out, [&](ParkedSlot entry) {
      return out.size() < size && entry.mark >= first && entry.mark <= last;
    });
  }

  float worth_of_head(size_t level) {
    const ParkedSlot* head = head_of(levels_[level], 0);
    return head == nullptr ? kNothing : profile_.worth(level, now_ - std::min(now_, head->mark));
  }

  // The first entry that stands for its slot; those before it are dropped.
  const ParkedSlot* head_of(ParkQueue& queue, uint32_t batch) {
    while (const ParkedSlot* head = queue.front()) {
      if (is_current(*head, batch)) return head;
      ParkedSlot entry;
      queue.pop(&entry);
      prefetch_from(queue);
      --entries_;
    }
    return nullptr;
  }

  // How far ahead is known.
  uint32_t window_marks() const {
    const double batches = last_told_ > finished_ ? last_told_ - finished_ : 0;
    return static_cast<uint32_t>(std::min(batches * marks_a_batch_, 4e9));
  }

  void measure_batches(uint32_t batch) {
    if (batch <= finished_) return;
    const double marks = static_cast<double>(now_ - batch_ended_at_) / (batch - finished_);
    marks_a_batch_ += (marks - marks_a_batch_) / (finished_ == 0 ? 1 : 16);
    batch_ended_at_ = now_;
  }

  void age() {
    uses_ = 0;
    ++halvings_;
    for (uint32_t i = 0; i < directory_.ever_used(); ++i) {
      directory_[SlotIndex(i)].frequency /= 2;
    }
    absent_.halve();
    profile_.halve();
    for (size_t l = 1; l < levels_.size(); ++l)
      levels_[l - std::min(l, ReuseProfile::kLevelsPerHalving)].merge(levels_[l]);
  }

  SlotDirectory& directory_;
  const uint64_t total_rows_;
  const PolicyOf tier_;
  const bool looks_ahead_;
  ReservedMemory expected_memory_;
  uint32_t* expected_;     // by slot: the batch that will use its row; none if it is over
  uint32_t finished_ = 0;  // batches up to this one are over
  uint32_t furthest_ = 0;  // no row is expected by a batch after this one
  ParkChunkPool chunks_;
  std::vector<ParkQueue> levels_;   // of rows that no batch is expected to use
  std::vector<ParkQueue> batches_;  // a ring: of the others
  AbsentCounts absent_;
  ReuseProfile profile_;
  uint32_t now_ = 0;             // the highest mark that was parked
  uint32_t last_told_ = 0;       // the highest batch that a row was expected in
  uint32_t batch_ended_at_ = 0;  // mark
  double marks_a_batch_ = 0;     // average
  size_t tidy_ = 0;              // the queue that is next: first those by level
  uint64_t entries_ = 0;         // of all queues
  uint64_t entries_max_ = 0;
  uint64_t aging_uses_ = 0;
  uint64_t uses_ = 0;
  uint32_t halvings_ = 0;
  // Scratch of one call.
  std::vector<Parked> parked_;
  std::vector<std::vector<SlotIndex>> followed_;  // by task
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lookahead_policy(SlotDirectory& directory, uint64_t total_rows,
                                                      PolicyOf tier) {
  return std::make_unique<LookaheadPolicy>(directory, total_rows, tier, true);
}

std::unique_ptr<EvictionPolicy> make_lfu_policy(SlotDirectory& directory, uint64_t total_rows,
                                                PolicyOf tier) {
  return std::make_unique<LookaheadPolicy>(directory, total_rows, tier, false);
}

}  // namespace te
