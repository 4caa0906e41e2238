// The variants of the kernels, one a file that is compiled for its instruction set, and what they
// share. Internal to rows/. Thread-safety: pure functions, and one scratch a thread.
#pragma once

#include <cstddef>

#include "rows/kernels.h"

namespace te {

const Kernels& kernels_baseline();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

// At least `count` floats of the calling thread, until its next call. Allocates where a thread asks
// for more than ever before.
float* kernel_scratch(size_t count);

}  // namespace te
