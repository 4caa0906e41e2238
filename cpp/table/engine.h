// Engine: the facade of the core. Tables of one budget, their batches, their updates and their
// store.
//
// A batch: (prefetch ->) plan -> forward -> (backward) -> release. A plan's handle may be dropped
// at any time. Rows move in `plan`, or ahead of it once a batch is prefetched; forward and backward
// compute. After `close`, everything but `close` is an error. Thread-safety: calls that touch rows
// take turns (turn_), and mutex_ for what they share with the threads that prefetch and reclaim;
// forward and backward compute without it, on rows that are pinned. Ownership: owns all tiers;
// plans belong to the engine and go back to it when their handle is released. Cost: see planner.h,
// mover.h, executor.h, prefetch_queue.h.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "log/background_upkeep.h"
#include "log/checkpoint_turn.h"
#include "table/executor.h"
#include "table/hbm_planner.h"
#include "table/lookup_sample.h"
#include "table/mover.h"
#include "table/plan_image.h"
#include "table/plan_pool.h"
#include "table/planner.h"
#include "table/prefetch_queue.h"
#include "table/resizer.h"
#include "table/tiers.h"

namespace te {

struct EngineStats {
  PlannerStats planner;
  MoverStats mover;
  HbmStats hbm;
  uint64_t hbm_slots = 0;
  uint64_t hbm_rows = 0;        // in them
  uint64_t hbm_dirty_rows = 0;  // of those, newer than in dram
  uint64_t pinned_bytes = 0;    // transfer buffers
  PrefetchStats prefetch;
  LogStats log;
  uint64_t log_rows_bytes = 0;  // see LogStore::rows_bytes
  std::string io_engine;        // of the ssd tier; empty without
  IoStats reads;
  IoStats writes;
  uint64_t slots = 0;  // that the budget allows
  uint64_t resident_rows = 0;
  uint64_t dirty_rows = 0;
  uint64_t rows_total = 0;
  uint64_t row_bytes_total = 0;    // all rows with their state
  uint64_t dram_bytes = 0;         // rows in slots, directory, policy and index at the slot limit
  uint64_t dram_target_bytes = 0;  // the budget; 0: every row may be in dram
  bool is_resizing = false;        // it is not reached yet
  uint64_t index_bytes = 0;
  uint64_t lookahead_bytes = 0;
  uint64_t plan_ns = 0;        // time spent in calls, in total
  uint64_t plan_ahead_ns = 0;  // likewise by the thread that prefetches
  uint64_t upkeep_ns = 0;      // of the store, before a batch of a user
  uint64_t move_ns = 0;
  uint64_t forward_ns = 0;
  uint64_t backward_ns = 0;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> create(const EngineConfig& config);
  ~Engine();

  // Pools a batch that no backward follows. Rows are brought as `plan` does, unless all are there.
  // Not with an hbm tier.
  Status lookup(std::span<const FeatureInput> inputs, std::span<const FeatureForward> features);
  // Whether a batch that is to be planned may have been prefetched: a lookup that only serves
  // another one was not.
  enum class Prefetched : uint8_t { kMaybe, kNo };
  // Plans a batch and brings its rows into slots, or takes the plan that prefetch has made of it.
  // `will_update`: a backward may follow; then kInvalidArgument if another batch is the next that
  // was prefetched.
  Result<Plan*> plan(std::span<const FeatureInput> features, bool will_update,
                     Prefetched prefetched = Prefetched::kMaybe);
  // Announces a batch, before its `plan` or `lookup`: what it needs steers evictions. Batches come
  // in the order of their announcement. Ids and offsets are copied; what is wrong with them shows
  // at the plan. A ticket, higher than those of all batches before.
  Result<uint64_t> announce(std::span<const FeatureInput> features, bool will_update);
  // The batches up to this ticket are planned and their rows brought in the background.
  void prefetch(uint64_t ticket_last);
  // Whether announced batches change anything before they are prefetched.
  bool looks_ahead();
  // Whether the batch of this ticket waits for its plan or lookup.
  bool is_prefetched(uint64_t ticket) const;
  // Drops the batches up to this ticket that wait for their plan or lookup, and says how many.
  size_t cancel_prefetch(uint64_t ticket_last);
  // Sets another dram budget. Rows leave for a smaller one with the next batches, some at each. On
  // error (kInvalidArgument, kBudgetExceeded) nothing has changed.
  Status resize(uint64_t dram_bytes);
  // Whether they still do.
  bool is_resizing() const;

  Status forward(Plan& plan, std::span<const FeatureForward> features);
  // `update` false: only gradients of sample weights and row_grad are computed. Ends the plan.
  Status backward(Plan& plan, std::span<const FeatureBackward> features,
                  const Hyperparameters& hyper, bool check_finite);
  void release(Plan& plan);

  // Rows wherever they are: weights [n, dim] in dtype and state [n, state_floats], either may be
  // null.
  Status read_rows(TableId table, std::span<const int64_t> ids, void* weights, float* state);
  // The same layout; a null part keeps its present value. The last of duplicate ids wins.
  Status write_rows(TableId table, std::span<const int64_t> ids, const void* weights,
                    const float* state);
  // One update of a table with summed gradients [n, dim] of distinct ids.
  // An update that fails may be repeated with the ids from `applied` on, of which the others have
  // moved, as one that `continues`: it counts as the same step.
  Status apply_gradients(TableId table, std::span<const int64_t> ids, const float* gradients,
                         const Hyperparameters& hyper, bool continues = false,
                         size_t* applied = nullptr);
  // Up to `ids.size()` rows of a table at or after `first` that have been written or looked up,
  // ascending. Rows that are not among them have their initial values.
  Result<size_t> known_rows(TableId table, int64_t first, std::span<int64_t> ids) const;
  // Where each row is at present; kNone: it has its initial value and takes no space.
  enum class Tier : uint8_t { kNone, kSsd, kDram, kHbm };
  Status locate(TableId table, std::span<const int64_t> ids, Tier* tiers) const;

  // With an hbm tier, whose bytes are the caller's (engine_hbm.cc). A plan is staged, its moves are
  // made, and then it is pooled and updated there, or by `forward` and `backward` if the device is
  // this processor. Rows that are newer on the device have to come down before calls that read or
  // write rows in dram, and rows that went down have to be settled before the next stage: else
  // those fail, and change nothing.
  // Bounds the norms of a plan's rows in dram; before it is staged.
  Status renormalise(Plan& plan, std::span<const FeatureForward> features);
  // Of a plan that is not staged, or no longer.
  Status stage(Plan& plan);
  // A staged plan has been pooled on the device: its backward may come.
  Status pooled(Plan& plan);
  // Its update follows on the device; `steps`: of each feature's table, 0 where it is not updated.
  Status begin_update(Plan& plan, std::span<const uint8_t> is_updated, std::span<uint64_t> steps);
  // Releases of staged plans so far; see HbmMoves::after.
  uint64_t releases();
  // Slots of the device and of dram, pairwise, of rows on the device. Those of `newer` rows count
  // as clean from then on: they have to be settled.
  struct Copies {
    std::vector<SlotIndex> device;
    std::vector<SlotIndex> dram;
  };
  Status newer_copies(LayoutId layout, Copies& copies);
  Status newer_copies(TableId table, std::span<const int64_t> ids, Copies& copies);
  Status copies(TableId table, std::span<const int64_t> ids, Copies& copies);
  // Whole slots of dram to `rows`, one after another. They are pinned, and settled.
  Status gather(LayoutId layout, std::span<const SlotIndex> dram, std::byte* rows);
  // See plan_image.h.
  PlanImage image(const Plan& plan) const { return plan_image(plan, *tiers_); }
  Status write_image(const Plan& plan, std::span<const uint32_t> groups, uint32_t often,
                     std::byte* to, std::span<uint32_t> seldom);
  // The other way, for rows that went down; then `settle` of them. `left`: by a stage.
  Status scatter(LayoutId layout, std::span<const SlotIndex> dram, const std::byte* rows);
  Status settle(LayoutId layout, std::span<const SlotIndex> dram, bool left);
  // Frees the slots of the device that no plan uses; their rows stay in dram.
  Status drop_unused();
  // While the budget becomes smaller, for rows whose slots in dram go away: as newer_copies, of up
  // to so many, and as drop_unused.
  Status stranded_copies(LayoutId layout, size_t rows, Copies& copies);
  Status drop_stranded();
  // Slots of a layout on the device, bytes of one, and where they are if that is this processor:
  // those in dram lie behind.
  struct HbmLayout {
    uint32_t slots = 0;
    uint32_t stride_bytes = 0;
    std::byte* here = nullptr;
    uint64_t here_bytes = 0;
  };
  HbmLayout hbm_layout(TableId table, LayoutId* layout);

  // Of the ssd tier; none without it.
  std::vector<SegmentInfo> segments() const;
  // What is wrong with a segment of an engine that is open for reading only.
  Status verify(SegmentId segment, std::vector<SegmentFault>& faults, std::string* path);
  // The table of a row, and the row's number in it.
  std::pair<TableId, uint64_t> place_of(RowId row) const;
  RowId first_row(TableId table) const { return tiers_->table(table).first_row; }
  // Makes the state at the call durable; batches of other threads go on while it is being written.
  Status flush();
  // In two steps, the second by any thread: makes `path` a store that opens as the state at the
  // first. `previous`: see copy_checkpoint. One save or flush at a time; a second one waits. After
  // an error of begin there is nothing to finish.
  Status begin_save(const std::string& path);
  Status finish_save(const std::string& path, const std::string& previous);
  Status close();    // flush, then give everything back; closing twice is fine
  Status discard();  // the same without the flush: the store stays at its last one
  bool is_closed() const;
  // Whether a forked child lacks a part of it: a store, or threads. Needs no lock.
  bool is_lost_in_a_fork() const {
    return tiers_->log() != nullptr || prefetch_.has_lost_threads();
  }
  EngineStats stats();
  LookupSample::Copy lookup_sample();
  // See LookupSample::hold. Batches that were watched so far.
  uint64_t hold_lookup_sample(std::optional<bool> watching);
  // Updates of a table so far (the optimizer's step).
  uint64_t step(TableId table) const;
  void set_step(TableId table, uint64_t step);

 private:
  class Turn;
  explicit Engine(std::unique_ptr<Tiers> tiers);
  Status check_open() const;
  Status plan_locked(std::span<const FeatureInput> features, bool will_update, Plan& plan,
                     bool overwrite, Turn& turn);
  Status plan_ahead(std::span<const FeatureInput> features, bool will_update, Plan& plan,
                    ThreadPool& threads);
  Status lookup_locked(std::span<const FeatureInput> inputs,
                       std::span<const FeatureForward> features, Plan& plan, Turn& turn);
  Status bring(Plan& plan, bool overwrite, Turn& turn);
  void end_plan(Plan& plan);
  // Gives a plan that was revoked its rows back.
  Status reacquire(Plan& plan, Turn& turn);
  Status keep_house(size_t ids);
  Status resize_some(Turn& turn);
  Status check_writable() const;
  bool has_store() const;  // that checkpoints are for
  Status begin_checkpoint(bool seal);
  Status write_checkpoint();
  void begin_checkpoint_turn();
  void end_checkpoint_turn();
  Status save_slots(const std::string& path);
  Status close_with(bool flush);
  Status close_in_turn(bool flush);
  // Rows that may be planned at once beside those that are pinned.
  size_t rows_per_batch(TableId table);
  Status check_row_ids(TableId table, std::span<const int64_t> ids) const;
  // That dram has the newest bytes: of all rows, of these rows.
  Status check_newest_in_dram() const;
  Status check_newest_in_dram(TableId table, std::span<const int64_t> ids) const;
  template <class F>
  void visit_copies(TableId table, std::span<const int64_t> ids, F f) const;

  // Before mutex_, where both are taken.
  std::mutex turn_;
  mutable std::mutex mutex_;
  // All guarded by mutex_:
  CheckpointTurn checkpoint_turn_;  // of a flush or save, from its begin to its end
  std::unique_ptr<Tiers> tiers_;
  Mover mover_;
  HbmPlanner hbm_;
  Planner planner_;
  PlanPool plans_;
  Resizer resizer_;
  Executor executor_;
  uint64_t index_bytes_charged_ = 0;
  uint64_t batches_since_split_ = 0;
  Status house_failure_;  // met by the thread that prefetches, and not reported yet
  std::atomic<uint64_t> plan_ns_{0};
  std::atomic<uint64_t> plan_ahead_ns_{0};
  std::atomic<uint64_t> upkeep_ns_{0};
  std::atomic<uint64_t> move_ns_{0};
  std::atomic<uint64_t> forward_ns_{0};
  std::atomic<uint64_t> backward_ns_{0};
  Scratch<float> scattered_;         // of one apply_gradients
  std::vector<uint8_t> is_updated_;  // of one backward
  bool closed_ = false;
  // With a store that is written. Those with threads come last, so that these end before what they
  // use.
  std::unique_ptr<BackgroundUpkeep> upkeep_;
  PrefetchQueue prefetch_;
};

}  // namespace te
