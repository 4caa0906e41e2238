// OwnedEngine: an engine, and the process that made it.
//
// A forked child has the engine's memory, but not its threads, and it shares the store's files, the
// rings of io_uring and the lock with its parent. So where there are such, every use in a child
// raises; tables in dram alone work there, as a copy, unless the parent has prefetched batches. A
// child never destroys an engine of its parent: it would wait for threads that it does not have.
// Thread-safety: as Engine.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

#include "table/engine.h"

namespace te {

class OwnedEngine {
 public:
  explicit OwnedEngine(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}
  ~OwnedEngine() {
    if (!is_mine()) (void)engine_.release();
  }
  OwnedEngine(const OwnedEngine&) = delete;
  OwnedEngine& operator=(const OwnedEngine&) = delete;

  bool is_mine() const { return getpid() == owner_; }
  bool is_usable() const { return is_mine() || !engine_->is_lost_in_a_fork(); }
  // Raises ValueError where it is not usable.
  Engine* operator->() const {
    if (!is_usable()) {
      const std::string message =
          "this table was opened by process " + std::to_string(owner_) +
          ", of which this one is a fork that has neither its threads nor its store: close it" +
          " before the fork, and open it in each process that uses it";
      throw nanobind::value_error(message.c_str());
    }
    return engine_.get();
  }

 private:
  std::unique_ptr<Engine> engine_;
  const pid_t owner_ = getpid();
};

}  // namespace te
