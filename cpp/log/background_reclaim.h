// BackgroundReclaim: the thread that gives obsolete space back while the model computes.
//
// It reads a chunk of a segment without the owner's mutex and moves its live rows under it, so
// that a step waits for one chunk's rows. Steps only look in: they wake it, and when space is over
// its bound they work off what they put (LogStore::keep_bound). Thread-safety: everything under the
// owner's mutex, but `stop` without it. Ownership: owns its thread, which starts at the first need.
// Cost: nothing while there is nothing to reclaim.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/status.h"
#include "log/log_store.h"

namespace te {

class BackgroundReclaim {
 public:
  // `mutex` guards the store and what its owner knows of rows.
  BackgroundReclaim(std::mutex& mutex, LogStore& log, RowOwner& owner)
      : mutex_(mutex), log_(log), owner_(owner) {}
  ~BackgroundReclaim() { stop(); }
  // Once between two batches. Returns the error that the thread has met since.
  Status poll();
  Status take_failure() { return std::exchange(failure_, Status::ok()); }
  // Ends the thread; until `start`, no poll begins another.
  void stop();
  void start();  // under the mutex

 private:
  void work();

  std::mutex& mutex_;
  LogStore& log_;
  RowOwner& owner_;
  std::condition_variable wake_;
  // Guarded by mutex_:
  std::thread thread_;
  bool stopped_ = false;
  bool is_wanted_ = false;  // a poll has found need since the thread last looked
  Status failure_;
};

}  // namespace te
