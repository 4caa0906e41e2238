#include "log/background_reclaim.h"

namespace te {

Status BackgroundReclaim::poll() {
  if (stopped_) return Status::ok();
  if (!failure_) return take_failure();
  if (log_.reclaim_need(owner_) == LogStore::ReclaimNeed::kNone) return Status::ok();
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  is_wanted_ = true;
  wake_.notify_one();
  return log_.keep_bound(owner_);
}

void BackgroundReclaim::stop() {
  std::thread thread;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    thread = std::move(thread_);
  }
  wake_.notify_one();
  if (thread.joinable()) thread.join();
}

void BackgroundReclaim::start() { stopped_ = false; }

void BackgroundReclaim::work() {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    Status done = log_.reclaim(owner_, 1, false);
    const bool failed = !done;
    if (failed && failure_) failure_ = std::move(done);  // the first is told
    if (failed || !log_.is_reclaiming()) {  // nothing that can be done, or nothing to do
      wake_.wait(lock, [this] { return stopped_ || is_wanted_; });
      is_wanted_ = false;
      continue;
    }
    lock.unlock();
    log_.wait_for_reclaim();
    lock.lock();
  }
}

}  // namespace te
