// PrefetchQueue: batches that are known, then planned, and their rows fetched, before their
// forward.
//
// One thread plans batches in the order of their `push`, once they are wanted and as far as slots
// can be had without taking any from other plans; where they cannot, it waits until some are let
// go. When it has nothing to plan it tells the lookahead of batches further on. Another brings the
// rows of planned batches, in order, with the mutex open while it reads. Rows lie in their slots,
// not in copies, so updates of earlier batches reach them. A batch that cannot be planned or read
// ahead (no room, a bad id, a failing disk) goes back to the start: its forward plans it as if it
// had not been pushed, and meets whatever is wrong. So prefetching changes when rows move, and
// nothing else. Thread-safety: every member is called with the engine's mutex held, `stop` without
// it; the queue's threads take it. Ownership: copies ids and offsets; plans come from the pool and
// belong to whoever takes them. Invariant: batches are ready, planned, queued, in this order, but
// for those that have gone back to the start. Cost: a copy and a comparison of the ids; two
// threads, from the first push on.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/scratch.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "table/mover.h"
#include "table/plan.h"
#include "table/plan_pool.h"
#include "table/planner.h"

namespace te {

struct PrefetchStats {
  uint64_t batches = 0;         // that a forward has taken
  uint64_t batches_ready = 0;   // part of them: their rows were there by then
  uint64_t batches_missed = 0;  // likewise: they were not even planned
  uint64_t stall_ns = 0;        // forwards waited for rows
};

class PrefetchQueue {
 public:
  using Lock = std::unique_lock<std::mutex>;
  // Plans a batch without taking slots from other plans (Planner::Pressure::kRefuse).
  using PlanAhead =
      std::function<Status(std::span<const FeatureInput>, bool will_update, Plan&, ThreadPool&)>;

  PrefetchQueue(std::mutex& mutex, Tiers& tiers, Planner& planner, Mover& mover, PlanPool& plans,
                PlanAhead plan_ahead);
  ~PrefetchQueue();

  // A batch with its own copies of ids and offsets.
  struct Batch {
    enum class State : uint8_t { kQueued, kPlanned, kReady };
    State state = State::kQueued;
    uint64_t ticket = 0;
    bool will_update = false;
    bool is_wanted = false;     // its rows may be fetched
    bool is_known = false;      // to the lookahead, unless that had no room
    bool failed_ahead = false;  // its forward has to plan it
    bool is_cancelled = false;
    std::vector<FeatureInput> features;
    size_t lookups = 0;
    Scratch<std::byte> memory;  // that they point to
    Plan* plan = nullptr;       // from kPlanned on
    uint32_t window_batch = 0;  // its number in the lookahead
    bool is_noted = false;      // it is in the lookup sample
    // To a plan that is to be made of it.
    void hand_over(Plan& to) const {
      to.window_batch = window_batch;
      to.is_noted = is_noted;
    }
  };
  // Needs no lock.
  static std::unique_ptr<Batch> copy(std::span<const FeatureInput> features, bool will_update);
  // A number that is higher than those of all batches before, of other queues too.
  uint64_t push(std::unique_ptr<Batch> batch);
  // The batches up to this one are to be planned and fetched.
  void want(uint64_t ticket);
  // What a forward asks first: the plan of this batch if it is the next one that was pushed for its
  // tables; waits for its rows. No plan where the caller has to make it: the batch was not pushed,
  // or could not be planned ahead. `must_match`: kInvalidArgument if another batch is next;
  // otherwise only if this one comes later in the queue.
  struct Taken {
    Plan* plan = nullptr;
    std::unique_ptr<Batch> batch;  // that was pushed and has no plan
  };
  Result<Taken> take(std::span<const FeatureInput> features, bool will_update, bool must_match,
                     Lock& lock);
  // The forward of a batch that was taken has failed: it may be tried again before the next one.
  void note_failed(std::unique_ptr<Batch> batch) { failed_ = std::move(batch); }
  // Drops the batches up to a ticket, and says how many. Rows that are being fetched come into
  // their slots all the same.
  size_t cancel(uint64_t ticket_last);
  // Whether the batch of this ticket waits for its forward.
  bool holds(uint64_t ticket) const;
  // Until `resume`, nothing is planned or fetched; everything planned so far is fetched first.
  void pause(Lock& lock);
  void resume();
  // Slots have been let go: a batch that waits for some may be planned.
  void slots_released();
  // Ends the threads and drops all batches; `push` starts them again.
  void stop();

  // Whether its threads are another process's, of which this one is a fork.
  bool has_lost_threads() const { return plan_thread_.joinable() && owner_ != getpid(); }
  const PrefetchStats& stats() const { return stats_; }

 private:
  void plan_batches();
  void fetch_batches();
  Batch* next_to_plan();
  Batch* next_to_know();
  void plan(Batch& batch);
  void know(Batch& batch);
  void become_ready(Batch& batch);
  void collect_fetch();
  void finish_fetch(const Status& fetched);
  void end(Batch& batch);
  std::unique_ptr<Batch> remove(const Batch& batch);
  void drop(size_t i);
  Status mismatch(std::span<const FeatureInput> features, const Batch& due) const;

  std::mutex& mutex_;
  Tiers& tiers_;
  Planner& planner_;
  Mover& mover_;
  PlanPool& plans_;
  const PlanAhead plan_ahead_;
  ThreadPool plan_threads_{1};  // of the planning thread: the cores are the model's
  ThreadPool fetch_threads_{1};
  std::condition_variable plan_wake_;
  std::condition_variable fetch_wake_;
  std::condition_variable changed_;  // a batch has been fetched, or gone back to the start
  // Guarded by mutex_:
  std::thread plan_thread_;
  std::thread fetch_thread_;
  pid_t owner_ = 0;  // of the threads
  std::deque<std::unique_ptr<Batch>> batches_;
  size_t planned_ = 0;             // batches whose rows are yet to be fetched
  std::unique_ptr<Batch> failed_;  // the last one whose forward has failed
  size_t pauses_ = 0;
  bool is_short_ = false;  // of slots, for the next batch
  bool stopped_ = false;
  PrefetchStats stats_;
  std::vector<Batch*> fetch_;  // being fetched
  std::vector<Plan*> fetch_plans_;
};

}  // namespace te
