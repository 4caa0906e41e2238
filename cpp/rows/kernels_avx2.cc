// The kernels for x86-64 processors with AVX2 and F16C. Empty elsewhere.
#if defined(__x86_64__)
#include "rows/variant_impl.h"

namespace te {

const Kernels& kernels_avx2() { return kVariant; }

}  // namespace te
#endif
