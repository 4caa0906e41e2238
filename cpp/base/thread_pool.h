// ThreadPool: fork-join over the tasks of one step.
//
// `run(n, f)` calls f(task) once for every task in [0, n), on the calling thread and the workers,
// and returns when all are done. Which thread runs a task is not fixed, so a task must not depend
// on it: all results of this package are the same for any number of threads. Thread-safety: one
// `run` at a time (the engine's mutex sees to it). Ownership: joins on destruction. Cost: one
// wake-up of the workers a call; with one task or one thread, a plain loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "base/function_ref.h"

namespace te {

class ThreadPool {
 public:
  explicit ThreadPool(size_t threads);  // threads >= 1, counting the caller
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t threads() const { return workers_.size() + 1; }
  void run(size_t tasks, FunctionRef<void(size_t)> task);

 private:
  void work();
  void drain(FunctionRef<void(size_t)> task, size_t tasks);

  const int owner_pid_;
  std::vector<std::thread> workers_;
  std::mutex run_mutex_;  // held for the length of a `run`
  std::atomic<size_t> next_task_{0};

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  // Guarded by mutex_:
  uint64_t generation_ = 0;
  size_t busy_ = 0;
  size_t tasks_ = 0;
  const FunctionRef<void(size_t)>* task_ = nullptr;
  bool stop_ = false;
};

}  // namespace te
