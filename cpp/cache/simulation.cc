#include "cache/simulation.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "cache/eviction_policy.h"
#include "cache/lookahead_window.h"
#include "cache/slot_directory.h"

namespace te {
namespace {

constexpr size_t kRowsAhead = 16;  // prefetched

// Adds the time until it ends to a counter.
class Timer {
 public:
  explicit Timer(uint64_t& ns) : ns_(ns), start_(std::chrono::steady_clock::now()) {}
  ~Timer() {
    const std::chrono::nanoseconds taken = std::chrono::steady_clock::now() - start_;
    ns_ += static_cast<uint64_t>(taken.count());
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  uint64_t& ns_;
  std::chrono::steady_clock::time_point start_;
};

class Simulation {
 public:
  Simulation(const CacheSetup& setup, std::span<const int64_t> ids)
      : setup_(setup),
        ids_(ids),
        directory_(setup.capacity),
        policy_(make_eviction_policy(setup.policy, directory_, setup.rows)),
        slot_of_(setup.rows),
        seen_in_(setup.rows) {}

  Result<CacheCounts> run();

 private:
  std::span<const int64_t> batch_at(size_t begin) const {
    return ids_.subspan(begin, std::min(setup_.batch_lookups, ids_.size() - begin));
  }
  void look_ahead(size_t begin);
  void find(std::span<const int64_t> batch);
  void place();
  void end_batch();

  const CacheSetup setup_;
  const std::span<const int64_t> ids_;
  SlotDirectory directory_;
  const std::unique_ptr<EvictionPolicy> policy_;
  LookaheadWindow window_;
  CacheCounts counts_;
  uint64_t policy_ns_ = 0;
  uint64_t window_ns_ = 0;
  std::vector<SlotIndex> slot_of_;  // by row; none: it is not resident
  std::vector<uint32_t> seen_in_;   // by row: the last batch with it; 0: none so far
  size_t pushed_ = 0;               // lookups that are, or were, in the window
  uint32_t batch_ = 0;              // number of the one in flight
  uint32_t mark_ = 1;               // of its first row
  // The distinct rows of the batch: their first positions, and slots once they have them.
  std::vector<uint32_t> positions_;
  std::vector<SlotIndex> slots_;
  std::vector<std::pair<size_t, RowId>> missing_;  // index of these two
  // Scratch of one call.
  std::vector<RowId> rows_;
  std::vector<LookaheadWindow::Use> first_uses_;
  std::vector<SlotIndex> told_;
  std::vector<uint32_t> next_;
};

// Fills the window, and tells the policy of residents that turn up in it.
void Simulation::look_ahead(size_t begin) {
  if (setup_.window_lookups == 0) return;
  const size_t end = begin + batch_at(begin).size() + setup_.window_lookups;
  while (pushed_ < ids_.size() && pushed_ + batch_at(pushed_).size() <= end) {
    rows_.clear();
    for (int64_t id : batch_at(pushed_)) rows_.push_back(RowId(static_cast<uint64_t>(id)));
    pushed_ += rows_.size();
    {
      const Timer timer(window_ns_);
      first_uses_.clear();
      const uint32_t batch = window_.push(rows_, first_uses_);
      told_.clear();
      for (size_t i = 0; i < first_uses_.size(); ++i) {
        const size_t ahead = std::min(i + kRowsAhead, first_uses_.size() - 1);
        __builtin_prefetch(&slot_of_[window_.row_of(first_uses_[ahead]).value]);
        const SlotIndex s = slot_of_[window_.row_of(first_uses_[i]).value];
        if (!s.is_none()) told_.push_back(s);
      }
      next_.assign(told_.size(), batch);
    }
    const Timer timer(policy_ns_);
    policy_->expect(told_, next_);
  }
  counts_.window_bytes = std::max(counts_.window_bytes, window_.memory_bytes());
}

// The distinct rows of the batch; those that have slots are pinned.
void Simulation::find(std::span<const int64_t> batch) {
  ++batch_;
  positions_.clear();
  slots_.clear();
  missing_.clear();
  for (uint32_t i = 0; i < batch.size(); ++i) {
    const RowId row(static_cast<uint64_t>(batch[i]));
    uint32_t& seen_in = seen_in_[row.value];
    if (seen_in == batch_) continue;
    const SlotIndex s = slot_of_[row.value];
    if (s.is_none()) {
      ++(seen_in == 0 ? counts_.first_touches : counts_.misses);
      missing_.push_back({slots_.size(), row});
    } else {
      directory_.mark(s) = mark_ + static_cast<uint32_t>(slots_.size());
      directory_.pin(directory_[s]);
    }
    seen_in = batch_;
    positions_.push_back(i);
    slots_.push_back(s);
  }
  counts_.lookups += batch.size();
  counts_.unique_rows += slots_.size();
}

// Slots for the rows that have none, if need be those of victims.
void Simulation::place() {
  if (missing_.size() > directory_.free_slots()) {
    told_.clear();
    const size_t needed = missing_.size() - directory_.free_slots();
    {
      const Timer timer(policy_ns_);
      policy_->pop_victims(needed, told_);
      policy_->evicted(told_);
    }
    TE_CHECK(told_.size() == needed);
    for (SlotIndex s : told_) {
      slot_of_[directory_[s].row.value] = SlotIndex::none();
      directory_.release(s);
    }
  }
  told_.clear();
  for (const auto& [index, row] : missing_) {
    const SlotIndex s = directory_.take(row, BlockAddress::none());
    slot_of_[row.value] = slots_[index] = s;
    directory_.mark(s) = mark_ + static_cast<uint32_t>(index);
    directory_.pin(directory_[s]);
    told_.push_back(s);
  }
  const Timer timer(policy_ns_);
  policy_->admit(told_);
}

void Simulation::end_batch() {
  uint32_t over = 0;  // batches that have left the window
  if (setup_.window_lookups != 0) {
    {
      const Timer timer(window_ns_);
      next_.clear();
      for (uint32_t position : positions_) next_.push_back(window_.next_use(batch_, position));
      over = window_.finish(batch_);
    }
    const Timer timer(policy_ns_);
    policy_->expect(slots_, next_);
  }
  for (SlotIndex s : slots_) directory_.unpin(directory_[s]);
  mark_ += static_cast<uint32_t>(slots_.size());
  const Timer timer(policy_ns_);
  policy_->park(slots_);
  if (over != 0) policy_->finished(over);
}

Result<CacheCounts> Simulation::run() {
  if (policy_ == nullptr)
    return Status(StatusCode::kInvalidArgument, "no policy '" + std::string(setup_.policy) + "'");
  if (setup_.batch_lookups == 0)
    return Status(StatusCode::kInvalidArgument, "a batch has at least one lookup");
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (static_cast<uint64_t>(ids_[i]) < setup_.rows) continue;
    return Status(StatusCode::kOutOfRange, "id " + std::to_string(ids_[i]) + " at position " +
                                               std::to_string(i) + ": there are " +
                                               std::to_string(setup_.rows) + " rows");
  }
  directory_.set_limit(setup_.capacity);
  policy_->set_limit(setup_.capacity);
  for (size_t begin = 0; begin < ids_.size(); begin += setup_.batch_lookups) {
    look_ahead(begin);
    find(batch_at(begin));
    if (slots_.size() > setup_.capacity)
      return Status(StatusCode::kBudgetExceeded, "a batch has " + std::to_string(slots_.size()) +
                                                     " rows, the cache " +
                                                     std::to_string(setup_.capacity) + " slots");
    place();
    end_batch();
    if (begin < setup_.warm_up_lookups) {
      counts_ = CacheCounts();
      policy_ns_ = window_ns_ = 0;
    }
    if (setup_.window_lookups != 0 && pushed_ == ids_.size()) continue;
    counts_.policy_ns = policy_ns_;
    counts_.window_ns = window_ns_;
    counts_.timed_lookups = counts_.lookups;
  }
  return counts_;
}

}  // namespace

Result<CacheCounts> simulate_cache(const CacheSetup& setup, std::span<const int64_t> ids) {
  return Simulation(setup, ids).run();
}

}  // namespace te
