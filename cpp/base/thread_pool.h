// ThreadPool: fork-join over the tasks of one step.
//
// `run(n, f)` calls f(task) once for every task in [0, n), on the calling thread and the workers,
// and returns when all are done. Which thread runs a task is not fixed, so a task must not depend
// on it: all results of this package are the same for any number of threads. Thread-safety: one
// `run` at a time (the engine's mutex sees to it). Ownership: joins on destruction. Cost: one
// wake-up of the workers a call; with one task or one thread, a plain loop.
//
// The workers are the pool's own, or those of an OpenMP runtime that is in the process already:
// OpenMP's workers spin for milliseconds after each of their loops, and a second set of threads
// would have to share the cores with them.
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
  // `parallel(f, data, n, 0)` of an OpenMP runtime: calls f(data) on n threads and waits for them.
  using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

  // threads >= 1, counting the caller; with `parallel` no threads are started.
  explicit ThreadPool(size_t threads, OpenMpParallel parallel = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t threads() const { return threads_; }
  bool is_openmp() const { return parallel_ != nullptr; }
  void run(size_t tasks, FunctionRef<void(size_t)> task);

 private:
  // The tasks of one `run`, handed out in order.
  struct Job {
    FunctionRef<void(size_t)> task;
    size_t tasks;
    std::atomic<size_t> next{0};
    void drain();
  };
  void work();

  const size_t threads_;
  const OpenMpParallel parallel_;
  const int owner_pid_;
  std::vector<std::thread> workers_;
  std::mutex run_mutex_;  // held for the length of a `run`

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  // Guarded by mutex_:
  uint64_t generation_ = 0;
  size_t busy_ = 0;
  Job* job_ = nullptr;
  bool stop_ = false;
};

}  // namespace te
