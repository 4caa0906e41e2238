// CheckpointTurn: who writes a checkpoint, or an index of changes, of a store; one at a time.
//
// Thread-safety: all under the owner's mutex, which `take` opens while it waits.
#pragma once

#include <condition_variable>
#include <mutex>

namespace te {

class CheckpointTurn {
 public:
  void take(std::unique_lock<std::mutex>& owner_lock) {
    ended_.wait(owner_lock, [this] { return !is_taken_; });
    is_taken_ = true;
  }
  bool try_take() {
    if (is_taken_) return false;
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
};

}  // namespace te
