// Engine::Turn: one call of a user, while no other is at work. For the engine's own files.
//
// Thread-safety: a turn belongs to its thread. It holds the engine's mutex too, but where it says
// so. Invariant: at the end of a turn that was quiet, prefetching goes on.
#pragma once

#include "table/engine.h"

namespace te {

class Engine::Turn {
 public:
  explicit Turn(Engine& engine) : engine_(engine), turn_(engine.turn_), lock_(engine.mutex_) {}
  ~Turn() {
    if (!is_quiet_) return;
    if (!lock_.owns_lock()) lock_.lock();
    engine_.prefetch_.resume();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // To the end of the turn every row that has a slot stands in it, and nothing is planned ahead.
  void quiet() {
    if (is_quiet_) return;
    engine_.prefetch_.pause(lock_);
    is_quiet_ = true;
  }
  PrefetchQueue::Lock& lock() { return lock_; }
  // Without the mutex: for what only touches pinned rows.
  template <class F>
  void without_mutex(F compute) {
    lock_.unlock();
    compute();
    lock_.lock();
  }

 private:
  Engine& engine_;
  std::lock_guard<std::mutex> turn_;
  PrefetchQueue::Lock lock_;
  bool is_quiet_ = false;
};

}  // namespace te
