#include "table/threads.h"

#include <memory>
#include <mutex>
#include <vector>

namespace te {
namespace {

struct Shared {
  std::mutex mutex;
  size_t threads = 1;
  ThreadPool* current = nullptr;
  // Pools of earlier numbers may still be running a batch, so they stay; there are few.
  std::vector<std::unique_ptr<ThreadPool>> pools;
};

// Never destroyed: at the end of the process its threads must not be joined from a static
// destructor.
Shared& shared() {
  static auto* instance = new Shared();
  return *instance;
}

}  // namespace

ThreadPool& thread_pool() {
  Shared& s = shared();
  std::lock_guard lock(s.mutex);
  if (s.current == nullptr || s.current->threads() != s.threads) {
    s.current = nullptr;
    for (auto& pool : s.pools) {
      if (pool->threads() == s.threads) s.current = pool.get();
    }
    if (s.current == nullptr) {
      s.pools.push_back(std::make_unique<ThreadPool>(s.threads));
      s.current = s.pools.back().get();
    }
  }
  return *s.current;
}

void set_num_threads(size_t threads) {
  std::lock_guard lock(shared().mutex);
  shared().threads = threads;
}

size_t num_threads() {
  std::lock_guard lock(shared().mutex);
  return shared().threads;
}

}  // namespace te
