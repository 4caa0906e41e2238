// The kernels for every processor of the architecture.
#include "rows/variant_impl.h"

namespace te {

const Kernels& kernels_baseline() { return kVariant; }

}  // namespace te
