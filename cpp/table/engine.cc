#include "table/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/check.h"
#include "table/batch_check.h"
#include "table/engine_turn.h"
#include "table/threads.h"

namespace te {
namespace {

// A new row opens at most one map of eight entries in the index.
constexpr uint64_t kIndexBytesPerNewRowMax = 72;
// Layouts that lent slots to others get them back after so many batches; shares sooner.
constexpr uint64_t kBatchesPerSplit = 1024;
constexpr uint64_t kBatchesPerLoan = 16;

class Timer {
 public:
  explicit Timer(std::atomic<uint64_t>& total_ns)
      : total_ns_(total_ns), start_(std::chrono::steady_clock::now()) {}
  ~Timer() {
    total_ns_ += static_cast<uint64_t>((std::chrono::steady_clock::now() - start_).count());
  }

 private:
  std::atomic<uint64_t>& total_ns_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(const EngineConfig& config) {
  auto tiers = Tiers::create(config);
  if (!tiers) return tiers.status();
  return std::unique_ptr<Engine>(new Engine(tiers.take()));
}

Engine::Engine(std::unique_ptr<Tiers> tiers)
    : tiers_(std::move(tiers)),
      mover_(*tiers_),
      hbm_(*tiers_),
      planner_(*tiers_, mover_, hbm_),
      resizer_(*tiers_, mover_, planner_, plans_),
      executor_(*tiers_, hbm_),
      prefetch_(mutex_, *tiers_, planner_, mover_, plans_,
                [this](std::span<const FeatureInput> features, bool will_update, Plan& plan,
                       ThreadPool& threads) {
                  return plan_ahead(features, will_update, plan, threads);
                }) {
  if (has_store())
    upkeep_ = std::make_unique<BackgroundUpkeep>(mutex_, checkpoint_turn_, *tiers_->log(), *tiers_);
  index_bytes_charged_ = tiers_->index_bytes_charged();
}

Engine::~Engine() = default;

Status Engine::check_open() const {
  if (!closed_) return Status::ok();
  return Status(StatusCode::kInvalidArgument, "the table is closed");
}

Status Engine::check_writable() const {
  TE_RETURN_IF_ERROR(check_open());
  if (!tiers_->config().ssd_read_only) return Status::ok();
  return Status(StatusCode::kInvalidArgument,
                tiers_->config().ssd_path + ": the store is open for reading only");
}

bool Engine::is_closed() const {
  std::lock_guard lock(mutex_);
  return closed_;
}

// Work that is due between batches: the reclaimer's share, and the index's growth out of the
// budget.
Status Engine::keep_house(size_t ids) {
  if (!house_failure_) return std::exchange(house_failure_, Status::ok());
  if (upkeep_ == nullptr) return Status::ok();
  // Without space on the disk the step may still succeed; the spill that cannot says so.
  const auto matters = [](const Status& s) { return !s && s.code() != StatusCode::kNoSpace; };
  if (Status s = upkeep_->poll(); matters(s)) return s;
  if (tiers_->every_row_fits()) return Status::ok();
  const uint64_t index_bytes = tiers_->metadata_bytes();
  const uint64_t ahead_bytes = tiers_->index().is_direct() ? 0 : ids * kIndexBytesPerNewRowMax;
  const bool outgrown = index_bytes + ahead_bytes > index_bytes_charged_;
  const uint64_t batches = mover_.has_lent_shares() ? kBatchesPerLoan : kBatchesPerSplit;
  if (!outgrown && ++batches_since_split_ < batches) return Status::ok();
  batches_since_split_ = 0;
  const uint64_t budget = tiers_->dram_bytes();
  if (outgrown) index_bytes_charged_ = index_bytes + ahead_bytes + index_headroom_bytes(budget);
  if (tiers_->is_resizing()) return Status::ok();  // which sets limits
  std::vector<uint32_t> limits = slots_within(tiers_->demands(), budget, index_bytes_charged_);
  for (size_t l = 0; l < limits.size(); ++l)
    limits[l] = std::min(limits[l],
                         tiers_->layout(LayoutId(static_cast<uint16_t>(l))).directory.slots_max());
  auto reached = mover_.set_limits(limits);
  return !reached && matters(reached.status()) ? reached.status() : Status::ok();
}

Status Engine::resize(uint64_t dram_bytes) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_RETURN_IF_ERROR(resizer_.begin(dram_bytes, [&] { turn.quiet(); }));
  index_bytes_charged_ = tiers_->index_bytes_charged();
  prefetch_.slots_released();
  return Status::ok();
}

bool Engine::is_resizing() const {
  std::lock_guard lock(mutex_);
  return !closed_ && tiers_->is_resizing();
}

// Before a batch of a user: no plan is at work then.
Status Engine::resize_some(Turn& turn) {
  if (!tiers_->is_resizing()) return Status::ok();
  Timer timer(upkeep_ns_);
  TE_RETURN_IF_ERROR(resizer_.step([&] { turn.quiet(); }));
  if (!tiers_->is_resizing()) batches_since_split_ = kBatchesPerSplit;  // the index has gone on
  if (upkeep_ != nullptr) upkeep_->wake();  // rows may have been spilled
  prefetch_.slots_released();
  return Status::ok();
}

// The mutex is open while the drive works: the store is looked after meanwhile.
Status Engine::bring(Plan& plan, bool overwrite, Turn& turn) {
  Timer timer(move_ns_);
  if (upkeep_ != nullptr) upkeep_->wake();  // rows may have been spilled
  Plan* const plans[] = {&plan};
  Status filled = mover_.fill(plans, overwrite, thread_pool(), turn.lock());
  if (!filled) {
    planner_.abandon(plan);
    return filled;
  }
  planner_.ready(plan);
  return Status::ok();
}

Status Engine::plan_locked(std::span<const FeatureInput> features, bool will_update, Plan& plan,
                           bool overwrite, Turn& turn) {
  size_t ids = 0;
  for (const FeatureInput& feature : features) ids += feature.ids_count;
  {
    Timer timer(upkeep_ns_);
    TE_RETURN_IF_ERROR(keep_house(ids));
  }
  {
    Timer timer(plan_ns_);
    TE_RETURN_IF_ERROR(planner_.plan(features, will_update, plan, thread_pool()));
  }
  return bring(plan, overwrite, turn);
}

// By the thread that prefetches.
Status Engine::plan_ahead(std::span<const FeatureInput> features, bool will_update, Plan& plan,
                          ThreadPool& threads) {
  size_t ids = 0;
  for (const FeatureInput& feature : features) ids += feature.ids_count;
  if (Status kept = keep_house(ids); !kept) {
    house_failure_ = kept;  // for the next call of a user to report
    return kept;
  }
  Timer timer(plan_ahead_ns_);
  Status planned = planner_.plan(features, will_update, plan, threads, Planner::Pressure::kRefuse);
  if (planned) planner_.note(plan);
  if (planned.code() == StatusCode::kCorruption) house_failure_ = planned;  // is met once only
  if (upkeep_ != nullptr) upkeep_->wake();  // rows may have been spilled
  return planned;
}

Result<uint64_t> Engine::announce(std::span<const FeatureInput> features, bool will_update) {
  auto batch = PrefetchQueue::copy(features, will_update);
  Turn turn(*this);
  TE_RETURN_IF_ERROR(will_update ? check_writable() : check_open());
  return prefetch_.push(std::move(batch));
}

bool Engine::looks_ahead() {
  std::lock_guard lock(mutex_);
  return planner_.lookahead().is_useful();
}

bool Engine::is_prefetched(uint64_t ticket) const {
  std::lock_guard lock(mutex_);
  return prefetch_.holds(ticket);
}

void Engine::prefetch(uint64_t ticket_last) {
  std::lock_guard lock(mutex_);
  prefetch_.want(ticket_last);
}

size_t Engine::cancel_prefetch(uint64_t ticket_last) {
  Turn turn(*this);
  return prefetch_.cancel(ticket_last);
}

Status Engine::lookup(std::span<const FeatureInput> inputs,
                      std::span<const FeatureForward> features) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(!tiers_->has_hbm());
  TE_RETURN_IF_ERROR(resize_some(turn));
  auto prefetched = prefetch_.take(inputs, false, false, turn.lock());
  TE_RETURN_IF_ERROR(prefetched.status());
  PrefetchQueue::Taken taken = prefetched.take();
  if (taken.plan == nullptr) {
    turn.quiet();
    Plan& plan = plans_.take();
    if (taken.batch != nullptr) taken.batch->hand_over(plan);
    Status done = lookup_locked(inputs, features, plan, turn);
    end_plan(plan);
    if (!done && taken.batch != nullptr) prefetch_.note_failed(std::move(taken.batch));
    return done;
  }
  Plan& plan = *taken.plan;
  planner_.count(plan);
  executor_.renormalise(plan, features);
  turn.without_mutex([&] {
    Timer timer(forward_ns_);
    executor_.forward(plan, features, thread_pool());
  });
  end_plan(plan);
  return Status::ok();
}

// Of a plan that was made, or was to be made.
void Engine::end_plan(Plan& plan) {
  planner_.release(plan);
  plans_.give_back(plan);
  prefetch_.slots_released();
}

Status Engine::lookup_locked(std::span<const FeatureInput> inputs,
                             std::span<const FeatureForward> features, Plan& plan, Turn& turn) {
  bool nothing_moves = tiers_->every_row_fits();
  for (const FeatureForward& feature : features) nothing_moves &= feature.max_norm <= 0;
  if (nothing_moves) {
    TE_RETURN_IF_ERROR(lay_out_batch(inputs, *tiers_, plan));
    Timer timer(forward_ns_);
    plan.is_watched = planner_.sample().is_watching();
    const auto done =
        executor_.forward_resident(inputs, plan, features, planner_.sample().mask(), thread_pool());
    if (done == Executor::Resident::kPooled) {
      planner_.count_resident(plan);
      return Status::ok();
    }
    if (done == Executor::Resident::kBad) {
      plan.bag_begin.resize(plan.bags + plan.features.size());
      return check_batch(inputs, *tiers_, plan, thread_pool());
    }
  }
  TE_RETURN_IF_ERROR(plan_locked(inputs, false, plan, false, turn));
  planner_.count(plan);
  Timer timer(forward_ns_);
  executor_.renormalise(plan, features);
  executor_.forward(plan, features, thread_pool());
  return Status::ok();
}

Result<Plan*> Engine::plan(std::span<const FeatureInput> features, bool will_update,
                           Prefetched prefetched) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(will_update ? check_writable() : check_open());
  TE_RETURN_IF_ERROR(resize_some(turn));
  std::unique_ptr<PrefetchQueue::Batch> batch;
  if (prefetched == Prefetched::kMaybe) {
    auto taken = prefetch_.take(features, will_update, will_update, turn.lock());
    if (!taken) return taken.status();
    if (taken.value().plan != nullptr) {
      planner_.count(*taken.value().plan);
      return taken.value().plan;
    }
    batch = std::move(taken.value().batch);
  }
  turn.quiet();
  Plan& plan = plans_.take();
  if (batch != nullptr) batch->hand_over(plan);
  if (Status planned = plan_locked(features, will_update, plan, false, turn); !planned) {
    end_plan(plan);
    if (batch != nullptr) prefetch_.note_failed(std::move(batch));
    return planned;
  }
  planner_.count(plan);
  return &plan;
}

Status Engine::reacquire(Plan& plan, Turn& turn) {
  turn.quiet();
  TE_RETURN_IF_ERROR(planner_.reacquire(plan));
  return bring(plan, false, turn);
}

Status Engine::forward(Plan& plan, std::span<const FeatureForward> features) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(features.size() == plan.features.size());
  if (plan.state == Plan::State::kRevoked) TE_RETURN_IF_ERROR(reacquire(plan, turn));
  if (plan.state != Plan::State::kReady)
    return Status(StatusCode::kInvalidArgument, "the plan of this batch has ended");
  TE_CHECK(plan.is_staged == tiers_->has_hbm());
  if (!plan.is_staged) executor_.renormalise(plan, features);
  turn.without_mutex([&] {
    Timer timer(forward_ns_);
    executor_.forward(plan, features, thread_pool());
  });
  if (plan.will_update) planner_.wait(plan);
  return Status::ok();
}

Status Engine::backward(Plan& plan, std::span<const FeatureBackward> features,
                        const Hyperparameters& hyper, bool check_finite) {
  Turn turn(*this);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(plan.will_update && features.size() == plan.features.size());
  Status finite;
  if (check_finite) turn.without_mutex([&] { finite = executor_.check_finite(plan, features); });
  TE_RETURN_IF_ERROR(std::move(finite));
  if (plan.state == Plan::State::kRevoked) {
    TE_RETURN_IF_ERROR(reacquire(plan, turn));
    planner_.wait(plan);
  }
  if (plan.state != Plan::State::kWaiting)
    return Status(StatusCode::kInvalidArgument, "the plan of this batch has ended");
  TE_CHECK(plan.is_staged == tiers_->has_hbm());
  is_updated_.clear();
  for (const FeatureBackward& feature : features) is_updated_.push_back(executor_.updates(feature));
  executor_.begin_update(plan, is_updated_, thread_pool());
  turn.without_mutex([&] {
    Timer timer(backward_ns_);
    executor_.backward(plan, features, hyper, thread_pool());
  });
  return Status::ok();
}

void Engine::release(Plan& plan) {
  Turn turn(*this);
  if (closed_) {
    plans_.give_back(plan);
  } else {
    end_plan(plan);
  }
}

std::vector<SegmentInfo> Engine::segments() const {
  std::lock_guard lock(mutex_);
  return tiers_->log() == nullptr ? std::vector<SegmentInfo>() : tiers_->log()->segments();
}

Status Engine::verify(SegmentId segment, std::vector<SegmentFault>& faults, std::string* path) {
  std::lock_guard lock(mutex_);
  TE_RETURN_IF_ERROR(check_open());
  TE_CHECK(tiers_->config().ssd_read_only);
  *path = tiers_->log()->segment_path(segment);
  return tiers_->log()->verify(segment, *tiers_, faults);
}

std::pair<TableId, uint64_t> Engine::place_of(RowId row) const {
  const TableId table = tiers_->table_id_of(row);
  return {table, row.value - tiers_->table(table).first_row.value};
}

uint64_t Engine::step(TableId table) const {
  std::lock_guard lock(mutex_);
  return tiers_->table(table).step;
}

void Engine::set_step(TableId table, uint64_t step) {
  Turn turn(*this);
  tiers_->table(table).step = step;
}

LookupSample::Copy Engine::lookup_sample() {
  std::lock_guard lock(mutex_);
  return planner_.sample().copy();
}

uint64_t Engine::hold_lookup_sample(std::optional<bool> watching) {
  std::lock_guard lock(mutex_);
  planner_.sample().hold(watching);
  return planner_.sample().watched_batches();
}

EngineStats Engine::stats() {
  std::lock_guard lock(mutex_);
  EngineStats stats;
  stats.plan_ns = plan_ns_;
  stats.plan_ahead_ns = plan_ahead_ns_;
  stats.upkeep_ns = upkeep_ns_;
  stats.move_ns = move_ns_;
  stats.forward_ns = forward_ns_;
  stats.backward_ns = backward_ns_;
  stats.planner = planner_.stats();
  stats.mover = mover_.stats();
  stats.hbm = hbm_.stats();
  stats.prefetch = prefetch_.stats();
  if (closed_) return stats;
  if (tiers_->log() != nullptr) {
    const IoEngine& io = tiers_->log()->io();
    stats.log = tiers_->log()->stats();
    stats.log_rows_bytes = tiers_->log()->rows_bytes(*tiers_);
    stats.io_engine = io.name();
    stats.reads = io.read_stats();
    stats.writes = io.write_stats();
  }
  for (size_t l = 0; l < tiers_->layouts(); ++l) {
    const LayoutTier& tier = tiers_->layout(LayoutId(static_cast<uint16_t>(l)));
    const SlotDirectory& directory = tier.directory;
    stats.slots += directory.limit();
    stats.resident_rows += directory.used();
    stats.rows_total += tier.rows;
    stats.row_bytes_total += tier.rows * tier.layout.row_bytes();
    stats.dirty_rows += tier.dirty_rows;
    if (tier.hbm == nullptr) continue;
    stats.hbm_slots += tier.hbm->slots();
    stats.hbm_rows += tier.hbm->directory.used();
    stats.hbm_dirty_rows += tier.hbm->dirty_rows;
  }
  stats.index_bytes = tiers_->index().memory_bytes();
  stats.lookahead_bytes = tiers_->lookahead_bytes();
  stats.pinned_bytes = tiers_->config().pinned_bytes;
  stats.dram_bytes = tiers_->dram_bytes_charged(tiers_->metadata_bytes());
  stats.dram_target_bytes = tiers_->dram_target_bytes();
  stats.is_resizing = tiers_->is_resizing();
  return stats;
}

}  // namespace te
