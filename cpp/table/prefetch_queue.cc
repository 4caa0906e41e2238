#include "table/prefetch_queue.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace te {
namespace {

// Small batches are fetched together, so that their reads fill the drive's queue: up to so many
// rows.
constexpr size_t kFetchRows = 4096;

int64_t value_at(const void* values, bool are_64, size_t i) {
  return are_64 ? static_cast<const int64_t*>(values)[i] : static_cast<const int32_t*>(values)[i];
}

// Of all queues: a ticket stays behind those of a queue that takes this one's place.
uint64_t next_ticket() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

size_t bytes_of(size_t count, bool are_64) { return count * (are_64 ? 8 : 4); }

// The first position where they differ, or the length of the shorter.
size_t first_difference(const void* a, bool a_64, size_t a_count, const void* b, bool b_64,
                        size_t b_count) {
  const size_t n = std::min(a_count, b_count);
  if (n == 0) return 0;
  if (a_64 == b_64 && std::memcmp(a, b, bytes_of(n, a_64)) == 0) return n;
  for (size_t i = 0; i < n; ++i) {
    if (value_at(a, a_64, i) != value_at(b, b_64, i)) return i;
  }
  return n;
}

bool same_bags(const FeatureInput& a, const FeatureInput& b) {
  if (a.bags != b.bags || a.bag_size != b.bag_size || a.padding_id != b.padding_id) return false;
  if ((a.offsets == nullptr) != (b.offsets == nullptr)) return false;
  if (a.offsets == nullptr) return true;
  return a.include_last_offset == b.include_last_offset && a.offsets_count == b.offsets_count &&
         first_difference(a.offsets, a.offsets_are_64, a.offsets_count, b.offsets, b.offsets_are_64,
                          b.offsets_count) == a.offsets_count;
}

bool same_ids(const FeatureInput& a, const FeatureInput& b) {
  return a.ids_count == b.ids_count && first_difference(a.ids, a.ids_are_64, a.ids_count, b.ids,
                                                        b.ids_are_64, b.ids_count) == a.ids_count;
}

bool same_batch(std::span<const FeatureInput> a, std::span<const FeatureInput> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const FeatureInput& x, const FeatureInput& y) {
                      return x.table == y.table && same_bags(x, y) && same_ids(x, y);
                    });
}

bool share_a_table(std::span<const FeatureInput> a, std::span<const FeatureInput> b) {
  return std::any_of(a.begin(), a.end(), [&](const FeatureInput& x) {
    return std::any_of(b.begin(), b.end(),
                       [&](const FeatureInput& y) { return x.table == y.table; });
  });
}

}  // namespace

PrefetchQueue::PrefetchQueue(std::mutex& mutex, Tiers& tiers, Planner& planner, Mover& mover,
                             PlanPool& plans, PlanAhead plan_ahead)
    : mutex_(mutex),
      tiers_(tiers),
      planner_(planner),
      mover_(mover),
      plans_(plans),
      plan_ahead_(std::move(plan_ahead)) {}

PrefetchQueue::~PrefetchQueue() { stop(); }

std::unique_ptr<PrefetchQueue::Batch> PrefetchQueue::copy(std::span<const FeatureInput> features,
                                                          bool will_update) {
  auto batch = std::make_unique<Batch>();
  batch->will_update = will_update;
  batch->features.assign(features.begin(), features.end());
  // Eight bytes a value, so that each array lies where its type wants it; one more, so that none of
  // them is null.
  size_t bytes = 1;
  for (const FeatureInput& f : features) {
    bytes += (f.ids_count + f.offsets_count) * 8;
    batch->lookups += f.ids_count;
  }
  batch->memory.resize(bytes);
  std::byte* to = batch->memory.data();
  const auto keep = [&](const void*& values, size_t count, bool are_64) {
    if (count > 0) std::memcpy(to, values, bytes_of(count, are_64));
    values = to;
    to += count * 8;
  };
  for (FeatureInput& f : batch->features) {
    keep(f.ids, f.ids_count, f.ids_are_64);
    if (f.offsets != nullptr) keep(f.offsets, f.offsets_count, f.offsets_are_64);
  }
  return batch;
}

uint64_t PrefetchQueue::push(std::unique_ptr<Batch> batch) {
  stopped_ = false;
  const uint64_t ticket = next_ticket();
  batch->ticket = ticket;
  batches_.push_back(std::move(batch));
  if (!plan_thread_.joinable()) {
    owner_ = getpid();
    plan_thread_ = std::thread([this] { plan_batches(); });
    fetch_thread_ = std::thread([this] { fetch_batches(); });
  }
  plan_wake_.notify_one();
  return ticket;
}

void PrefetchQueue::want(uint64_t ticket) {
  for (const auto& batch : batches_) {
    if (batch->ticket <= ticket) batch->is_wanted = true;
  }
  plan_wake_.notify_one();
}

std::unique_ptr<PrefetchQueue::Batch> PrefetchQueue::remove(const Batch& batch) {
  const auto found = std::find_if(batches_.begin(), batches_.end(),
                                  [&](const auto& b) { return b.get() == &batch; });
  TE_CHECK(found != batches_.end());
  std::unique_ptr<Batch> removed = std::move(*found);
  batches_.erase(found);
  return removed;
}

Status PrefetchQueue::mismatch(std::span<const FeatureInput> features, const Batch& due) const {
  std::string what = "it is of other tables";
  for (size_t f = 0; f < std::min(features.size(), due.features.size()); ++f) {
    const FeatureInput& now = features[f];
    const FeatureInput& then = due.features[f];
    if (now.table != then.table) break;
    if (same_bags(now, then) && same_ids(now, then)) continue;
    const std::string name = "table '" + tiers_.table(now.table).config.name + "': ";
    const size_t at = first_difference(now.ids, now.ids_are_64, now.ids_count, then.ids,
                                       then.ids_are_64, then.ids_count);
    if (at < std::min(now.ids_count, then.ids_count)) {
      what = name + "id " + std::to_string(value_at(now.ids, now.ids_are_64, at)) +
             " at position " + std::to_string(at) + ", prefetched was " +
             std::to_string(value_at(then.ids, then.ids_are_64, at));
    } else if (now.ids_count != then.ids_count) {
      what = name + std::to_string(now.ids_count) + " ids, prefetched were " +
             std::to_string(then.ids_count);
    } else {
      what = name + "the same ids in other bags";
    }
    break;
  }
  return Status(StatusCode::kInvalidArgument,
                "this is not the batch that was prefetched next (" + what + "); " +
                    std::to_string(batches_.size()) +
                    " prefetched batches wait for their forward: look batches up in the order of "
                    "their prefetch, or drop them with cancel_prefetch(), or look others up within "
                    "not_prefetched()");
}

Result<PrefetchQueue::Taken> PrefetchQueue::take(std::span<const FeatureInput> features,
                                                 bool will_update, bool must_match, Lock& lock) {
  const auto wants = [&](const std::unique_ptr<Batch>& b) {
    return !b->is_cancelled && share_a_table(features, b->features);
  };
  const auto found = std::find_if(batches_.begin(), batches_.end(), wants);
  if (found == batches_.end()) return Taken{};
  Batch& batch = **found;
  if (!same_batch(features, batch.features)) {
    if (failed_ != nullptr && same_batch(features, failed_->features)) return Taken{};
    const bool comes_later = std::any_of(found + 1, batches_.end(), [&](const auto& b) {
      return wants(b) && same_batch(features, b->features);
    });
    if (must_match || comes_later) return mismatch(features, batch);
    return Taken{};
  }
  if (failed_ != nullptr && !same_batch(features, failed_->features)) failed_.reset();
  ++stats_.batches;
  if (batch.state == Batch::State::kReady) ++stats_.batches_ready;
  if (batch.state == Batch::State::kPlanned) {
    const auto start = std::chrono::steady_clock::now();
    changed_.wait(lock, [&] { return batch.state != Batch::State::kPlanned; });
    stats_.stall_ns += static_cast<uint64_t>((std::chrono::steady_clock::now() - start).count());
  }
  std::unique_ptr<Batch> taken = remove(batch);
  if (taken->state == Batch::State::kQueued) {
    ++stats_.batches_missed;
    return Taken{nullptr, std::move(taken)};
  }
  bool serves = taken->plan->state == Plan::State::kReady;  // else it lost its slots
  serves &= !will_update || taken->plan->will_update;
  for (size_t f = 0; f < features.size() && will_update; ++f)
    serves &= !features[f].is_weighted || taken->plan->features[f].is_weighted;
  if (serves) return Taken{taken->plan, nullptr};
  end(*taken);
  taken->plan = nullptr;
  taken->window_batch = 0;
  return Taken{nullptr, std::move(taken)};
}

// The plan of a batch that is ready and that nobody will take.
void PrefetchQueue::end(Batch& batch) {
  planner_.release(*batch.plan);
  plans_.give_back(*batch.plan);
  slots_released();
}

// A batch without a plan, or whose plan has ended.
void PrefetchQueue::drop(size_t i) {
  const uint32_t window_batch = batches_[i]->window_batch;
  if (window_batch != 0) planner_.lookahead().finish(window_batch);
  batches_.erase(batches_.begin() + static_cast<ptrdiff_t>(i));
}

size_t PrefetchQueue::cancel(uint64_t ticket_last) {
  size_t dropped = 0;
  for (size_t i = batches_.size(); i-- > 0;) {
    Batch& batch = *batches_[i];
    if (batch.ticket > ticket_last || batch.is_cancelled) continue;
    ++dropped;
    if (batch.state == Batch::State::kPlanned) {
      batch.is_cancelled = true;  // later ones may count on its rows
      continue;
    }
    if (batch.state == Batch::State::kReady) end(batch);
    drop(i);
  }
  return dropped;
}

bool PrefetchQueue::holds(uint64_t ticket) const {
  return std::any_of(batches_.begin(), batches_.end(), [=](const auto& batch) {
    return batch->ticket == ticket && !batch->is_cancelled;
  });
}

void PrefetchQueue::pause(Lock& lock) {
  ++pauses_;
  changed_.wait(lock, [this] { return planned_ == 0; });
}

void PrefetchQueue::resume() {
  --pauses_;
  slots_released();
}

void PrefetchQueue::slots_released() {
  is_short_ = false;
  plan_wake_.notify_one();
}

void PrefetchQueue::stop() {
  {
    std::lock_guard lock(mutex_);
    cancel(UINT64_MAX);
    stopped_ = true;
  }
  plan_wake_.notify_one();
  fetch_wake_.notify_one();
  // What is planned is fetched first, so that no slot is left without its row.
  if (plan_thread_.joinable()) plan_thread_.join();
  if (fetch_thread_.joinable()) fetch_thread_.join();
}

PrefetchQueue::Batch* PrefetchQueue::next_to_plan() {
  if (pauses_ > 0 || is_short_) return nullptr;
  for (const auto& batch : batches_) {
    if (!batch->is_wanted) return nullptr;
    if (batch->state == Batch::State::kQueued && !batch->failed_ahead) return batch.get();
  }
  return nullptr;
}

PrefetchQueue::Batch* PrefetchQueue::next_to_know() {
  if (pauses_ > 0 || !planner_.lookahead().is_useful()) return nullptr;
  for (const auto& batch : batches_) {
    if (!batch->is_known)
      return planner_.lookahead().has_room(batch->lookups) ? batch.get() : nullptr;
  }
  return nullptr;
}

void PrefetchQueue::know(Batch& batch) {
  batch.is_known = true;
  Lookahead& lookahead = planner_.lookahead();
  if (lookahead.is_useful() && lookahead.has_room(batch.lookups))
    batch.window_batch = lookahead.push(batch.features);
}

void PrefetchQueue::plan(Batch& batch) {
  if (!batch.is_known) know(batch);  // those before it are: batches are planned in order
  Plan& plan = plans_.take();
  batch.hand_over(plan);
  const Status planned = plan_ahead_(batch.features, batch.will_update, plan, plan_threads_);
  if (planned) {
    batch.is_noted = plan.is_noted;
    batch.plan = &plan;
    batch.state = Batch::State::kPlanned;
    ++planned_;
    if (planned_ == 1 && plan.acquired.fills.empty()) {
      become_ready(batch);  // all its rows stand in their slots
    } else {
      fetch_wake_.notify_one();
    }
    return;
  }
  plans_.give_back(plan);
  if (planned.code() == StatusCode::kBudgetExceeded) {
    is_short_ = true;
  } else {
    batch.failed_ahead = true;
  }
}

void PrefetchQueue::plan_batches() {
  Lock lock(mutex_);
  while (!stopped_) {
    if (Batch* batch = next_to_plan()) {
      plan(*batch);
    } else if (Batch* further = next_to_know()) {
      know(*further);
    } else {
      plan_wake_.wait(lock);
    }
  }
}

void PrefetchQueue::become_ready(Batch& batch) {
  const bool frees_slots = !batch.plan->piggybacked.empty();
  planner_.ready(*batch.plan);
  if (frees_slots) slots_released();
  batch.state = Batch::State::kReady;
  --planned_;
  if (!batch.is_cancelled) return;
  end(batch);
  remove(batch);
}

void PrefetchQueue::collect_fetch() {
  fetch_.clear();
  fetch_plans_.clear();
  size_t rows = 0;
  for (const auto& batch : batches_) {
    if (batch->state != Batch::State::kPlanned) continue;
    rows += batch->plan->acquired.fills.size() + batch->plan->piggybacked.size();
    if (!fetch_.empty() && rows > kFetchRows) return;
    fetch_.push_back(batch.get());
    fetch_plans_.push_back(batch->plan);
  }
}

void PrefetchQueue::fetch_batches() {
  Lock lock(mutex_);
  for (;;) {
    collect_fetch();
    if (!fetch_.empty()) {
      finish_fetch(mover_.fill(fetch_plans_, false, fetch_threads_, lock));
      changed_.notify_all();
    } else if (stopped_) {
      return;
    } else {
      fetch_wake_.wait(lock);
    }
  }
}

void PrefetchQueue::finish_fetch(const Status& fetched) {
  if (fetched) {
    for (Batch* batch : fetch_) become_ready(*batch);
    return;
  }
  // Batches that were planned later may count on rows that have not come: all go back to the start,
  // from the last, so that a row that was to come is nobody else's when it is given up.
  for (Batch* batch : fetch_) batch->failed_ahead = true;
  for (size_t i = batches_.size(); i-- > 0;) {
    Batch& batch = *batches_[i];
    if (batch.state != Batch::State::kPlanned) continue;
    planner_.abandon(*batch.plan);
    plans_.give_back(*batch.plan);
    batch.plan = nullptr;
    batch.state = Batch::State::kQueued;
    --planned_;
    if (batch.is_cancelled) drop(i);
  }
  slots_released();
}

}  // namespace te
