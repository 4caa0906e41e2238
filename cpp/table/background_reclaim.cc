#include "table/background_reclaim.h"

#include <utility>

namespace te {
namespace {

// What one step does itself when space is far over its bound.
constexpr uint32_t kChunksPerStep = 8;

}  // namespace

Status BackgroundReclaim::poll() {
  LogStore* log = tiers_.log();
  if (log == nullptr || stopped_) return Status::ok();
  if (!failure_) return std::exchange(failure_, Status::ok());
  const auto need = log->reclaim_need();
  if (need == LogStore::ReclaimNeed::kNone) return Status::ok();
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  wake_.notify_one();
  if (need == LogStore::ReclaimNeed::kUrgent) return log->reclaim(tiers_, kChunksPerStep);
  return Status::ok();
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
    LogStore* log = tiers_.log();
    failure_ = log->reclaim(tiers_, 1, false);
    if (!failure_ || !log->is_reclaiming()) {  // nothing to do, or nothing that can be done
      wake_.wait(lock);
      continue;
    }
    lock.unlock();
    log->wait_for_reclaim();
    lock.lock();
  }
}

}  // namespace te
