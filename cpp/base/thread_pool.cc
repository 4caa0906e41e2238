#include "base/thread_pool.h"

#include <unistd.h>

#include "base/check.h"

namespace te {

ThreadPool::ThreadPool(size_t threads, OpenMpParallel parallel)
    : threads_(threads), parallel_(parallel), owner_pid_(getpid()) {
  TE_CHECK(threads >= 1);
  if (parallel != nullptr) return;
  workers_.reserve(threads - 1);
  for (size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Job::drain() {
  // Relaxed: the counter only hands out numbers; fork and join order the tasks' data.
  for (;;) {
    const size_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= tasks) return;
    task(i);
  }
}

void ThreadPool::run(size_t tasks, FunctionRef<void(size_t)> task) {
  // A forked child has no workers, neither ours nor OpenMP's.
  if (tasks <= 1 || threads_ == 1 || getpid() != owner_pid_) {
    for (size_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  Job job{task, tasks};
  if (parallel_ != nullptr) {
    // Always all threads: another number would make OpenMP end and start some.
    parallel_([](void* data) { static_cast<Job*>(data)->drain(); }, &job,
              static_cast<unsigned>(threads_), 0);
    return;
  }
  std::lock_guard turn(run_mutex_);
  {
    std::lock_guard lock(mutex_);
    job_ = &job;
    busy_ = workers_.size();
    ++generation_;
  }
  wake_.notify_all();
  job.drain();
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
}

void ThreadPool::work() {
  uint64_t seen = 0;
  for (;;) {
    Job* job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      job = job_;
    }
    job->drain();
    std::lock_guard lock(mutex_);
    if (--busy_ == 0) done_.notify_one();
  }
}

}  // namespace te
