#include "table/threads.h"

#include <dlfcn.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <vector>

namespace te {
namespace {

// The OpenMP runtime that torch has loaded for everybody to see, if there is one. Both symbols are
// of its public ABI; LLVM's and Intel's runtimes have them too.
struct OpenMp {
  ThreadPool::OpenMpParallel parallel;
  int (*max_threads)();
  const int pid = getpid();  // in a forked child a runtime that had workers before would hang

  OpenMp()
      : parallel(
            reinterpret_cast<ThreadPool::OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))),
        max_threads(reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"))) {}

  // Teams of different sizes in turn would make the runtime end and start threads all the time.
  bool has_team_of(size_t threads) const {
    return parallel != nullptr && max_threads != nullptr && getpid() == pid &&
           static_cast<size_t>(max_threads()) == threads;
  }
};

struct Shared {
  const OpenMp openmp;
  std::mutex mutex;
  size_t threads = 1;
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
  const bool openmp = s.openmp.has_team_of(s.threads);
  for (auto& pool : s.pools) {
    if (pool->threads() == s.threads && pool->is_openmp() == openmp) return *pool;
  }
  s.pools.push_back(std::make_unique<ThreadPool>(s.threads, openmp ? s.openmp.parallel : nullptr));
  return *s.pools.back();
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
