// The thread pool that all engines of the process share, so that many tables do not mean many
// pools. It uses torch's OpenMP workers while torch uses the same number of threads, else its own.
//
// Thread-safety: any thread. Ownership: lives until the process ends. A change of the number takes
// effect at the next batch; results never depend on it.
#pragma once

#include <cstddef>

#include "base/thread_pool.h"

namespace te {

ThreadPool& thread_pool();
void set_num_threads(size_t threads);  // >= 1
size_t num_threads();

}  // namespace te
