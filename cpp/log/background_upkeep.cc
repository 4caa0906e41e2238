#include "log/background_upkeep.h"

#include <algorithm>
#include <utility>

namespace te {
namespace {

constexpr uint32_t kChunksAtOnce = 16;

}  // namespace

Status BackgroundUpkeep::poll() {
  if (stopped_) return Status::ok();
  if (!failure_) return take_failure();
  return wake() ? reclaim_owed() : Status::ok();
}

bool BackgroundUpkeep::wake() {
  using enum LogStore::Need;
  if (stopped_) return false;
  if (log_.reclaim_need(owner_) == kNone && log_.changes_need() == kNone) return false;
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  is_wanted_ = true;
  wake_.notify_one();
  return true;
}

// What is moved is changed, too: the list of that must not become full on the way.
Status BackgroundUpkeep::reclaim_owed() {
  uint32_t owed = log_.take_chunks_owed(owner_);
  for (;;) {
    if (log_.changes_need() == LogStore::Need::kUrgent && turn_.try_take()) {
      log_.write_urgent_changes();
      turn_.give_back();
    }
    const uint32_t chunks = std::min(owed, kChunksAtOnce);
    if (chunks == 0) return Status::ok();
    TE_RETURN_IF_ERROR(log_.reclaim(owner_, chunks, true));
    owed -= chunks;
  }
}

void BackgroundUpkeep::stop() {
  std::thread thread;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    thread = std::move(thread_);
  }
  wake_.notify_one();
  if (thread.joinable()) thread.join();
}

void BackgroundUpkeep::start() { stopped_ = false; }

void BackgroundUpkeep::work() {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    if (log_.changes_need() != LogStore::Need::kNone && turn_.try_take()) write_changes(lock);
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

// In its turn. What fails here is lost for nobody: the next checkpoint writes it, or says why not.
void BackgroundUpkeep::write_changes(std::unique_lock<std::mutex>& lock) {
  log_.begin_changes(true);
  lock.unlock();
  Status written = log_.write_changes();
  lock.lock();
  log_.end_changes(std::move(written));
  turn_.give_back();
}

}  // namespace te
