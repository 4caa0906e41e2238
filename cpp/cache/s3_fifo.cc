// S3-FIFO: new rows wait in a small queue, and only those used again there come into the main one.
//
// The small queue is to hold a tenth of the slots. Its head leaves the cache, unless it was used
// more than once since it came: then it moves to the main queue, whose head stays for another round
// for each of its last uses, up to three. Rows that left from the small queue are remembered for as
// long as the main queue is; one that returns in that time goes straight into the main queue. After
// Yang, Zhang, Qiu, Yue and Vinayak, "FIFO queues are all you need for cache eviction" (SOSP 2023).
// What differs, as slots are pinned by batches: a use is a plan that needs the row and counts when
// the pin ends, and a head that is pinned goes to the end of its queue then. Not good for: rows
// whose second use always comes just after they left. Cost: a use writes one byte; one append a row
// that enters. Memory: 13 bytes a slot, and nine for rows that left.
#include <algorithm>
#include <array>
#include <limits>

#include "base/aligned_buffer.h"
#include "cache/eviction_policy.h"
#include "cache/park_queue.h"

namespace te {
namespace {

// The rows that left last, as many as `set_rows` says, less those few that share a bucket with
// eight newer ones. Rows are told apart by 16 bits and their bucket. Changes of less than an eighth
// forget none.
class DepartedRows {
 public:
  void set_rows(uint32_t rows) {
    rows_ = rows;
    const uint64_t wanted = rows / kRowsPerBucket + 1;
    if (wanted <= buckets_ + buckets_ / 8 && buckets_ <= wanted + wanted / 8) return;
    buckets_ = wanted;
    memory_ = ReservedMemory(buckets_ * sizeof(Bucket));
    now_ = 0;
  }

  bool touch_some(size_t bytes) { return memory_.touch_some(bytes, memory_.bytes()); }

  void insert(RowId row) {
    Bucket& bucket = bucket_of(row);
    size_t oldest = 0;
    for (size_t i = 1; i < bucket.left.size(); ++i) {
      if (age(bucket.left[i]) > age(bucket.left[oldest])) oldest = i;
    }
    bucket.tags[oldest] = tag(row);
    bucket.left[oldest] = ++now_;
  }

  // Whether the row was there; it is not any more.
  bool erase(RowId row) {
    Bucket& bucket = bucket_of(row);
    for (size_t i = 0; i < bucket.left.size(); ++i) {
      if (bucket.left[i] == 0 || bucket.tags[i] != tag(row) || age(bucket.left[i]) >= rows_)
        continue;
      bucket.left[i] = 0;
      return true;
    }
    return false;
  }

 private:
  static constexpr uint32_t kRowsPerBucket = 5;  // of eight places, so that few buckets are full
  struct Bucket {
    std::array<uint32_t, 8> left;  // when; 0: a free place
    std::array<uint16_t, 8> tags;
  };

  static uint64_t hash(RowId row) { return (row.value + 1) * 0x9E3779B97F4A7C15ull; }
  static uint16_t tag(RowId row) { return static_cast<uint16_t>(hash(row) >> 16); }
  uint32_t age(uint32_t left) const {
    return left == 0 ? std::numeric_limits<uint32_t>::max() : now_ - left;
  }
  Bucket& bucket_of(RowId row) const {
    return reinterpret_cast<Bucket*>(memory_.data())[(hash(row) >> 32) * buckets_ >> 32];
  }

  ReservedMemory memory_;
  uint64_t buckets_ = 0;
  uint32_t rows_ = 0;
  uint32_t now_ = 0;  // rows that have left so far
};

// Slot::frequency: uses since the row came or was moved on, and where it belongs.
constexpr uint8_t kUses = 3;
constexpr uint8_t kInMain = 4;
constexpr uint8_t kIsNew = 8;  // the use that brought it has not ended
constexpr uint8_t kUsesToStay = 2;

class S3FifoPolicy final : public EvictionPolicy {
 public:
  explicit S3FifoPolicy(SlotDirectory& directory)
      : directory_(directory),
        queued_memory_(uint64_t{std::max(directory.slots_max(), 1u)} * sizeof(uint32_t)),
        queued_(reinterpret_cast<uint32_t*>(queued_memory_.data())),
        small_(chunks_),
        main_(chunks_) {}

  std::string_view name() const override { return "s3fifo"; }

  void set_limit(uint32_t limit) override {
    entries_max_ = uint64_t{limit} + limit / 8 + ParkChunk::kEntries;
    small_rows_ = std::max(limit / 10, 1u);
    departed_.set_rows(limit - limit / 10);
  }

  bool tidy(size_t candidates) override {
    const auto keep = [&](ParkedSlot entry) {
      const bool keeps = is_current(entry);
      if (!keeps) forget(entry);
      return keeps;
    };
    if (!is_small_tidy_) is_small_tidy_ = small_.compact_some(candidates, keep);
    if (!is_small_tidy_ || !main_.compact_some(candidates, keep)) return false;
    is_small_tidy_ = false;
    return true;
  }

  bool touch_memory() override {
    const size_t end = directory_.ever_used() * sizeof(uint32_t);
    return queued_memory_.touch_some(kBytesTouchedAtOnce, end) &&
           departed_.touch_some(kBytesTouchedAtOnce);
  }

  bool give_back(uint32_t begin, uint32_t end) override {
    queued_memory_.discard(begin * sizeof(uint32_t), end * sizeof(uint32_t));
    return chunks_.give_memory_back();
  }

  void clear() override {
    for (ParkQueue* queue : {&small_, &main_}) {
      ParkedSlot entry;
      while (queue->pop(&entry)) queued_[entry.slot.value] = 0;
    }
  }

  void admit(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) {
      Slot& slot = directory_[s];
      slot.frequency = departed_.erase(slot.row) ? kIsNew | kInMain : kIsNew;
    }
  }

  void evicted(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) {
      if ((directory_[s].frequency & kInMain) == 0) departed_.insert(directory_[s].row);
    }
  }

  void park(std::span<const SlotIndex> slots) override {
    for (SlotIndex s : slots) {
      uint8_t& state = directory_[s].frequency;
      if ((state & kIsNew) != 0) {
        state &= ~kIsNew;
      } else if ((state & kUses) < kUses) {
        ++state;
      }
      const uint32_t tag = tag_of(directory_[s].row);
      if (queued_[s.value] == tag) continue;
      if (small_.size() + main_.size() >= entries_max_) drop_stale();
      queued_[s.value] = tag;
      ((state & kInMain) != 0 ? main_ : small_).push({s, tag});
    }
  }

  void pop_victims(size_t count, std::vector<SlotIndex>& out) override {
    while (count > 0) {
      const bool from_small = small_.size() >= small_rows_ || main_.size() == 0;
      ParkedSlot entry;
      if (!(from_small ? small_ : main_).pop(&entry)) return;
      if (!is_current(entry)) {
        forget(entry);
        continue;
      }
      Slot& slot = directory_[entry.slot];
      const uint8_t uses = slot.frequency & kUses;
      if (slot.pins != 0) {
        queued_[entry.slot.value] = 0;  // queued when it is parked
      } else if (from_small && uses >= kUsesToStay) {
        slot.frequency = kInMain;
        main_.push(entry);
      } else if (!from_small && uses > 0) {
        --slot.frequency;
        main_.push(entry);
      } else {
        queued_[entry.slot.value] = 0;
        out.push_back(entry.slot);
        --count;
      }
    }
  }

 private:
  // Tells the row of an entry from another that has come into its slot; never 0.
  static uint32_t tag_of(RowId row) {
    return std::max(static_cast<uint32_t>(row.value + 1), uint32_t{1});
  }
  bool is_current(ParkedSlot entry) const {
    if (entry.slot.value >= directory_.ever_used()) return false;
    const Slot& slot = directory_[entry.slot];
    return queued_[entry.slot.value] == entry.mark && !slot.row.is_none() &&
           tag_of(slot.row) == entry.mark;
  }

  // Its row has left the slot without being a victim: should it come back, it has no entry.
  void forget(ParkedSlot entry) {
    if (queued_[entry.slot.value] == entry.mark) queued_[entry.slot.value] = 0;
  }

  // Rows that the caller moved to other slots leave entries behind.
  void drop_stale() {
    for (ParkQueue* queue : {&small_, &main_}) {
      ParkedSlot entry;
      for (uint64_t left = queue->size(); left > 0 && queue->pop(&entry); --left) {
        is_current(entry) ? queue->push(entry) : forget(entry);
      }
    }
  }

  SlotDirectory& directory_;
  ReservedMemory queued_memory_;
  uint32_t* queued_;  // by slot: the tag of its entry; 0, or another row's: it has none
  ParkChunkPool chunks_;
  ParkQueue small_;
  ParkQueue main_;
  DepartedRows departed_;
  uint64_t entries_max_ = 0;
  uint64_t small_rows_ = 1;
  bool is_small_tidy_ = false;  // main_ is next
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_s3_fifo_policy(SlotDirectory& directory) {
  return std::make_unique<S3FifoPolicy>(directory);
}

}  // namespace te
