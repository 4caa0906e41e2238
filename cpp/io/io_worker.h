// IoWorker: a thread that runs batches of requests in the order in which they were submitted, so
// that their owner can go on meanwhile.
//
// Thread-safety: submit, wait and the jobs' is_done may be called by any thread. Ownership: a job
// belongs to whoever submitted it, and stays where it is until it is done; the destructor finishes
// what was submitted. Cost: one hand-over a job.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "base/status.h"
#include "io/io_engine.h"

namespace te {

class IoWorker {
 public:
  struct Job {
    std::vector<IoRequest> requests;
    Status status;  // once done
    bool is_done() const { return done_.load(std::memory_order_acquire); }

   private:
    friend class IoWorker;
    std::atomic<bool> done_{true};
  };

  // Without a thread, `submit` runs the job itself: for tests that replay a schedule.
  IoWorker(IoEngine& io, bool threaded);
  ~IoWorker();
  IoWorker(const IoWorker&) = delete;
  IoWorker& operator=(const IoWorker&) = delete;

  void submit(Job& job);
  void wait(const Job& job);

 private:
  void work();
  void run(Job& job);

  IoEngine& io_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable ended_;
  // Guarded by mutex_:
  std::deque<Job*> queue_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace te
