// CheckpointTurn: who writes a checkpoint, or an index of changes, of a store; one at a time.
//
// Thread-safety: all under the owner's mutex, which `take` opens while it waits. Whoever waits
// comes before whoever only tries.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>

namespace te {

class CheckpointTurn {
 public:
  void take(std::unique_lock<std::mutex>& owner_lock) {
    ++waiting_;
    ended_.wait(owner_lock, [this] { return !is_taken_; });
    --waiting_;
    is_taken_ = true;
  }
  bool try_take() {
    if (is_taken_ || waiting_ > 0) return false;
    is_taken_ = true;
    return true;
  }
  void give_back() {
    is_taken_ = false;
    ended_.notify_all();
  }

 private:
  std::condition_variable ended_;
  bool is_taken_ = false;
  size_t waiting_ = 0;
};

}  // namespace te
