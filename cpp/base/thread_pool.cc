#include "base/thread_pool.h"

#include <unistd.h>

#include "base/check.h"

namespace te {

ThreadPool::ThreadPool(size_t threads) : owner_pid_(getpid()) {
  TE_CHECK(threads >= 1);
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

void ThreadPool::drain(FunctionRef<void(size_t)> task, size_t tasks) {
  // Relaxed: the counter only hands out numbers; the mutex orders the tasks' data before and after.
  for (;;) {
    const size_t i = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (i >= tasks) return;
    task(i);
  }
}

void ThreadPool::run(size_t tasks, FunctionRef<void(size_t)> task) {
  if (tasks <= 1 || workers_.empty() || getpid() != owner_pid_) {
    for (size_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  std::lock_guard turn(run_mutex_);
  {
    std::lock_guard lock(mutex_);
    next_task_.store(0, std::memory_order_relaxed);  // published to the workers by the mutex
    tasks_ = tasks;
    task_ = &task;
    busy_ = workers_.size();
    ++generation_;
  }
  wake_.notify_all();
  drain(task, tasks);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
}

void ThreadPool::work() {
  uint64_t seen = 0;
  for (;;) {
    const FunctionRef<void(size_t)>* task;
    size_t tasks;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      task = task_;
      tasks = tasks_;
    }
    drain(*task, tasks);
    std::lock_guard lock(mutex_);
    if (--busy_ == 0) done_.notify_one();
  }
}

}  // namespace te
