// BackgroundUpkeep: the thread that looks after a store while the model computes: it gives obsolete
// space back, and writes down what has changed before the list of that is full.
//
// It reads a chunk of a segment without the owner's mutex and moves its live rows under it, so
// that a step waits for one chunk's rows; indexes of changes it writes without it. Steps only look
// in: they wake it, when space is over its bound they work off what they put
// (LogStore::take_chunks_owed), and when the list is almost full they write it themselves.
// Thread-safety: everything under the owner's mutex, but `stop` without it. Ownership: owns its
// thread, which starts at the first need. Cost: nothing while there is nothing to do.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/status.h"
#include "log/checkpoint_turn.h"
#include "log/log_store.h"

namespace te {

class BackgroundUpkeep {
 public:
  // `mutex` guards the store, what its owner knows of rows, and `turn`.
  BackgroundUpkeep(std::mutex& mutex, CheckpointTurn& turn, LogStore& log, RowOwner& owner)
      : mutex_(mutex), turn_(turn), log_(log), owner_(owner) {}
  ~BackgroundUpkeep() { stop(); }
  // Once between two batches. Returns the error that the thread has met since.
  Status poll();
  // Wakes the thread if there is need, and says whether: where the mutex will be open for a while.
  bool wake();
  Status take_failure() { return std::exchange(failure_, Status::ok()); }
  // Ends the thread; until `start`, no poll begins another.
  void stop();
  void start();  // under the mutex

 private:
  void work();
  Status reclaim_owed();
  void write_changes(std::unique_lock<std::mutex>& lock);

  std::mutex& mutex_;
  CheckpointTurn& turn_;
  LogStore& log_;
  RowOwner& owner_;
  std::condition_variable wake_;
  // Guarded by mutex_:
  std::thread thread_;
  bool stopped_ = false;
  bool is_wanted_ = false;  // need was found since the thread last looked
  Status failure_;
};

}  // namespace te
