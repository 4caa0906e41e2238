#include "io/io_worker.h"

#include "base/check.h"

namespace te {

IoWorker::IoWorker(IoEngine& io, bool threaded) : io_(io) {
  if (threaded) thread_ = std::thread([this] { work(); });
}

IoWorker::~IoWorker() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void IoWorker::run(Job& job) {
  job.status = io_.run(job.requests, [](size_t) {});
}

void IoWorker::submit(Job& job) {
  TE_CHECK(job.is_done());
  if (!thread_.joinable()) {
    run(job);
    return;
  }
  job.done_.store(false, std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(&job);
  }
  wake_.notify_one();
}

void IoWorker::wait(const Job& job) {
  if (job.is_done()) return;
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return job.is_done(); });
}

void IoWorker::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Job& job = *queue_.front();
    queue_.pop_front();
    lock.unlock();
    run(job);
    lock.lock();
    job.done_.store(true, std::memory_order_release);  // under the lock, for `wait`
    ended_.notify_all();
  }
}

}  // namespace te
