// BackgroundReclaim: the thread that gives obsolete space back while the model computes.
//
// It reads a chunk of a segment without the engine's mutex and moves its live rows under it, so
// that a step waits for one chunk's rows at most. Steps only look in: they wake it, and lend a hand
// when space has grown far over its bound. Thread-safety: `poll` and `start` under the engine's
// mutex, `stop` without it. Ownership: owns its thread, which starts at the first need. Cost:
// nothing while there is nothing to reclaim.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/status.h"
#include "table/tiers.h"

namespace te {

class BackgroundReclaim {
 public:
  BackgroundReclaim(std::mutex& mutex, Tiers& tiers) : mutex_(mutex), tiers_(tiers) {}
  ~BackgroundReclaim() { stop(); }
  // Once between two batches. Returns the error that the thread has met since.
  Status poll();
  // Ends the thread; until `start`, no poll begins another.
  void stop();
  void start();  // under the mutex

 private:
  void work();

  std::mutex& mutex_;  // the engine's
  Tiers& tiers_;
  std::condition_variable wake_;
  // Guarded by mutex_:
  std::thread thread_;
  bool stopped_ = false;
  Status failure_;
};

}  // namespace te
