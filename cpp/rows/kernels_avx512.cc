// The kernels for x86-64 processors with AVX-512 F, BW, DQ and VL. Empty elsewhere.
#if defined(__x86_64__)
#include "rows/variant_impl.h"

namespace te {

const Kernels& kernels_avx512() { return kVariant; }

}  // namespace te
#endif
